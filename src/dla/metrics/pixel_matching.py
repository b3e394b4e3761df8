"""Match the pixels of two boundary maps one to one.

Of the matchings with the most pairs, one with the smallest total distance is found. The Berkeley benchmark asks for
the same; its own solver samples the graph and so loses about one pair in a thousand. It matters which of the largest
matchings is taken: a predicted pixel is right if any annotator matches it, and one that is not the nearest finds other
pixels for each annotator.

Most of the work is to make the assignment problem small. Any largest matching shows which pairs no largest matching
has (Dulmage and Mendelsohn 1958): those between three parts of the graph, and those between the strongly connected
components of the part that is matched completely. Without them the graph falls into many components, in each of which
one side is matched completely, so that none needs a choice of what to leave out.

Pixels of both maps are nodes: V in all, first the rows (of one map), then the columns (of the other). E is the number
of pairs within the distance, sorted by distance, M of matched ones.
"""

from __future__ import annotations

import math

import numpy as np

from dla.types import Array

_LOOKED_UP_AT_ONCE = 2**22
_TOO_DEAR = 1e7  # more than all distances of a component together, in pixels
_LARGE = 400  # pairs: a component from here on is solved alone, smaller ones together


def match_pixels(one_HW: Array, other_HW: Array, max_distance: float) -> tuple[Array, Array]:
    """Return the pixels of both maps (booleans) that are matched, as flat indices, (M,) each, pair by pair.

    Args:
        one_HW: the map with fewer pixels, if that is known: it is searched from there.
        other_HW: a map of the same size.
        max_distance: the largest distance of a pair, in pixels.
    """
    pixels_V = np.concatenate([np.flatnonzero(one_HW), np.flatnonzero(other_HW)])
    rows = int(np.count_nonzero(one_HW))
    row_E, column_E, distance_E = _pairs_within(one_HW.shape, pixels_V, rows, max_distance)
    if not len(row_E):
        return pixels_V[:0], pixels_V[:0]
    partner_V = _largest_matching(row_E, column_E, rows, len(pixels_V))
    possible_E, tall_E = _in_some_largest_matching(row_E, column_E, partner_V)
    row_E, column_E, distance_E, tall_E = (of_E[possible_E] for of_E in (row_E, column_E, distance_E, tall_E))
    complete_E, other_E = np.where(tall_E, column_E, row_E), np.where(tall_E, row_E, column_E)
    chosen_M = _assign(complete_E, other_E, distance_E, len(pixels_V))
    return pixels_V[row_E[chosen_M]], pixels_V[column_E[chosen_M]]


def _pairs_within(shape: tuple[int, ...], pixels_V: Array, rows: int, most: float) -> tuple[Array, Array, Array]:
    """Return all pairs of a row and a column at most `most` apart, and their distance; the nearest first."""
    height, width = shape
    reach = math.ceil(most)
    steps = np.arange(-reach, reach + 1)
    squares = (steps[:, None] ** 2 + steps**2).ravel()
    near_O = np.argsort(squares, kind="stable")
    near_O = near_O[squares[near_O] <= most**2]
    wide = width + 2 * reach
    offset_O = (near_O // len(steps) - reach) * wide + near_O % len(steps) - reach
    padded_V = (pixels_V // width + reach) * wide + pixels_V % width + reach
    node = np.full((height + 2 * reach) * wide, -1, np.int32)
    node[padded_V[rows:]] = np.arange(rows, len(pixels_V), dtype=np.int32)
    found: list[tuple[Array, Array, Array]] = []
    at_once = max(1, _LOOKED_UP_AT_ONCE // max(1, rows))
    for start in range(0, len(near_O), at_once):
        columns = node[padded_V[:rows] + offset_O[start : start + at_once, None]].ravel()
        hits = np.flatnonzero(columns >= 0)
        found.append((hits % max(1, rows), columns[hits], np.sqrt(squares[near_O[start + hits // max(1, rows)]])))
    row_E, column_E, distance_E = (np.concatenate(part) for part in zip(*found, strict=True))
    return row_E, column_E.astype(np.int64), distance_E


def _largest_matching(row_E: Array, column_E: Array, rows: int, count: int) -> Array:
    """Return the partner of each node in a largest matching, (V,); -1 for none.

    Near pairs are taken first. Then free rows look for a free column along alternating paths, all at once: their search
    trees share no node, so each tree that finds one is augmented.
    """
    partner_V = _greedy_matching(row_E, column_E, count)
    while True:
        order, before_V = _alternating_paths(row_E, column_E, partner_V)
        ends = order[(order >= rows) & (order < count)]
        ends = ends[partner_V[ends] < 0]
        if not len(ends):
            return partner_V
        _, first = np.unique(_roots(before_V)[ends], return_index=True)
        for column in ends[first].tolist():
            while column < count:
                row = before_V[column]
                partner_V[column], partner_V[row] = row, column
                column = before_V[row]


def _greedy_matching(row_E: Array, column_E: Array, count: int) -> Array:
    partner_V = np.full(count, -1, np.int64)
    while len(row_E):
        every = np.arange(len(row_E))
        taken = (_first(row_E, count)[row_E] == every) & (_first(column_E, count)[column_E] == every)
        partner_V[row_E[taken]], partner_V[column_E[taken]] = column_E[taken], row_E[taken]
        left = (partner_V[row_E] < 0) & (partner_V[column_E] < 0)
        row_E, column_E = row_E[left], column_E[left]
    return partner_V


def _first(nodes_E: Array, count: int) -> Array:
    """Return the first, so nearest, pair of each node, (V,); E for none."""
    first_V = np.full(count, len(nodes_E), np.int64)
    first_V[nodes_E[::-1]] = np.arange(len(nodes_E) - 1, -1, -1)
    return first_V


def _alternating_paths(start_E: Array, end_E: Array, partner_V: Array) -> tuple[Array, Array]:
    """Search breadth-first from the free nodes of one side: along unmatched pairs, and back along matched ones.

    Returns the nodes in the order of the search, and the one before each; V stands before the free nodes, and is first.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    count = len(partner_V)
    matched = partner_V[start_E] == end_E
    free = np.unique(start_E[partner_V[start_E] < 0])
    tails = np.concatenate((start_E[~matched], end_E[matched], np.full(len(free), count)))
    heads = np.concatenate((end_E[~matched], start_E[matched], free))
    graph = csr_array((np.ones(len(tails)), (tails, heads)), shape=(count + 1, count + 1))
    order, before_V = breadth_first_order(graph, count)
    return order, before_V


def _roots(before_V: Array) -> Array:
    """Return the free node that each node was reached from."""
    own, count = np.arange(len(before_V)), len(before_V) - 1
    root_V = np.where((before_V < 0) | (before_V == count), own, before_V)
    while not np.array_equal(next_V := root_V[root_V], root_V):
        root_V = next_V
    return root_V


def _in_some_largest_matching(row_E: Array, column_E: Array, partner_V: Array) -> tuple[Array, Array]:
    """Return which pairs some largest matching has, and which are in the part where all columns are matched.

    In the other parts all rows are.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(partner_V)
    tall_V, wide_V = np.zeros((2, count + 1), bool)
    tall_V[_alternating_paths(row_E, column_E, partner_V)[0]] = True
    wide_V[_alternating_paths(column_E, row_E, partner_V)[0]] = True
    possible_E = (tall_V[row_E] == tall_V[column_E]) & (wide_V[row_E] == wide_V[column_E])
    square_E = possible_E & ~tall_V[row_E] & ~wide_V[row_E]
    tails, heads = row_E[square_E], partner_V[column_E[square_E]]
    steps = coo_array((np.ones(len(tails), np.int8), (tails, heads)), shape=(count, count))
    _, cycle_V = connected_components(steps, directed=True, connection="strong")
    possible_E[square_E] = cycle_V[tails] == cycle_V[heads]
    return possible_E, tall_V[row_E]


def _assign(complete_E: Array, other_E: Array, distance_E: Array, count: int) -> Array:
    """Return the pairs of the nearest matching of all `complete_E` nodes, as indices (M,), component by component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(complete_E), np.int8), (complete_E, other_E)), shape=(count, count))
    total, component_V = connected_components(links, directed=False)
    component_E = component_V[complete_E]
    nearest = _first(complete_E, count)
    nearest = nearest[nearest < len(complete_E)]
    wanted = np.bincount(other_E[nearest], minlength=count)[other_E[nearest]]
    contested = np.zeros(total, bool)
    contested[component_E[nearest[wanted > 1]]] = True
    hard = np.flatnonzero(contested[component_E])
    sizes = np.bincount(component_E[hard], minlength=total)
    groups = [hard[sizes[component_E[hard]] < _LARGE]]
    groups += [hard[component_E[hard] == which] for which in np.flatnonzero(sizes >= _LARGE)]
    solved = [pairs[_solve(complete_E[pairs], other_E[pairs], distance_E[pairs])] for pairs in groups if len(pairs)]
    return np.concatenate([nearest[~contested[component_E[nearest]]], *solved])


def _solve(complete_E: Array, other_E: Array, distance_E: Array) -> Array:
    """Return the pairs of the matching of all `complete_E` nodes with the smallest total distance, as indices (M,)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    (complete_E, rows), (other_E, columns) = _numbered(complete_E), _numbered(other_E)
    # SciPy first looks for any matching of all rows, in some graphs for minutes. A column of its own for each row, too
    # dear to be chosen, makes that trivial. SciPy drops costs of 0, so 1 is added.
    every = np.arange(rows)
    costs = np.concatenate((distance_E + 1, np.full(rows, _TOO_DEAR)))
    places = np.concatenate((complete_E, every)), np.concatenate((other_E, columns + every))
    graph = csr_array((costs, places), shape=(rows, columns + rows))
    solved_R, partner_R = min_weight_full_bipartite_matching(graph)
    partner_of = np.empty(rows, np.int64)
    partner_of[solved_R] = partner_R
    return np.flatnonzero(partner_of[complete_E] == other_E)


def _numbered(nodes_E: Array) -> tuple[Array, int]:
    """Return the nodes numbered from 0 without gaps, and how many there are."""
    present = np.zeros(nodes_E.max() + 1, bool)
    present[nodes_E] = True
    return np.cumsum(present)[nodes_E] - 1, int(present.sum())

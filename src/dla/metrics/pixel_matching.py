"""Match the pixels of two boundary maps one to one.

Of the matchings with the most pairs, one with the smallest total distance is found. The Berkeley benchmark asks for
the same; its own solver samples the graph and so loses about one pair in a thousand. It matters which of the largest
matchings is taken: a predicted pixel is right if any annotator matches it, and one that is not the nearest finds other
pixels for each annotator.

The graph of all pairs within the distance falls into components, which are solved apart, the smaller side first. Most
are so simple that the nearest partners are already a solution. E is the number of pairs within the distance, M of
matched ones.
"""

from __future__ import annotations

import math

import numpy as np

from dla.types import Array

# An unmatched pixel costs more than any detour that matches it. Distances are in pixels, and a component has fewer
# pairs than this.
_UNMATCHED = 1e7
_PAIRS_AT_ONCE = 2**22
_LARGE = 400  # pairs: a component from here on is solved alone, smaller ones together


def match_pixels(one_HW: Array, other_HW: Array, max_distance: float) -> tuple[Array, Array]:
    """Return the pixels of both maps (booleans) that are matched, as flat indices, (M,) each, pair by pair.

    Args:
        one_HW: the map with fewer pixels, if that is known: it is searched from there.
        other_HW: a map of the same size.
        max_distance: the largest distance of a pair, in pixels.
    """
    pixels_A, pixels_B = np.flatnonzero(one_HW), np.flatnonzero(other_HW)
    a_E, b_E, distance_E = _pairs_within(one_HW.shape, pixels_A, pixels_B, max_distance)
    if not len(a_E):
        return pixels_A[:0], pixels_B[:0]
    row_E, column_E, component_E = _smaller_sides(a_E, b_E + len(pixels_A), len(pixels_A), len(pixels_B))
    chosen_M = _chosen_pairs(row_E, column_E, distance_E, component_E)
    return pixels_A[a_E[chosen_M]], pixels_B[b_E[chosen_M]]


def _pairs_within(shape: tuple[int, ...], pixels_A: Array, pixels_B: Array, most: float) -> tuple[Array, Array, Array]:
    """Return all pairs of pixels at most `most` apart: indices of `pixels_A` and `pixels_B`, and their distance."""
    height, width = shape
    reach = math.ceil(most)
    steps = np.arange(-reach, reach + 1)
    squares = steps[:, None] ** 2 + steps**2
    down_O, along_O = np.nonzero(squares <= most**2)
    distance_O = np.sqrt(squares[down_O, along_O])
    wide = width + 2 * reach
    offset_O = (down_O - reach) * wide + along_O - reach

    def padded(pixels: Array) -> Array:
        return (pixels // width + reach) * wide + pixels % width + reach  # type: ignore[no-any-return]

    index = np.full((height + 2 * reach) * wide, -1, np.int32)
    index[padded(pixels_B)] = np.arange(len(pixels_B), dtype=np.int32)
    padded_A, rows = padded(pixels_A), max(1, _PAIRS_AT_ONCE // len(offset_O))
    parts = []
    for start in range(0, max(1, len(padded_A)), rows):
        found = index[padded_A[start : start + rows, None] + offset_O].ravel()
        hits = np.flatnonzero(found >= 0)
        parts.append((start + hits // len(offset_O), found[hits], distance_O[hits % len(offset_O)]))
    a_E, b_E, distance_E = (np.concatenate(column) for column in zip(*parts, strict=True))
    return a_E, b_E, distance_E


def _smaller_sides(a_E: Array, b_E: Array, count_a: int, count_b: int) -> tuple[Array, Array, Array]:
    """Return for each pair its row and column, and its component. The rows are the side with fewer pixels."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = count_a + count_b
    links = coo_array((np.ones(len(a_E), np.int8), (a_E, b_E)), shape=(count, count))
    total, component_V = connected_components(links, directed=False)
    of_a, of_b = (np.bincount(part, minlength=total) for part in (component_V[:count_a], component_V[count_a:]))
    component_E = component_V[a_E]
    swapped_E = (of_a > of_b)[component_E]
    return np.where(swapped_E, b_E, a_E), np.where(swapped_E, a_E, b_E), component_E


def _chosen_pairs(row_E: Array, column_E: Array, distance_E: Array, component_E: Array) -> Array:
    """Return the pairs of the matching, as indices (M,)."""
    nearest_R = _nearest(row_E, distance_E)
    taken_V = np.bincount(column_E[nearest_R])
    contested = np.zeros(component_E.max() + 1, bool)
    contested[component_E[nearest_R[taken_V[column_E[nearest_R]] > 1]]] = True
    parts = [nearest_R[~contested[component_E[nearest_R]]]]
    hard_E = np.flatnonzero(contested[component_E])
    sizes = np.bincount(component_E[hard_E], minlength=len(contested))
    large = sizes >= _LARGE
    groups = [hard_E[component_E[hard_E] == which] for which in np.flatnonzero(large)]
    groups.append(hard_E[~large[component_E[hard_E]]])
    for pairs in groups:
        if len(pairs):
            parts.append(pairs[_solve(row_E[pairs], column_E[pairs], distance_E[pairs])])
    return np.concatenate(parts)


def _nearest(row_E: Array, distance_E: Array) -> Array:
    """Return the pair with the smallest distance of each row, as indices."""
    order_E = np.lexsort((distance_E, row_E))
    first = np.ones(len(order_E), bool)
    first[1:] = np.diff(row_E[order_E]) > 0
    return order_E[first]


def _solve(row_E: Array, column_E: Array, distance_E: Array) -> Array:
    """Return the pairs of a largest matching with the smallest total distance, as indices (M,)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    (row_E, rows), (column_E, columns) = _ranks(row_E), _ranks(column_E)
    every = np.arange(rows)
    # A column of its own for each row, so that a matching of all rows exists. SciPy drops costs of 0, so 1 is added.
    costs = np.concatenate((distance_E + 1, np.full(rows, _UNMATCHED)))
    places = np.concatenate((row_E, every)), np.concatenate((column_E, columns + every))
    graph = csr_array((costs, places), shape=(rows, columns + rows))
    solved_R, partner_R = min_weight_full_bipartite_matching(graph)
    partner_of = np.empty(rows, np.int64)
    partner_of[solved_R] = partner_R
    return np.flatnonzero(partner_of[row_E] == column_E)


def _ranks(nodes_E: Array) -> tuple[Array, int]:
    """Return the nodes numbered from 0 without gaps, and how many there are."""
    present = np.zeros(nodes_E.max() + 1, bool)
    present[nodes_E] = True
    return np.cumsum(present)[nodes_E] - 1, int(present.sum())

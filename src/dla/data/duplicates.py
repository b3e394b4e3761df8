"""Photos that show the same picture: identical pixels, and the same picture stored at another size or quality.

N photos, M pairs of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dla.types import Array

__all__ = ["are_alike", "identical", "near_groups", "pairs_within"]


# Of 500 photos stored again in nine ways (benchmarks/data_check.py: JPEG, WebP, GIF, 0.5 to 2 times the size) at least
# 99.0 % of each way stay within both limits; of all pairs of Tiny ImageNet's 110,000 photos, which are 6e9, two do
# beside the identical ones, and both show the same picture.
MAX_BITS = 6
MAX_DIFFERENCE = 0.25
# Photos without contrast (a blank page, a night) are alike only if hardly a level apart.
LEAST_CONTRAST = 4.0
# Photos whose hash has one part in common are compared with so many of the next in the order of the hash: without an
# end a hundred thousand nearly blank pages would take a day.
MOST_COMPARED = 4096


def identical(digests: Sequence[bytes]) -> list[list[int]]:
    """Rows that share a digest, in groups of at least two; both in rising order. An empty digest is none."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        groups[digest].append(row)
    groups.pop(b"", None)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_groups(phashes_N: Array, small_NP: Array) -> list[list[int]]:
    """Rows that show the same picture, in groups of at least two: linked by pairs whose hashes are within `MAX_BITS`
    and whose small pictures (uint8, P numbers each) are alike."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs_M2 = pairs_within(phashes_N, MAX_BITS)
    pairs_M2 = pairs_M2[are_alike(small_NP, pairs_M2)]
    if not len(pairs_M2):
        return []
    count = len(phashes_N)
    links = coo_array((np.ones(len(pairs_M2), bool), pairs_M2.T), shape=(count, count))
    groups: dict[int, list[int]] = defaultdict(list)
    _, group_N = connected_components(links, directed=False)
    for row in np.unique(pairs_M2).tolist():
        groups[group_N[row]].append(row)
    return list(groups.values())


def pairs_within(hashes_N: Array, most_bits: int) -> Array:
    """All pairs of rows (M, 2) whose 64-bit hashes differ in at most `most_bits` bits, the smaller row first, sorted.

    Cut into `most_bits` + 1 parts, two such hashes have a part in common: only within equal parts are pairs compared.
    """
    edges = np.linspace(0, 64, most_bits + 2).astype(int).tolist()
    found = [np.empty((0, 2), np.int64)]
    for low, high in pairwise(edges):
        part_N = hashes_N >> np.uint64(low) & np.uint64((1 << high - low) - 1)
        order_N = np.lexsort((hashes_N, part_N))
        part_N, sorted_N = part_N[order_N], hashes_N[order_N]
        at = np.arange(len(order_N))
        for ahead in range(1, MOST_COMPARED + 1):
            at = at[at + ahead < len(order_N)]
            at = at[part_N[at] == part_N[at + ahead]]
            if not len(at):
                break
            near = at[np.bitwise_count(sorted_N[at] ^ sorted_N[at + ahead]) <= most_bits]
            found.append(np.stack((order_N[near], order_N[near + ahead]), axis=1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def are_alike(small_NP: Array, pairs_M2: Array) -> Array:
    """Which pairs' small pictures differ by little: their root mean square difference, over the smaller contrast."""
    alike = [np.empty(0, bool)]
    for start in range(0, len(pairs_M2), 10_000):
        one, other = (small_NP[rows].astype(np.float32) for rows in pairs_M2[start : start + 10_000].T)
        difference = np.sqrt(np.square(one - other).mean(axis=1))
        contrast = np.maximum(np.minimum(one.std(axis=1), other.std(axis=1)), LEAST_CONTRAST)
        alike.append(difference <= MAX_DIFFERENCE * contrast)
    return np.concatenate(alike)

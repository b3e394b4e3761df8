"""Find duplicates: photos with identical pixels, and near duplicates of another size or quality.

N is the number of photos, M of pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dla.types import Array

# Of 500 photos re-encoded in nine ways (benchmarks/data_check.py: JPEG, WebP, GIF, 0.5 to 2 times the size), at least
# 99.0 % are within both limits, whatever the way. Of the 6e9 pairs of Tiny ImageNet's 110,000 photos, apart from
# identical ones, two are within both, and these show the same picture.
MAX_BITS = 6
MAX_DIFFERENCE = 0.25
# Photos without contrast (a blank page, a night sky) are alike only if they differ by at most about one level of 255.
LEAST_CONTRAST = 4.0
# A photo is compared with at most this many of the following ones that share a part of its hash: without a limit, a
# hundred thousand nearly blank pages would take a day.
MOST_COMPARED = 4096


def identical(digests: Sequence[bytes]) -> list[list[int]]:
    """Return groups of at least two rows with the same digest, both in ascending order. Empty digests are ignored."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        groups[digest].append(row)
    groups.pop(b"", None)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_groups(phashes_N: Array, small_NP: Array) -> list[list[int]]:
    """Return groups of at least two rows that show the same picture.

    Groups are connected components of the pairs whose hashes differ in at most `MAX_BITS` bits and whose thumbnails
    (uint8, P values each) are alike.
    """
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
    """Return the pairs of rows (M, 2) whose 64-bit hashes differ in at most `most_bits` bits, sorted, lower row first.

    If hashes are cut into `most_bits` + 1 parts, two such hashes share a part, so only rows that share one are
    compared, and each with at most `MOST_COMPARED` others.
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
    """Return which pairs have thumbnails whose RMS difference is small relative to their contrast: booleans (M,)."""
    alike = [np.empty(0, bool)]
    for start in range(0, len(pairs_M2), 10_000):
        one, other = (small_NP[rows].astype(np.float32) for rows in pairs_M2[start : start + 10_000].T)
        difference = np.sqrt(np.square(one - other).mean(axis=1))
        contrast = np.maximum(np.minimum(one.std(axis=1), other.std(axis=1)), LEAST_CONTRAST)
        alike.append(difference <= MAX_DIFFERENCE * contrast)
    return np.concatenate(alike)

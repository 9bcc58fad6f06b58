"""The pairs of neighbours that MIND-SSC compares, in the order of its channels."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

LARGEST_RADIUS = 32
"""Voxels: the largest ``radius`` and ``dilation``. More is of no use, and takes working memory."""


@cache
def pairs(dims: int) -> tuple[tuple[int, int], ...]:
    """The pairs (p, q) of neighbours on two different axes: 4 with two axes, 12 with three.

    Neighbours are numbered ``-z, +z, -y, +y, -x, +x``, with two axes ``-y, +y, -x, +x``. Kernels have the same order:
    where several channels are lowest, the first counts.
    """
    return tuple(
        (2 * first + p, 2 * second + q)
        for first, second in combinations(range(dims), 2)
        for p, q in product((0, 1), repeat=2)
    )

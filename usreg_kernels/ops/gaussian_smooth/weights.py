"""The weights of a gaussian, computed once in float64 for every backend."""

from __future__ import annotations

import math
from functools import lru_cache

LARGEST_RADIUS = 4096
"""Voxels; more than any volume needs, and few enough for tables of weights."""

LARGEST_UNROLLED = 31
"""The largest radius, in voxels, of the Triton kernels."""

LARGEST_IN_CUDA = 63
"""That of the CUDA C++ kernels: ``kMostRadius`` in ``csrc/cuda/gaussian_smooth``."""


def radius_of(sigma: float, truncate: float) -> int:
    """How many voxels the filter reaches to either side: ``truncate`` standard deviations, rounded as SciPy does."""
    return int(truncate * sigma + 0.5)


@lru_cache(maxsize=256)
def half_weights(sigma: float, truncate: float) -> tuple[float, ...]:
    """The weights at distances 0, 1, ..., radius; those of both sides add up to 1."""
    scaled = [k / sigma for k in range(1, radius_of(sigma, truncate) + 1)]
    side = [math.exp(-0.5 * distance * distance) for distance in scaled]
    total = 1.0 + 2.0 * math.fsum(side)
    return (1.0 / total, *(weight / total for weight in side))


@lru_cache(maxsize=256)
def tails(weights: tuple[float, ...]) -> tuple[float, ...]:
    """At distance i, the sum of the half's weights beyond it: what falls outside of an edge so far away."""
    return tuple(math.fsum(weights[i + 1 :]) for i in range(len(weights)))

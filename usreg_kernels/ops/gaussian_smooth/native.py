"""The compiled gaussian smoothing: C++ on CPUs (``csrc/cpu/gaussian_smooth``), CUDA C++ on GPUs
(``csrc/cuda/gaussian_smooth``).

Nothing is saved: the gradient is the same filter of the incoming gradient, with what falls outside folded back in.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.backend import Tensors
from usreg_kernels.ops.compiled import StatelessBackend, define_stateless
from usreg_kernels.ops.gaussian_smooth.weights import LARGEST_IN_CUDA, half_weights, radius_of
from usreg_kernels.ops.warp.native import PADDING_CODES

# Weights are those at distances 0, 1, ... along each axis; (1,) where there is no axis. The result of forward, and
# grad_output, are float64 where x is, else float32.
define_stateless(
    "gaussian_smooth", "Tensor x, float[] weights_z, float[] weights_y, float[] weights_x, int padding_mode"
)


def weights_of_axes(sigma: list[float], truncate: float) -> list[tuple[float, ...]]:
    """The weights along z, y, x; (1,) for an axis that is not there."""
    return [(1.0,)] * (3 - len(sigma)) + [half_weights(width, truncate) for width in sigma]


class Native(StatelessBackend):
    """One pass over the image either way on CPUs; on GPUs, one per axis."""

    op = "gaussian_smooth"

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """On GPUs, the weights are arguments of the kernels."""
        largest = max(radius_of(sigma, params["truncate"]) for sigma in params["sigma"])
        if self.name == "cuda" and largest > LARGEST_IN_CUDA:
            return f"its filters reach up to {LARGEST_IN_CUDA} voxels, and this one {largest}"
        return super().declines(tensors, **params)

    def arguments(self, x: torch.Tensor, sigma: list[float], truncate: float, padding_mode: str) -> tuple[Any, ...]:
        """The weights along z, y, x, and the padding."""
        return *weights_of_axes(sigma, truncate), PADDING_CODES[padding_mode]

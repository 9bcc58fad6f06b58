"""The compiled Jacobian determinant: C++ on CPUs (``csrc/cpu/jacobian``), CUDA C++ on GPUs (``csrc/cuda/jacobian``).

Nothing is saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import StatelessBackend, define_stateless
from usreg_kernels.ops.jacobian_determinant.reference import axis_scales

# scales: what multiplies the derivatives along each axis.
define_stateless("jacobian_determinant", "Tensor ddf, float[] scales")


class Native(StatelessBackend):
    """One pass over the field each way."""

    op = "jacobian_determinant"

    def arguments(self, ddf: torch.Tensor, spacing: list[float] | None) -> tuple[Any, ...]:
        """The scale of each axis."""
        return (axis_scales(ddf.ndim - 2, spacing),)

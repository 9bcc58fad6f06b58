"""The compiled folding loss: C++ on CPUs (``csrc/cpu/jacobian``), CUDA C++ on GPUs (``csrc/cuda/jacobian``).

Nothing is saved for backward, and no map of determinants is written.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, StatelessBackend, define_stateless
from usreg_kernels.ops.jacobian_determinant.reference import axis_scales

define_stateless("folding", "Tensor ddf, float[] scales, float margin, int reduction")


class Native(StatelessBackend):
    """One pass over the field each way."""

    op = "folding"

    def arguments(
        self, ddf: torch.Tensor, spacing: list[float] | None, margin: float, reduction: str
    ) -> tuple[Any, ...]:
        """The scale of each axis, and the choices of the loss."""
        return axis_scales(ddf.ndim - 2, spacing), margin, REDUCTION_CODES[reduction]

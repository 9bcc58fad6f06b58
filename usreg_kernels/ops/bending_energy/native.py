"""The compiled bending energy: C++ on CPUs (``csrc/cpu/field_losses/field_losses.cpp``), CUDA C++ on GPUs.

The kernels of both read ``csrc/common/field_terms.h``. Nothing is saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, StatelessBackend, define_stateless
from usreg_kernels.ops.field_weights import bending_weights

define_stateless("bending_energy", "Tensor dvf, float[] weights, float divisor, int reduction")


class Native(StatelessBackend):
    """One pass over the field each way."""

    op = "bending_energy"

    def arguments(self, dvf: torch.Tensor, normalize: bool, reduction: str) -> tuple[Any, ...]:
        """What multiplies each squared difference, what divides their sum, and the reduction."""
        weights = bending_weights(dvf.shape, normalize, reduction)
        return weights.penalties, weights.divisor, REDUCTION_CODES[reduction]

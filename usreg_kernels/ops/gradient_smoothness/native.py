"""The compiled gradient smoothness: C++ on CPUs (``csrc/cpu/field_losses/field_losses.cpp``), CUDA C++ on GPUs.

The kernels of both read ``csrc/common/field_terms.h``. Nothing is saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, StatelessBackend, define_stateless
from usreg_kernels.ops.field_weights import smoothness_weights

define_stateless(
    "gradient_smoothness", "Tensor dvf, bool magnitude, bool central, float[] weights, float divisor, int reduction"
)


class Native(StatelessBackend):
    """One pass over the field each way."""

    op = "gradient_smoothness"

    def arguments(
        self, dvf: torch.Tensor, penalty: str, scheme: str, spacing: list[float] | None, normalize: bool, reduction: str
    ) -> tuple[Any, ...]:
        """The choices of the loss, what multiplies each penalty, what divides their sum, and the reduction."""
        weights = smoothness_weights(dvf.shape, penalty, scheme, spacing, normalize, reduction)
        return penalty == "l1", scheme == "central", weights.penalties, weights.divisor, REDUCTION_CODES[reduction]

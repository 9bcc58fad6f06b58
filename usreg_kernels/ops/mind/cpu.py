"""The MIND loss in C++, on CPUs (``csrc/cpu/mind``)."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES
from usreg_kernels.ops.reduction import mask_weight
from usreg_kernels.ops.saved_gradients import GradientSavingBackend, define_saving

# divisor: of the sum over all voxels; 1 for reductions that are no mean.
define_saving("mind", "int radius, int dilation, float divisor, int reduction")


class Cpu(GradientSavingBackend):
    """A march over each image for the mean of V, and one over both for the loss and the gradients."""

    op = "mind"

    def arguments(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        radius: int,
        dilation: int,
        reduction: str,
    ) -> tuple[Any, ...]:
        """Those of the op, and the divisor of a mean."""
        divisor = float(mask_weight(pred.shape, mask)) if reduction == "mean" else 1.0
        return radius, dilation, divisor, REDUCTION_CODES[reduction]

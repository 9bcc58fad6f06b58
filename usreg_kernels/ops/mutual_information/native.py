"""The compiled mutual information: C++ on CPUs and CUDA C++ on NVIDIA GPUs (``csrc/*/mutual_information``).

Forward saves the derivative of each item's loss by its joint histogram, which backward looks up for every voxel, and
the range of values: a few kilobytes, whatever the size of the images.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.backend import Tensors
from usreg_kernels.ops.compiled import REDUCTION_CODES, CompiledBackend, only_needed
from usreg_kernels.ops.operator import LIBRARY

MOST_BINS = 256
"""``kMostBins`` and ``kInfoMostBins`` in ``csrc/*/mutual_information``."""

LEAST_SIGMA = 0.05
"""``kLeastSigma`` there: the narrowest gaussian, in bins."""

_RANGE_NUMBERS = 9
"""``kEnds`` there: the numbers of the ranges, which two per batch item follow."""

_INPUTS = "Tensor pred, Tensor target, Tensor? mask, int num_bins, bool gaussian, float sigma"
LIBRARY.define(
    f"mutual_information_native_forward({_INPUTS}, bool normalized, int reduction, float smooth_nr, float smooth_dr, "
    "bool needs_grad) -> (Tensor, Tensor?, Tensor?)"
)
LIBRARY.define(
    f"mutual_information_native_backward(Tensor grad_output, Tensor slopes, Tensor ranges, {_INPUTS}, int reduction, "
    "bool pred_grad, bool target_grad) -> (Tensor?, Tensor?)"
)


def out_of_range(*, num_bins: int, kernel_type: str, sigma_ratio: float, **params: Any) -> str | None:
    """Why no compiled backend takes these bins; None if all do."""
    if num_bins > MOST_BINS:
        return f"its histograms have up to {MOST_BINS} bins, and this one {num_bins}"
    if kernel_type == "gaussian" and sigma_ratio < LEAST_SIGMA:
        return f"its gaussians are at least {LEAST_SIGMA} bins wide, and this one is {sigma_ratio:g}"
    return None


class Native(CompiledBackend):
    """Two passes over the images for the loss, one for the gradients; gaussian, one each.

    On GPUs b-spline takes one more, for what comes through the ends of the range.
    """

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """Histograms lie in the cache."""
        return out_of_range(**params) or super().declines(tensors, **params)

    def forward(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        num_bins: int,
        kernel_type: str,
        normalized: bool,
        sigma_ratio: float,
        reduction: str,
        smooth_nr: float,
        smooth_dr: float,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss, and where a gradient is needed the derivative by the histogram and the ranges."""
        loss, *saved = self.kernels.mutual_information_native_forward(
            *(pred, target, mask, num_bins, kernel_type == "gaussian", sigma_ratio, normalized),
            *(REDUCTION_CODES[reduction], smooth_nr, smooth_dr, any(needs_grad)),
        )
        return loss, saved if any(needs_grad) else []

    def saved_like(
        self, pred: torch.Tensor, *others: Any, needs_grad: list[bool], num_bins: int, **params: Any
    ) -> list[torch.Tensor]:
        """The derivative by the histogram (B, bins, bins), and the ranges."""
        if not any(needs_grad):
            return []
        shapes = ((pred.shape[0], num_bins, num_bins), (_RANGE_NUMBERS + 2 * pred.shape[0],))
        return [pred.new_empty(shape, dtype=torch.float64) for shape in shapes]

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        num_bins: int,
        kernel_type: str,
        sigma_ratio: float,
        reduction: str,
        **params: Any,
    ) -> list[torch.Tensor]:
        """Either gradient or both."""
        if not any(needs_grad):
            return []
        gradients = self.kernels.mutual_information_native_backward(
            *(grad_output, *saved, pred, target, mask, num_bins, kernel_type == "gaussian", sigma_ratio),
            *(REDUCTION_CODES[reduction], *needs_grad),
        )
        return only_needed(gradients, needs_grad)

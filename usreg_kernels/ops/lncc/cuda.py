"""The CUDA C++ local normalised cross-correlation (``csrc/cuda/lncc/problem.cuh``).

Forward saves the maps that the gradient is made from, 12 bytes per voxel for one gradient and 20 for both, and nothing
when asked for no gradient. ``USREG_LNCC_RECOMPUTE=1`` saves none: backward then computes them once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, CompiledBackend, only_needed
from usreg_kernels.ops.lncc.saving import RECOMPUTE
from usreg_kernels.ops.operator import LIBRARY, loss_dtype
from usreg_kernels.windows import make_window, trimmed_weights

_INPUTS = (
    "Tensor pred, Tensor target, Tensor? mask, float[] window_z, float[] window_y, float[] window_x, float volume, "
    "float smooth_nr, float smooth_dr, int reduction"
)
LIBRARY.define(f"lncc_cuda_forward({_INPUTS}, int map_count) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"lncc_cuda_backward(Tensor grad_output, Tensor divisor, Tensor maps, {_INPUTS}, bool pred_grad, "
    "bool target_grad) -> (Tensor?, Tensor?)"
)

_MAP_BLOCK = 32  # ``kMapBlock`` of csrc/cuda/lncc/problem.cuh: columns of a block of the maps


def _arguments(
    kernel_size: list[int], kernel_type: str, reduction: str, smooth_nr: float, smooth_dr: float
) -> tuple[Any, ...]:
    """The operators' arguments that are no tensors; missing axes have a window of one, and no window ends in zeros."""
    window = make_window(kernel_type, tuple(kernel_size))
    return (*trimmed_weights(window), window.volume, smooth_nr, smooth_dr, REDUCTION_CODES[reduction])


def _map_count(needs_grad: Sequence[bool]) -> int:
    """How many maps forward saves."""
    return 0 if RECOMPUTE else {0: 0, 1: 3, 2: 5}[sum(needs_grad)]


class Cuda(CompiledBackend):
    """A march each way, or sums along one axis after the other."""

    def forward(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        **params: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss; to save, the divisor of the mean and the maps."""
        if needs_grad == [False, True]:
            pred, target = target, pred  # the correlation is symmetric, and three maps serve the first
        arguments = _arguments(**params)
        loss, *saved = self.kernels.lncc_cuda_forward(pred, target, mask, *arguments, _map_count(needs_grad))
        return loss, saved

    def saved_like(self, pred: torch.Tensor, *others: Any, needs_grad: list[bool], **params: Any) -> list[torch.Tensor]:
        """The divisor, and the maps."""
        numel = prod(pred.shape[:-1]) * -(-pred.shape[-1] // _MAP_BLOCK) * _MAP_BLOCK * _map_count(needs_grad)
        return [pred.new_empty((), dtype=torch.float64), pred.new_empty((numel,), dtype=loss_dtype(pred.dtype))]

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        may_overwrite: bool = False,
        **params: Any,
    ) -> list[torch.Tensor]:
        """The gradients, from the maps."""
        all_maps = self.saved_like(pred, needs_grad=[True, True])[1].numel()
        swap = needs_grad == [False, True] and saved[1].numel() != all_maps
        images = [target, pred] if swap else [pred, target]
        needed = needs_grad[::-1] if swap else needs_grad
        arguments = _arguments(**params)
        return only_needed(
            self.kernels.lncc_cuda_backward(grad_output, *saved, *images, mask, *arguments, *needed), needed
        )

"""Local normalised cross-correlation in C++, on CPUs (``csrc/cpu/lncc/lncc.cpp``).

Forward computes the gradients along with the loss, since they share the window sums that take the time, and saves them
for backward, which multiplies ``grad_output`` in, where they lie if it is their last use. It saves nothing when asked
for no gradient, and for reduction ``none``, whose ``grad_output`` is a map; backward then computes the sums once more.
``USREG_LNCC_RECOMPUTE=1`` saves nothing at all (:mod:`usreg_kernels.ops.lncc.saving`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, CompiledBackend, only_needed
from usreg_kernels.ops.lncc.saving import RECOMPUTE
from usreg_kernels.ops.operator import LIBRARY, loss_dtype
from usreg_kernels.windows import make_window

_INPUTS = (
    "Tensor pred, Tensor target, Tensor? mask, float[] window_z, float[] window_y, float[] window_x, float volume, "
    "float smooth_nr, float smooth_dr, int reduction, bool pred_grad, bool target_grad"
)
LIBRARY.define(f"lncc_native_forward({_INPUTS}) -> (Tensor, Tensor?, Tensor?)")
LIBRARY.define(f"lncc_native_backward(Tensor grad_output, {_INPUTS}) -> (Tensor?, Tensor?)")
LIBRARY.define("lncc_native_scale(Tensor grad_output, Tensor gradient, Tensor like) -> Tensor")
LIBRARY.define("lncc_native_scale_(Tensor grad_output, Tensor(a!) gradient) -> ()")


@lru_cache(maxsize=256)
def _window_arguments(kernel_type: str, kernel_size: tuple[int, ...]) -> tuple[Any, ...]:
    """The weights along z, y, x, and the window's volume; missing axes have a window of one."""
    window = make_window(kernel_type, kernel_size)
    return (*((1.0,),) * (3 - len(window.weights)), *window.weights, window.volume)


def _arguments(
    kernel_size: list[int], kernel_type: str, reduction: str, smooth_nr: float, smooth_dr: float
) -> tuple[Any, ...]:
    """The operators' arguments that are neither tensors nor flags."""
    return (*_window_arguments(kernel_type, tuple(kernel_size)), smooth_nr, smooth_dr, REDUCTION_CODES[reduction])


def _saves(needs_grad: list[bool], reduction: str) -> bool:
    return any(needs_grad) and reduction != "none" and not RECOMPUTE


def _still_needed(saved: list[torch.Tensor], needs_grad: list[bool]) -> list[torch.Tensor]:
    """The saved gradients that backward asks for: forward saved one per flag that it was given, perhaps more."""
    return saved if len(saved) == 1 else only_needed(tuple(saved), needs_grad)


class Cpu(CompiledBackend):
    """One march over the volumes for the loss and the gradients."""

    overwrites_saved = True

    def forward(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        reduction: str,
        **window: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss, and the gradients of a mean or a sum to save, of the loss' dtype."""
        flags = needs_grad if _saves(needs_grad, reduction) else [False, False]
        arguments = _arguments(reduction=reduction, **window)
        loss, *gradients = self.kernels.lncc_native_forward(pred, target, mask, *arguments, *flags)
        return loss, only_needed(tuple(gradients), flags)

    def saved_like(
        self, pred: torch.Tensor, target: torch.Tensor, *others: Any, needs_grad: list[bool], reduction: str, **_: Any
    ) -> list[torch.Tensor]:
        """The gradients that ``forward`` saves."""
        if not _saves(needs_grad, reduction):
            return []
        pairs = zip((pred, target), needs_grad, strict=True)
        return [tensor.new_empty(tensor.shape, dtype=loss_dtype(tensor.dtype)) for tensor, needed in pairs if needed]

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        reduction: str,
        may_overwrite: bool = False,
        **window: Any,
    ) -> list[torch.Tensor]:
        """The saved gradients times ``grad_output``, where they lie if they may; a march where none were saved."""
        if not saved:
            arguments = _arguments(reduction=reduction, **window)
            gradients = self.kernels.lncc_native_backward(grad_output, pred, target, mask, *arguments, *needs_grad)
            return only_needed(gradients, needs_grad)
        found = _still_needed(saved, needs_grad)
        if not may_overwrite or saved[0].dtype != pred.dtype:
            return [self.kernels.lncc_native_scale(grad_output, gradient, pred) for gradient in found]
        for gradient in found:
            self.kernels.lncc_native_scale_(grad_output, gradient)
        return found

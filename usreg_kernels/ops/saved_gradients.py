"""CPU backends of losses of two images whose forward pass computes the gradients along with the loss.

The loss and its gradients share the sums that take the time. Forward saves the gradients for backward, which multiplies
``grad_output`` in, where they lie if it is their last use. Forward saves nothing when asked for no gradient, and for
reduction ``none``, whose ``grad_output`` is a map; backward then computes the sums once more.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from usreg_kernels.ops.compiled import CompiledBackend, only_needed
from usreg_kernels.ops.operator import LIBRARY, loss_dtype

LIBRARY.define("scale_gradient(Tensor grad_output, Tensor gradient, Tensor like) -> Tensor")
LIBRARY.define("scale_gradient_(Tensor grad_output, Tensor(a!) gradient) -> ()")


def define_saving(op: str, arguments: str) -> None:
    """Declare the operators of a :class:`GradientSavingBackend`, which the library for CPUs implements.

    Args:
        op: the op's name.
        arguments: what follows the two images and the mask, as a schema has it.
    """
    inputs = f"Tensor pred, Tensor target, Tensor? mask, {arguments}, bool pred_grad, bool target_grad"
    LIBRARY.define(f"{op}_native_forward({inputs}) -> (Tensor, Tensor?, Tensor?)")
    LIBRARY.define(f"{op}_native_backward(Tensor grad_output, {inputs}) -> (Tensor?, Tensor?)")


class GradientSavingBackend(CompiledBackend):
    """One computation of the loss and the gradients.

    A subclass turns an op's parameters into the arguments of the two operators that :func:`define_saving` declares.

    Attributes:
        op: the op's name.
        recomputes: whether nothing is saved at all.
    """

    overwrites_saved = True
    op: str
    recomputes = False

    def arguments(self, *tensors: Any, **params: Any) -> tuple[Any, ...]:
        """The operators' arguments that are neither tensors nor flags."""
        raise NotImplementedError

    def forward(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        **params: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss, and the gradients of a mean or a sum to save, of the loss' dtype."""
        flags = needs_grad if self._saves(needs_grad, params) else [False, False]
        arguments = self.arguments(pred, target, mask, **params)
        loss, *gradients = self._forward(pred, target, mask, *arguments, *flags)
        return loss, only_needed(tuple(gradients), flags)

    def saved_like(
        self, pred: torch.Tensor, target: torch.Tensor, *others: Any, needs_grad: list[bool], **params: Any
    ) -> list[torch.Tensor]:
        """The gradients that ``forward`` saves."""
        if not self._saves(needs_grad, params):
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
        may_overwrite: bool = False,
        **params: Any,
    ) -> list[torch.Tensor]:
        """The saved gradients times ``grad_output``, where they lie if they may; computed where none were saved."""
        if not saved:
            arguments = self.arguments(pred, target, mask, **params)
            gradients = self._backward(grad_output, pred, target, mask, *arguments, *needs_grad)
            return only_needed(gradients, needs_grad)
        found = _still_needed(saved, needs_grad)
        if not may_overwrite or saved[0].dtype != pred.dtype:
            return [self.kernels.scale_gradient(grad_output, gradient, pred) for gradient in found]
        for gradient in found:
            self.kernels.scale_gradient_(grad_output, gradient)
        return found

    def _saves(self, needs_grad: list[bool], params: dict[str, Any]) -> bool:
        return any(needs_grad) and params["reduction"] != "none" and not self.recomputes

    @cached_property
    def _forward(self) -> Any:
        return getattr(self.kernels, f"{self.op}_native_forward")

    @cached_property
    def _backward(self) -> Any:
        return getattr(self.kernels, f"{self.op}_native_backward")


def _still_needed(saved: list[torch.Tensor], needs_grad: list[bool]) -> list[torch.Tensor]:
    """The saved gradients that backward asks for: forward saved one per flag that it was given, perhaps more."""
    return saved if len(saved) == 1 else only_needed(tuple(saved), needs_grad)

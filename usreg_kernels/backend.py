"""What a backend is: one implementation of one op, with the reasons why it cannot take a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

BackendName = Literal["reference", "cpu", "triton", "cuda"]
"""Every name that :func:`usreg_kernels.use_backend` and ``USREG_BACKEND`` take."""

BACKEND_NAMES: tuple[BackendName, ...] = get_args(BackendName)

Tensors = Sequence["torch.Tensor | None"]
Outputs = Any
"""What an op returns: a tensor, or a tuple of tensors where an op has several outputs."""


class Backend:
    """One implementation of one op; the operator (:mod:`usreg_kernels.ops.operator`) and the eager way call it.

    A subclass computes :meth:`forward` and :meth:`backward`, or :meth:`run` where the op works in place, and overrides
    of the rest what it needs.

    Attributes:
        name: one of :data:`BACKEND_NAMES`.
        overwrites_saved: whether :meth:`backward` takes ``may_overwrite``, and overwrites what was saved if it may.
    """

    name: BackendName
    overwrites_saved = False

    # Any arguments, so that a type checker lets each op name its own.

    def forward(self, *tensors: Any, **arguments: Any) -> tuple[Outputs, list[torch.Tensor]]:
        """``forward(*tensors, needs_grad, **params)``: the outputs, and what the backward pass wants back.

        What is saved are fresh tensors of the backend's own choosing.

        Args:
            tensors: the op's tensors; None for an optional one that is not there.
            needs_grad: a flag per differentiable tensor: backward will ask for no other gradient.
            params: the op's other arguments, checked.
        """
        raise NotImplementedError

    def backward(self, *tensors: Any, **arguments: Any) -> list[torch.Tensor]:
        """``backward(grad_output, saved, *tensors, needs_grad, **params)``: the gradients.

        One contiguous gradient per flag that is set, in its tensor's dtype.

        Args:
            grad_output: the gradient of the output, on its device; of each output, where an op has several.
            saved: what forward saved.
            tensors, params: as in :meth:`forward`.
            needs_grad: as in :meth:`forward`, or fewer of them.
            may_overwrite: False by default, and given only where :attr:`overwrites_saved` is set. True: nobody else
                will read ``saved``, which may be overwritten and returned as gradients.
        """
        raise NotImplementedError

    def run(self, *tensors: Any, **params: Any) -> None:
        """``run(*tensors, **params)``: of an op that works in place (:mod:`usreg_kernels.ops.inplace`), all there is.

        Args:
            tensors: the op's tensors, contiguous; some of them change.
            params: the op's other arguments, checked.
        """
        raise NotImplementedError

    def saved_like(self, *tensors: Any, **arguments: Any) -> list[torch.Tensor]:
        """``saved_like(*tensors, needs_grad, **params)``: uninitialised tensors like those that forward saves.

        Compiled graphs need their shapes and dtypes.
        """
        return []

    def missing(self) -> str | None:
        """Why the backend cannot run on this machine at all, and how to get it; None when it can."""
        return None

    def declines(self, *tensors: Any, **params: Any) -> str | None:
        """``declines(tensors, **params)``: why the backend cannot take this call; None when it can."""
        return None

    def why_not(self, tensors: Tensors, **params: Any) -> str | None:
        """The first reason against this call; None when the backend takes it."""
        reason = self.missing()
        return reason if reason is not None else self.declines(tensors, **params)

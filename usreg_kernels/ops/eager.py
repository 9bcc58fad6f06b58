"""The short way to a backend, for plain tensors while nothing but autograd looks on.

A registered operator costs a call some 150 microseconds, forward and backward: torch parses its schema, and walks
through its dispatch keys and a Python autograd formula. A compiler, an exporter, a dispatch mode or a tensor subclass
needs that. A training loop does not: :class:`Step` calls the same backend from a ``torch.autograd.Function``, which
costs a fifth. Both ways run the same two halves of a backend, so their results have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd import forward_ad

from usreg_kernels.backend import Backend

if TYPE_CHECKING:
    from usreg_kernels.ops.operator import Op

# Private to torch, whose public interface tells of none of these.
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_transforms: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_batched: Callable[[torch.Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def without_subclass(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same numbers, in the same autograd graph, as a plain tensor, where a subclass only adds Python to it.

    MONAI's ``MetaTensor`` is one. Subclasses that do not hold plain numbers (fake or distributed tensors, those of a
    compiler) are left as they are: the operator knows what to do with them.
    """
    if tensor is None or type(tensor) in _PLAIN or type(tensor).__torch_dispatch__ != torch.Tensor.__torch_dispatch__:
        return tensor
    return tensor.as_subclass(torch.Tensor)


def is_transformed(grad_output: torch.Tensor | None = None) -> bool:
    """Whether ``torch.func`` transforms a call, or forward-mode derivatives are computed, or many gradients at once.

    Each asks for derivatives that backends do not have. The reference is made of operations that torch can transform.

    Args:
        grad_output: the incoming gradient, in a backward pass.
    """
    if torch.compiler.is_compiling():
        return False
    if _function_transforms() or forward_ad._current_level >= 0:
        return True
    return grad_output is not None and _is_batched(grad_output)  # autograd.grad(..., is_grads_batched=True)


def nobody_looks_on(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a call with these tensors may go the short way: they hold numbers, and no tool follows the call."""
    if torch.compiler.is_compiling() or _dispatch_modes():
        return False
    for tensor in tensors:  # noqa: SIM110  # all() takes twice as long
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return False
    return True


class Call(NamedTuple):
    """What :class:`Step` runs.

    Attributes:
        op: the op.
        backend: the choice that was made for this call.
        params: the op's keyword arguments.
    """

    op: Op
    backend: Backend
    params: dict[str, Any]


def run(call: Call, tensors: Sequence[torch.Tensor | None]) -> Any:
    """The outputs of a call that may go the short way, one of whose tensors needs a gradient.

    ``Step.apply`` would first look for wrappers that a finished function transform left behind, which takes as long as
    the rest of it. :func:`nobody_looks_on` has let no wrapper through.
    """
    return super(torch.autograd.Function, Step).apply(call, *tensors)


class Step(torch.autograd.Function):
    """``Step.apply(call, *tensors)``: a backend's forward pass now, and its backward pass when autograd asks for it.

    A backend whose backward pass overwrites what was saved gets it once. Should another backward pass follow (after
    ``retain_graph=True``), forward runs again to make it.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: torch.Tensor | None) -> Any:
        """The outputs."""
        needs_grad = list(ctx.needs_input_grad[1 : 1 + len(call.op.tensors)])
        outputs, saved = call.backend.forward(*tensors, needs_grad=needs_grad, **call.params)
        ctx.call = call
        if call.backend.overwrites_saved:
            ctx.save_for_backward(*tensors)
            ctx.owned = saved
        else:
            ctx.save_for_backward(*tensors, *saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients that are needed."""
        op, backend, params = ctx.call
        flags, stored = ctx.needs_input_grad[1:], ctx.saved_tensors
        inputs = len(flags)
        tensors, saved = stored[:inputs], list(stored[inputs:])
        arguments = {**params, "needs_grad": list(flags[: len(op.tensors)])}
        grad_output = grads[0] if op.outputs == 1 else grads
        transformed = any(map(is_transformed, grads))
        if backend.overwrites_saved and not transformed:
            saved = ctx.owned
            if saved is None:
                with torch.no_grad():
                    saved = backend.forward(*tensors, **arguments)[1]
        if transformed:
            found = op.reference.backward(grad_output, *tensors, **arguments)
        elif torch.is_grad_enabled() or not nobody_looks_on(grads):  # recorded, for a second derivative
            found = op.backward_operator(*grads, saved, *tensors, **arguments, backend=backend.name)
        else:
            if backend.overwrites_saved:
                arguments["may_overwrite"] = True
                if saved:
                    ctx.owned = None
            found = backend.backward(grad_output, saved, *tensors, **arguments)
        gradients = iter(found)
        return (None, *(next(gradients) if flag else None for flag in flags))

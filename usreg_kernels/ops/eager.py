"""The short way to a backend, for plain tensors while nothing but autograd looks on.

A registered operator costs a call some 150 microseconds, forward and backward: torch parses its schema, and walks
through its dispatch keys and a Python autograd formula. A compiler, an exporter, a dispatch mode or a tensor subclass
needs that. A training loop does not: :class:`Step` calls the same backend from a ``torch.autograd.Function``, which
costs a fifth. Both ways run the same two halves of a backend, so their results have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from usreg_kernels.dispatch import Backend

# Private to torch: without one of them, every call takes the operator.
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_function_transforms: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def nobody_looks_on(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a call with these tensors may go the short way: they hold numbers, and no tool follows the call."""
    if torch.compiler.is_compiling() or _dispatch_modes() or _function_transforms():
        return False
    for tensor in tensors:  # noqa: SIM110  # all() takes twice as long
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return False
    return True


class Call(NamedTuple):
    """What :class:`Step` runs.

    Attributes:
        op: its name.
        backend: the choice that was made for this call.
        params: the op's keyword arguments.
        differentiable: how many tensors may need a gradient; a mask may follow them.
    """

    op: str
    backend: Backend
    params: dict[str, Any]
    differentiable: int


class Step(torch.autograd.Function):
    """``Step.apply(call, *tensors)``: a backend's forward pass now, and its backward pass when autograd asks for it.

    A backend whose backward pass overwrites what was saved gets it once. Should another backward pass follow (after
    ``retain_graph=True``), forward runs again to make it.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: torch.Tensor | None) -> torch.Tensor:
        """The loss."""
        needs_grad = list(ctx.needs_input_grad[1 : 1 + call.differentiable])
        loss, saved = call.backend.forward(*tensors, needs_grad=needs_grad, **call.params)
        ctx.call = call
        if call.backend.backward_in_place is None:
            ctx.save_for_backward(*tensors, *saved)
        else:
            ctx.save_for_backward(*tensors)
            ctx.owned = saved
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients that are needed."""
        call: Call = ctx.call
        backend, flags, stored = call.backend, ctx.needs_input_grad[1:], ctx.saved_tensors
        tensors, saved = stored[: len(flags)], list(stored[len(flags) :])
        arguments = {**call.params, "needs_grad": list(flags[: call.differentiable])}
        if backend.backward_in_place is not None:
            saved = ctx.owned
            if saved is None:
                with torch.no_grad():
                    saved = backend.forward(*tensors, **arguments)[1]
        if torch.is_grad_enabled() or not nobody_looks_on((grad_output,)):  # recorded, for a second derivative
            operator = getattr(torch.ops.usreg, f"{call.op}_backward").default
            found = operator(grad_output, saved, *tensors, **arguments, backend=backend.name)
        elif backend.backward_in_place is not None and saved:
            ctx.owned = None
            found = backend.backward_in_place(grad_output, saved, *tensors, **arguments)
        else:
            found = backend.backward(grad_output, saved, *tensors, **arguments)
        gradients = iter(found)
        return (None, *(next(gradients) if flag else None for flag in flags))

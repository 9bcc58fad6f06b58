"""The torch operators of an op: schema, fake, autograd and double backward, written once for every op.

An op is a pair of operators in the namespace ``usreg``::

    <op>(*tensors, *constants, *, <params>, bool[] needs_grad, str backend) -> (*outputs, Tensor[] saved)
    <op>_backward(*grad_outputs, Tensor[] saved, *tensors, *constants, *, <params>, ...) -> Tensor[] gradients

``tensors`` are the differentiable tensors, ``constants`` those that get no gradient, such as a mask. ``needs_grad`` has
a flag per differentiable tensor, so that forward computes no more than backward will ask for; ``saved`` is whatever the
backend wants back: a finished gradient, adjoint maps, or nothing. ``backend`` is the choice that
:func:`usreg_kernels.dispatch.select` made before the call: it travels with the call, so a compiled graph, its fake
tensors and the backward pass agree on it. Double backward differentiates the reference's backward formula.

Plain tensors take a shorter way to the same backend, without the operators (:mod:`usreg_kernels.ops.eager`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.backend import Backend, Outputs
from usreg_kernels.ops import eager

LIBRARY = torch.library.Library("usreg", "DEF")

Gradients = list["torch.Tensor | None"]


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a loss: float64 for float64 input, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the reference computes: float64 wherever the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def same_shape_like(first: torch.Tensor, *others: object, **params: object) -> torch.Tensor:
    """An uninitialised output of the shape of the first tensor, in the dtype of a loss."""
    return first.new_empty(first.shape, dtype=loss_dtype(first.dtype))


class ReferenceBackend(Backend):
    """The plain PyTorch formulas of an op's ``reference.py``: on any device, and the oracle of every other backend."""

    name = "reference"

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def forward(self, *tensors: Any, needs_grad: list[bool], **params: Any) -> tuple[Outputs, list[torch.Tensor]]:
        """Nothing is saved."""
        return self.module.forward(*tensors, **params), []

    def backward(self, grad_output: Any, saved: list[torch.Tensor], *tensors: Any, **params: Any) -> list[torch.Tensor]:
        """The exact gradients, by their formula."""
        return [gradient.contiguous() for gradient in self.module.backward(grad_output, *tensors, **params)]


@dataclass(frozen=True)
class Op:
    """One op of the package; calling it chooses a backend and runs it.

    Attributes:
        name: the operator's name in the namespace ``usreg``.
        tensors: the differentiable tensors, as a schema writes them: ``"Tensor pred"``, ``"Tensor? ddf"``.
        params: the keyword-only part of the schema.
        outputs_like: ``outputs_like(*tensors, *constants, **params)``, an uninitialised tensor with the shape and dtype
            of the output, or a tuple of them for several outputs.
        reference: module with ``forward(*tensors, *constants, **params) -> outputs`` and
            ``backward(grad_output, *tensors, *constants, needs_grad, **params) -> gradients``, in plain PyTorch that
            torch can differentiate; ``grad_output`` is a tuple where there are several outputs.
        backends: the others.
        constants: the tensors that get no gradient, as a schema writes them.
        outputs: how many outputs there are.
    """

    name: str
    tensors: tuple[str, ...]
    params: str
    outputs_like: Callable[..., Outputs]
    reference: ModuleType
    backends: Sequence[Backend]
    constants: tuple[str, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        arguments = ", ".join((*self.tensors, *self.constants))
        keywords = f"{self.params}, bool[] needs_grad, str backend"
        outputs = "Tensor, " * self.outputs
        grads = "".join(f"Tensor grad_output_{i}, " for i in range(self.outputs))
        tags = (torch.Tag.pt2_compliant_tag,)
        LIBRARY.define(f"{self.name}({arguments}, *, {keywords}) -> ({outputs}Tensor[])", tags=tags)
        LIBRARY.define(
            f"{self.name}_backward({grads}Tensor[] saved, {arguments}, *, {keywords}) -> Tensor[]", tags=tags
        )
        self._implement()
        self._fake()
        self._autograd()
        for backend in (ReferenceBackend(self.reference), *self.backends):
            dispatch.register_backend(self.name, backend)

    def __call__(self, *tensors: torch.Tensor | None, **params: Any) -> Any:
        """The outputs for checked arguments (:mod:`usreg_kernels.functional`).

        Args:
            tensors: the differentiable tensors, then the constants.
            params: the rest of the schema's arguments, except those that every operator has.

        Raises:
            Explained: the call is one of ``explain``.
            BackendError: the explicitly chosen backend cannot take it.
        """
        tensors = tuple(eager.without_subclass(tensor) for tensor in tensors)
        if dispatch.is_explaining():
            raise dispatch.Explained(dispatch.explain_call(self.name, tensors, params))
        name = dispatch.select(self.name, tensors, params)
        if eager.is_transformed():
            return self.reference.forward(*tensors, **params)
        grad_mode = torch.is_grad_enabled()
        needs_grad = [
            grad_mode and tensor is not None and tensor.requires_grad for tensor in tensors[: len(self.tensors)]
        ]
        if not eager.nobody_looks_on(tensors):
            found = self.operator(*tensors, **params, needs_grad=needs_grad, backend=name)
            return found[0] if self.outputs == 1 else found[:-1]
        dispatch.warn_if_slow(self.name, name, tensors)
        backend = dispatch.get_backend(self.name, name)
        if any(needs_grad):
            return eager.run(eager.Call(self, backend, params), tensors)
        return backend.forward(*tensors, needs_grad=needs_grad, **params)[0]

    @property
    def operator(self) -> Any:
        """The registered operator."""
        return getattr(torch.ops.usreg, self.name).default

    @property
    def backward_operator(self) -> Any:
        """The registered operator of the backward pass."""
        return getattr(torch.ops.usreg, f"{self.name}_backward").default

    def _as_tuple(self, outputs: Outputs) -> tuple[torch.Tensor, ...]:
        return (outputs,) if self.outputs == 1 else tuple(outputs)

    def _split(self, arguments: Sequence[Any]) -> tuple[Any, Any, Sequence[Any]]:
        """Split the backward operator's arguments: incoming gradients, for backends; what was saved; the tensors."""
        grads, (saved, *tensors) = arguments[: self.outputs], arguments[self.outputs :]
        return grads[0] if self.outputs == 1 else tuple(grads), saved, tensors

    def _implement(self) -> None:
        def forward(*tensors: Any, backend: str, **params: Any) -> tuple[Any, ...]:
            dispatch.warn_if_slow(self.name, backend, tensors)
            outputs, saved = dispatch.get_backend(self.name, backend).forward(*tensors, **params)
            return (*self._as_tuple(outputs), saved)

        def backward(*arguments: Any, backend: str, **params: Any) -> list[torch.Tensor]:
            grad_output, saved, tensors = self._split(arguments)
            return dispatch.get_backend(self.name, backend).backward(grad_output, saved, *tensors, **params)

        LIBRARY.impl(self.name, forward, "CompositeExplicitAutograd")
        LIBRARY.impl(f"{self.name}_backward", backward, "CompositeExplicitAutograd")

    def _fake(self) -> None:
        def forward(*tensors: Any, backend: str, needs_grad: list[bool], **params: Any) -> tuple[Any, ...]:
            outputs = self._as_tuple(self.outputs_like(*tensors, **params))
            saved_like = dispatch.get_backend(self.name, backend).saved_like
            return (*outputs, saved_like(*tensors, needs_grad=needs_grad, **params))

        def backward(*arguments: Any, needs_grad: list[bool], **params: Any) -> list[torch.Tensor]:
            _, _, tensors = self._split(arguments)
            return [t.new_empty(t.shape) for t, needed in zip(tensors, needs_grad, strict=False) if needed]

        torch.library.register_fake(f"usreg::{self.name}", forward, lib=LIBRARY)
        torch.library.register_fake(f"usreg::{self.name}_backward", backward, lib=LIBRARY)

    def _autograd(self) -> None:
        count, constants = len(self.tensors), [None] * len(self.constants)

        def setup(ctx: Any, inputs: Any, keyword_only_inputs: dict[str, Any], output: Any) -> None:
            ctx.set_materialize_grads(False)
            ctx.params = keyword_only_inputs
            ctx.outputs = [(o.shape, o.dtype, o.device) for o in output[:-1]]
            ctx.save_for_backward(*inputs, *output[-1])

        def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
            grad_outputs = grads[:-1]
            if all(grad is None for grad in grad_outputs):
                return (*[None] * count, *constants)
            filled = [
                torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
                for grad, (shape, dtype, device) in zip(grad_outputs, ctx.outputs, strict=True)
            ]
            stored = ctx.saved_tensors
            tensors, saved = stored[: count + len(constants)], stored[count + len(constants) :]
            needs_grad = list(ctx.needs_input_grad[:count])
            params = {**ctx.params, "needs_grad": needs_grad}
            if any(map(eager.is_transformed, filled)):
                del params["backend"]
                found = self.reference.backward(self._split([*filled, saved])[0], *tensors, **params)
            else:
                found = self.backward_operator(*filled, saved, *tensors, **params)
            gradients = iter(found)
            return (*(next(gradients) if needed else None for needed in needs_grad), *constants)

        def setup_double(ctx: Any, inputs: Any, keyword_only_inputs: dict[str, Any], output: Any) -> None:
            ctx.set_materialize_grads(False)
            ctx.params, ctx.saved_count = keyword_only_inputs, len(inputs[self.outputs])
            ctx.save_for_backward(*inputs[: self.outputs], *inputs[self.outputs + 1 :])

        def double_backward(ctx: Any, grads: Gradients) -> tuple[Any, ...]:
            found = self._differentiate_backward(ctx.saved_tensors, ctx.params, grads)
            return (*found[: self.outputs], [None] * ctx.saved_count, *found[self.outputs :])

        name = f"usreg::{self.name}"
        torch.library.register_autograd(name, backward, setup_context=setup, lib=LIBRARY)
        torch.library.register_autograd(f"{name}_backward", double_backward, setup_context=setup_double, lib=LIBRARY)

    def _differentiate_backward(
        self, inputs: tuple[torch.Tensor | None, ...], params: dict[str, Any], grads: Gradients
    ) -> Gradients:
        """The gradients of <grads, reference.backward(...)> to the incoming gradients and the tensors."""
        result: Gradients = [None] * len(inputs)
        params = {key: value for key, value in params.items() if key != "backend"}
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that a tensor computed from another one counts as an input of its own.
            views = [t.view_as(t) if t is not None else None for t in inputs]
            grad_output, _, tensors = self._split([*views[: self.outputs], [], *views[self.outputs :]])
            outputs = self.reference.backward(grad_output, *tensors, **params)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            wanted = {i: view for i, view in enumerate(views) if view is not None and view.requires_grad}
            if pairs and wanted:
                found = torch.autograd.grad(
                    [output for output, _ in pairs],
                    list(wanted.values()),
                    [grad for _, grad in pairs],
                    allow_unused=True,
                    create_graph=create_graph,
                )
                for i, gradient in zip(wanted, found, strict=True):
                    result[i] = gradient
        return result

"""The contract that every op shares: schema, fake, autograd and double backward, written once.

An op is a pair of torch operators in the namespace ``usreg``::

    <op>(*tensors, *, <params>, bool[] needs_grad, str backend) -> (Tensor loss, Tensor[] saved)
    <op>_backward(Tensor grad_output, Tensor[] saved, *tensors, *, <params>, bool[] needs_grad, str backend) -> Tensor[]

``tensors`` are the differentiable tensors, then (where the op has one) the optional mask, which gets no gradient.
``needs_grad`` has a flag per differentiable tensor, so that forward computes no more than backward will ask for;
``saved`` is whatever the backend wants back: a finished gradient, adjoint maps, or nothing. ``backend`` is the choice
that :func:`usreg_kernels.dispatch.select` made before the call: it travels with the call, so a compiled graph, its
fake tensors and the backward pass agree on it. Double backward differentiates the reference's backward formula.

Plain tensors take a shorter way to the same backend, without the operator (:mod:`usreg_kernels.ops.eager`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from usreg_kernels import dispatch
from usreg_kernels.ops import eager

LIBRARY = torch.library.Library("usreg", "DEF")

Params = dict[str, Any]


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a loss: float64 for float64 input, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which the reference computes: float64 wherever the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Op:
    """One op of the package.

    Attributes:
        name: the operator's name in the namespace ``usreg``.
        tensors: the names of the differentiable tensors.
        params: the keyword-only part of the schema, as text.
        loss_shape: ``loss_shape(*tensors, **params)``, the shape of the loss.
        reference: module with ``forward(*tensors, **params) -> loss`` and
            ``backward(grad_output, *tensors, needs_grad, **params) -> gradients``, in plain differentiable PyTorch.
        has_mask: whether an optional mask follows the tensors.
    """

    name: str
    tensors: tuple[str, ...]
    params: str
    loss_shape: Callable[..., tuple[int, ...]]
    reference: ModuleType
    has_mask: bool = False

    def __post_init__(self) -> None:
        arguments = [f"Tensor {name}" for name in self.tensors] + ["Tensor? mask"] * self.has_mask
        keywords = f"{self.params}, bool[] needs_grad, str backend"
        LIBRARY.define(
            f"{self.name}({', '.join(arguments)}, *, {keywords}) -> (Tensor, Tensor[])",
            tags=(torch.Tag.pt2_compliant_tag,),
        )
        arguments = ["Tensor grad_output", "Tensor[] saved", *arguments]
        LIBRARY.define(
            f"{self.name}_backward({', '.join(arguments)}, *, {keywords}) -> Tensor[]",
            tags=(torch.Tag.pt2_compliant_tag,),
        )
        self._implement()
        self._fake()
        self._autograd()
        dispatch.register_backend(self.name, self._reference_backend())

    def __call__(self, tensors: tuple[torch.Tensor, ...], mask: torch.Tensor | None, params: Params) -> torch.Tensor:
        """Choose the backend and run; ``params`` are checked already (:mod:`usreg_kernels.functional`)."""
        arguments = tuple(eager.without_subclass(tensor) for tensor in self.arguments(tensors, mask))
        name = dispatch.select(self.name, arguments, params)
        if eager.is_transformed():
            return self.reference.forward(*arguments, **params)
        grad_mode = torch.is_grad_enabled()
        needs_grad = [grad_mode and tensor.requires_grad for tensor in tensors]
        if not eager.nobody_looks_on(arguments):
            operator = getattr(torch.ops.usreg, self.name).default
            return operator(*arguments, **params, needs_grad=needs_grad, backend=name)[0]
        dispatch.warn_if_slow(self.name, name, tensors[0].device)
        backend = dispatch.get_backend(self.name, name)
        if any(needs_grad):
            call = eager.Call(self.name, self.reference, backend, params, len(tensors))
            return eager.Step.apply(call, *arguments)
        return backend.forward(*arguments, needs_grad=needs_grad, **params)[0]

    def arguments(
        self, tensors: tuple[torch.Tensor, ...], mask: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The positional arguments of the operator."""
        return (*tensors, mask) if self.has_mask else tensors

    def _reference_backend(self) -> dispatch.Backend:
        def forward(*tensors: Any, needs_grad: list[bool], **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return self.reference.forward(*tensors, **params), []

        def backward(grad_output: torch.Tensor, saved: Any, *tensors: Any, **params: Any) -> list[torch.Tensor]:
            return [gradient.contiguous() for gradient in self.reference.backward(grad_output, *tensors, **params)]

        return dispatch.Backend("reference", forward, backward)

    def _implement(self) -> None:
        def forward(*tensors: Any, backend: str, **params: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
            dispatch.warn_if_slow(self.name, backend, tensors[0].device)
            return dispatch.get_backend(self.name, backend).forward(*tensors, **params)

        def backward(*arguments: Any, backend: str, **params: Any) -> list[torch.Tensor]:
            return dispatch.get_backend(self.name, backend).backward(*arguments, **params)

        LIBRARY.impl(self.name, forward, "CompositeExplicitAutograd")
        LIBRARY.impl(f"{self.name}_backward", backward, "CompositeExplicitAutograd")

    def _fake(self) -> None:
        def forward(
            *tensors: Any, backend: str, needs_grad: list[bool], **params: Any
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            loss = tensors[0].new_empty(self.loss_shape(*tensors, **params), dtype=loss_dtype(tensors[0].dtype))
            saved_like = dispatch.get_backend(self.name, backend).saved_like
            return loss, saved_like(*tensors, needs_grad=needs_grad, **params)

        def backward(
            grad_output: Any, saved: Any, *tensors: Any, needs_grad: list[bool], **params: Any
        ) -> list[torch.Tensor]:
            return [t.new_empty(t.shape) for t, needed in zip(tensors, needs_grad, strict=False) if needed]

        torch.library.register_fake(f"usreg::{self.name}", forward, lib=LIBRARY)
        torch.library.register_fake(f"usreg::{self.name}_backward", backward, lib=LIBRARY)

    def _autograd(self) -> None:
        count = len(self.tensors)
        nothing = [None] * (count + self.has_mask)

        def setup(ctx: Any, inputs: Any, keyword_only_inputs: Params, output: Any) -> None:
            ctx.set_materialize_grads(False)
            ctx.params = keyword_only_inputs
            ctx.save_for_backward(*inputs, *output[1])

        def backward(ctx: Any, grad_output: torch.Tensor | None, grad_saved: Any) -> tuple[torch.Tensor | None, ...]:
            if grad_output is None:
                return tuple(nothing)
            stored = ctx.saved_tensors
            tensors, saved = stored[: len(nothing)], stored[len(nothing) :]
            needs_grad = list(ctx.needs_input_grad[:count])
            params = {**ctx.params, "needs_grad": needs_grad}
            if eager.is_transformed(grad_output):
                del params["backend"]
                found = self.reference.backward(grad_output, *tensors, **params)
            else:
                found = getattr(torch.ops.usreg, f"{self.name}_backward").default(
                    grad_output, saved, *tensors, **params
                )
            gradients = iter(found)
            return (*(next(gradients) if needed else None for needed in needs_grad), *nothing[count:])

        def setup_double(ctx: Any, inputs: Any, keyword_only_inputs: Params, output: Any) -> None:
            grad_output, saved, *tensors = inputs
            ctx.set_materialize_grads(False)
            ctx.params, ctx.saved_count = keyword_only_inputs, len(saved)
            ctx.save_for_backward(grad_output, *tensors)

        def double_backward(ctx: Any, grads: list[torch.Tensor | None]) -> tuple[Any, ...]:
            first, *rest = self._differentiate_backward(ctx.saved_tensors, ctx.params, grads)
            return (first, [None] * ctx.saved_count, *rest)

        name = f"usreg::{self.name}"
        torch.library.register_autograd(name, backward, setup_context=setup, lib=LIBRARY)
        torch.library.register_autograd(f"{name}_backward", double_backward, setup_context=setup_double, lib=LIBRARY)

    def _differentiate_backward(
        self, inputs: tuple[torch.Tensor | None, ...], params: Params, grads: list[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The gradients, with respect to ``grad_output`` and the tensors, of <grads, reference.backward(...)>."""
        result: list[torch.Tensor | None] = [None] * len(inputs)
        params = {key: value for key, value in params.items() if key != "backend"}
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that a tensor computed from another one counts as an input of its own.
            views = [t.view_as(t) if t is not None else None for t in inputs]
            outputs = self.reference.backward(*views, **params)
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

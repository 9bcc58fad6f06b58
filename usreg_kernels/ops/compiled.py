"""What the compiled backends of all ops share: C++ on CPUs, CUDA C++ on NVIDIA GPUs, each from a library of its own."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch

from usreg_kernels import library
from usreg_kernels.backend import Backend, Tensors
from usreg_kernels.ops.operator import LIBRARY

REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}
"""The codes of ``enum class Reduction`` in ``csrc/common``."""


class CompiledBackend(Backend):
    """A backend whose kernels are torch operators of one of our libraries.

    Attributes:
        name: of the backend, which is that of its library and of torch's device.
        kernels: the namespace of ``torch.ops`` that holds the library's operators.
        device_type: of the tensors that it takes.
    """

    kernels: Any = torch.ops.usreg
    device_type: str

    def __init__(self, name: Literal["cpu", "cuda"]) -> None:
        self.name = name
        self.device_type = name

    def missing(self) -> str | None:
        """Whether the library is loaded."""
        return library.reason(self.name)

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """It takes every call on its device."""
        device = tensors[0].device  # type: ignore[union-attr]
        if device.type == self.device_type:
            return None
        return f"it runs on {self.device_type} tensors, and these are on {device}"


class StatelessBackend(CompiledBackend):
    """A backend whose forward saves nothing: backward reads the inputs once more.

    A subclass turns an op's parameters into the arguments of the two operators that :func:`define_stateless` declares.

    Attributes:
        op: the op's name.
    """

    op: str

    def arguments(self, *tensors: Any, **params: Any) -> tuple[Any, ...]:
        """The operators' arguments that are no tensors."""
        raise NotImplementedError

    def forward(
        self, *tensors: torch.Tensor | None, needs_grad: list[bool], **params: Any
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The output."""
        return self._forward(*tensors, *self.arguments(*tensors, **params)), []

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        *tensors: torch.Tensor | None,
        needs_grad: list[bool],
        **params: Any,
    ) -> list[torch.Tensor]:
        """The gradients that are needed."""
        if not any(needs_grad):
            return []
        arguments = self.arguments(*tensors, **params)
        if len(tensors) == 1:
            return [self._backward(grad_output, *tensors, *arguments)]
        return only_needed(self._backward(grad_output, *tensors, *arguments, *needs_grad), needs_grad)

    @cached_property
    def _forward(self) -> Any:
        return getattr(self.kernels, f"{self.op}_native_forward")

    @cached_property
    def _backward(self) -> Any:
        return getattr(self.kernels, f"{self.op}_native_backward")


def define_stateless(op: str, inputs: str) -> None:
    """Declare the operators of a :class:`StatelessBackend`, which both libraries implement.

    ``<op>_native_forward(inputs)`` returns the output, ``<op>_native_backward(grad_output, inputs)`` the gradient of
    the one tensor. With several tensors, a flag for each follows, which says whether its gradient is needed, and the
    operator returns a gradient or None for each.

    Args:
        op: the op's name.
        inputs: its tensors, and the arguments that follow them, as a schema has them.
    """
    tensors = [entry.split()[1] for entry in inputs.split(", ") if entry.startswith("Tensor")]
    flags = "".join(f", bool {name}_grad" for name in tensors) if len(tensors) > 1 else ""
    gradients = f"({', '.join(['Tensor?'] * len(tensors))})" if flags else "Tensor"
    LIBRARY.define(f"{op}_native_forward({inputs}) -> Tensor")
    LIBRARY.define(f"{op}_native_backward(Tensor grad_output, {inputs}{flags}) -> {gradients}")


def only_needed(gradients: tuple[torch.Tensor | None, ...], needs_grad: list[bool]) -> list[torch.Tensor]:
    """The gradients that were asked for; a library returns None for the others."""
    return [gradient for gradient, needed in zip(gradients, needs_grad, strict=True) if needed and gradient is not None]

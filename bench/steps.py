"""Runs of a loss: one forward pass and, where an input needs a gradient, the backward pass; and what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

import usreg_kernels as uk
from bench.cases import Loss
from bench.outcomes import Error


class Oracle(NamedTuple):
    """What is right, in float64.

    Attributes:
        loss: the loss.
        gradient: the first input's gradient; None without one.
        is_defined: where it counts; None for everywhere. See :mod:`bench.ties`.
    """

    loss: torch.Tensor
    gradient: torch.Tensor | None
    is_defined: torch.Tensor | None = None


def step(loss: Loss, *inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One forward pass and, where an input needs a gradient, the backward pass."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def run() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*inputs)
        if leaves:
            value.backward()
        return value

    return run


def graph_step(loss: Loss, *inputs: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    """As :func:`step`, without writing to the inputs, for a CUDA graph: the loss and the gradients."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def run() -> list[torch.Tensor]:
        value = loss(*inputs)
        gradients = torch.autograd.grad(value, leaves) if leaves else ()
        return [value.detach(), *gradients]

    return run


def reference(function: Loss, inputs: Sequence[torch.Tensor], **arguments: object) -> Oracle:
    """What the float64 reference makes of the inputs."""
    oracle = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    with uk.use_backend("reference"):
        value = step(lambda *tensors: function(*tensors, **arguments), *oracle)()
    return Oracle(value.detach(), oracle[0].grad)


def error_of(value: torch.Tensor, gradient: torch.Tensor | None, oracle: Oracle) -> Error:
    """How far a loss and the first input's gradient lie from the reference's."""
    expected, wanted, is_defined = oracle
    loss = _relative((value.detach().double() - expected).abs(), expected.abs())
    if wanted is None or gradient is None:
        return Error(loss, None if wanted is None else float("inf"))
    difference = gradient.double() - wanted
    if is_defined is not None:
        difference, wanted = difference[is_defined], wanted[is_defined]
    return Error(loss, _relative(difference.norm(), wanted.norm()))


def _relative(difference: torch.Tensor, size: torch.Tensor) -> float:
    """0 where nothing differs, also of nothing: a field without folds has a folding loss and a gradient of 0."""
    return 0.0 if difference.item() == 0 else (difference / size).item()

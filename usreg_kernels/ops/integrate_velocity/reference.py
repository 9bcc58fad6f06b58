"""Scaling and squaring in plain PyTorch: the oracle of every other backend.

The field of a short time is ``velocity / 2^steps``. Composed with itself, a field is that of twice the time.
"""

from __future__ import annotations

import torch

from usreg_kernels.ops.compose_ddf import reference as compose
from usreg_kernels.ops.operator import compute_dtype, loss_dtype


def forward(velocity: torch.Tensor, *, steps: int, padding_mode: str) -> torch.Tensor:
    """The displacement after one unit of time."""
    return _fields(velocity, steps, padding_mode)[-1].to(loss_dtype(velocity.dtype))


def backward(
    grad_output: torch.Tensor, velocity: torch.Tensor, *, needs_grad: list[bool], steps: int, padding_mode: str
) -> list[torch.Tensor]:
    """The gradient goes back through the squarings, each of which reads its field twice."""
    if not any(needs_grad):
        return []
    grad = grad_output.to(compute_dtype(velocity))
    for field in reversed(_fields(velocity, steps, padding_mode)[:-1]):
        to_outer, to_inner = compose.backward(grad, field, field, needs_grad=[True, True], padding_mode=padding_mode)
        grad = to_outer + to_inner
    return [(grad * 0.5**steps).to(velocity.dtype)]


def _fields(velocity: torch.Tensor, steps: int, padding_mode: str) -> list[torch.Tensor]:
    """The fields of 2^-steps, ..., 1/2, 1 units of time."""
    fields = [velocity.to(compute_dtype(velocity)) * 0.5**steps]
    for _ in range(steps):
        fields.append(compose.forward(fields[-1], fields[-1], padding_mode=padding_mode))
    return fields

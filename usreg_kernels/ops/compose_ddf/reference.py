"""Composition of two displacement fields in plain PyTorch: the oracle of every other backend."""

from __future__ import annotations

import torch

from usreg_kernels.ops.operator import compute_dtype, loss_dtype
from usreg_kernels.ops.warp import reference as warp


def forward(outer: torch.Tensor, inner: torch.Tensor, *, padding_mode: str) -> torch.Tensor:
    """``inner(x) + outer(x + inner(x))``."""
    dtype, size = compute_dtype(inner), list(inner.shape[2:])
    pulled = warp.forward(outer.to(dtype), inner.to(dtype), None, size=size, mode="bilinear", padding_mode=padding_mode)
    return (inner.to(dtype) + pulled).to(loss_dtype(inner.dtype))


def backward(
    grad_output: torch.Tensor, outer: torch.Tensor, inner: torch.Tensor, *, needs_grad: list[bool], padding_mode: str
) -> list[torch.Tensor]:
    """The warp's gradients to its image and its field; the latter plus the incoming gradient."""
    dtype, size = compute_dtype(inner), list(inner.shape[2:])
    grad = grad_output.to(dtype)
    found = warp.backward(
        grad,
        outer.to(dtype),
        inner.to(dtype),
        None,
        needs_grad=[*needs_grad, False],
        size=size,
        mode="bilinear",
        padding_mode=padding_mode,
    )
    if needs_grad[1]:
        found[-1] = found[-1] + grad
    return [gradient.to(inner.dtype) for gradient in found]

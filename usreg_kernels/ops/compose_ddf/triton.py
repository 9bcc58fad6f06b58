"""Composition in Triton: the kernels of warp with a channel per component, which add the field in the same pass."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.warp.triton import Call, gradients, make_call, values


def _call(outer: torch.Tensor, inner: torch.Tensor, padding_mode: str) -> Call:
    return make_call(outer, inner, None, list(inner.shape[2:]), "bilinear", padding_mode, composes=True)


def forward(
    outer: torch.Tensor, inner: torch.Tensor, *, needs_grad: list[bool], padding_mode: str, **_: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The composed field; nothing is saved."""
    return values(_call(outer, inner, padding_mode)), []


def backward(
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    outer: torch.Tensor,
    inner: torch.Tensor,
    *,
    needs_grad: list[bool],
    padding_mode: str,
) -> list[torch.Tensor]:
    """Either gradient or both."""
    return gradients(_call(outer, inner, padding_mode), grad_output, [*needs_grad, False])

"""The compiled gradient smoothness: C++ on CPUs (``csrc/cpu/field_losses.cpp``), CUDA C++ on GPUs.

The kernels of both read ``csrc/common/field_terms.h``. Nothing is saved for backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.contract import LIBRARY
from usreg_kernels.ops.gradient_smoothness.reference import axis_scale
from usreg_kernels.ops.native import REDUCTION_CODES, register

_PARAMS = "bool magnitude, bool central, float[] scales, int reduction"
LIBRARY.define(f"gradient_smoothness_native_forward(Tensor dvf, {_PARAMS}) -> Tensor")
LIBRARY.define(f"gradient_smoothness_native_backward(Tensor grad_output, Tensor dvf, {_PARAMS}) -> Tensor")


def _arguments(
    dvf: torch.Tensor, penalty: str, scheme: str, spacing: list[float] | None, normalize: bool, reduction: str
) -> tuple[Any, ...]:
    """The operators' arguments that are no tensors; the scales are (components, axes)."""
    by_axis = [axis_scale(dvf.shape, axis, spacing, normalize) for axis in range(2, dvf.ndim)]
    scales = [scale for component in zip(*by_axis, strict=True) for scale in component]
    return penalty == "l1", scheme == "central", scales, REDUCTION_CODES[reduction]


def forward(
    kernels: Any, dvf: torch.Tensor, *, needs_grad: list[bool], **params: Any
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss."""
    return kernels.gradient_smoothness_native_forward(dvf, *_arguments(dvf, **params)), []


def backward(
    kernels: Any,
    grad_output: torch.Tensor,
    saved: list[torch.Tensor],
    dvf: torch.Tensor,
    *,
    needs_grad: list[bool],
    **params: Any,
) -> list[torch.Tensor]:
    """The gradient, from the field anew."""
    if not needs_grad[0]:
        return []
    arguments = _arguments(dvf, **params)
    return [kernels.gradient_smoothness_native_backward(grad_output, dvf, *arguments)]


register("gradient_smoothness", forward, backward)

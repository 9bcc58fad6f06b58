"""The compiled composition: C++ on CPUs (``csrc/cpu/warp``), CUDA C++ on GPUs (``csrc/cuda/warp``).

It is a warp of ``outer`` by ``inner`` to which ``inner`` is added, in the same pass.
"""

from __future__ import annotations

import torch

from usreg_kernels.ops.compiled import CompiledBackend, only_needed
from usreg_kernels.ops.operator import LIBRARY
from usreg_kernels.ops.warp.native import PADDING_CODES

# outer and inner (B, n, spatial...) have one dtype; the result and its gradient are float64 where that is float64, else
# float32.
LIBRARY.define("compose_ddf_native_forward(Tensor outer, Tensor inner, int padding_mode) -> Tensor")
LIBRARY.define(
    "compose_ddf_native_backward(Tensor grad_output, Tensor outer, Tensor inner, int padding_mode, "
    "bool outer_grad, bool inner_grad) -> (Tensor?, Tensor?)"
)


class Native(CompiledBackend):
    """One pass for the values, one for the gradient of ``inner``, one for that of ``outer``."""

    def forward(
        self, outer: torch.Tensor, inner: torch.Tensor, *, needs_grad: list[bool], padding_mode: str
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The composed field; nothing is saved."""
        return self.kernels.compose_ddf_native_forward(outer, inner, PADDING_CODES[padding_mode]), []

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        *tensors: torch.Tensor,
        needs_grad: list[bool],
        padding_mode: str,
    ) -> list[torch.Tensor]:
        """Either gradient or both."""
        gradients = self.kernels.compose_ddf_native_backward(
            grad_output, *tensors, PADDING_CODES[padding_mode], *needs_grad
        )
        return only_needed(gradients, needs_grad)

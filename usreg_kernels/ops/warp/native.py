"""The compiled warp: C++ on CPUs (``csrc/cpu/warp``), CUDA C++ on GPUs (``csrc/cuda/warp``).

Nothing is saved for backward: a coordinate is a few operations on the displacement, which cost less than to write it in
forward and to read it in backward.
"""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.compiled import CompiledBackend, only_needed
from usreg_kernels.ops.operator import LIBRARY

INTERPOLATION_CODES = {"bilinear": 0, "nearest": 1}
"""The codes of ``enum class Interpolation`` in ``csrc/common``."""

PADDING_CODES = {"border": 0, "zeros": 1, "reflection": 2}
"""The codes of ``enum class Padding`` in ``csrc/common``."""

# image (B, C, spatial...) and ddf (B, n, size...) have one dtype; affine (B, n, n + 1), the output and its gradient
# (B, C, size...) are float64 where that is float64, else float32.
LIBRARY.define(
    "warp_native_forward(Tensor image, Tensor? ddf, Tensor? affine, int[] size, int mode, int padding_mode) -> Tensor"
)
LIBRARY.define(
    "warp_native_backward(Tensor grad_output, Tensor image, Tensor? ddf, Tensor? affine, int[] size, int mode, "
    "int padding_mode, bool image_grad, bool ddf_grad, bool affine_grad) -> (Tensor?, Tensor?, Tensor?)"
)


class Native(CompiledBackend):
    """One pass over the output for its values, one for the gradients of field and affine, one for that of the image."""

    def forward(
        self,
        image: torch.Tensor,
        ddf: torch.Tensor | None,
        affine: torch.Tensor | None,
        *,
        needs_grad: list[bool],
        size: list[int],
        mode: str,
        padding_mode: str,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The warped image; nothing is saved."""
        codes = INTERPOLATION_CODES[mode], PADDING_CODES[padding_mode]
        return self.kernels.warp_native_forward(image, ddf, affine, size, *codes), []

    def backward(
        self,
        grad_output: torch.Tensor,
        saved: list[torch.Tensor],
        *tensors: torch.Tensor | None,
        needs_grad: list[bool],
        size: list[int],
        mode: str,
        padding_mode: str,
    ) -> list[torch.Tensor]:
        """The gradients to the image, the field and the affine, of those that are needed."""
        codes = INTERPOLATION_CODES[mode], PADDING_CODES[padding_mode]
        gradients: tuple[Any, ...] = self.kernels.warp_native_backward(grad_output, *tensors, size, *codes, *needs_grad)
        return only_needed(gradients, needs_grad)

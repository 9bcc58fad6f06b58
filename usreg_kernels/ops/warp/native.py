"""The compiled warp: C++ on CPUs (``csrc/cpu/warp``), CUDA C++ on GPUs (``csrc/cuda/warp``).

Nothing is saved for backward: a coordinate is a few operations on the displacement, which cost less than to write it in
forward and to read it in backward.
"""

from __future__ import annotations

from typing import Any

from usreg_kernels.ops.compiled import StatelessBackend, define_stateless

INTERPOLATION_CODES = {"bilinear": 0, "nearest": 1}
"""The codes of ``enum class Interpolation`` in ``csrc/common``."""

PADDING_CODES = {"border": 0, "zeros": 1, "reflection": 2}
"""The codes of ``enum class Padding`` in ``csrc/common``."""

# image (B, C, spatial...) and ddf (B, n, size...) have one dtype; affine (B, n, n + 1), the output and its gradient
# (B, C, size...) are float64 where that is float64, else float32.
define_stateless("warp", "Tensor image, Tensor? ddf, Tensor? affine, int[] size, int mode, int padding_mode")


class Native(StatelessBackend):
    """One pass over the output for its values, one for the gradients of field and affine, one for that of the image."""

    op = "warp"

    def arguments(self, *tensors: Any, size: list[int], mode: str, padding_mode: str) -> tuple[Any, ...]:
        """The output's size, and the codes of interpolation and padding."""
        return size, INTERPOLATION_CODES[mode], PADDING_CODES[padding_mode]

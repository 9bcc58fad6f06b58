"""The compiled composition: C++ on CPUs (``csrc/cpu/warp``), CUDA C++ on GPUs (``csrc/cuda/warp``).

It is a warp of ``outer`` by ``inner`` to which ``inner`` is added, in the same pass.
"""

from __future__ import annotations

from typing import Any

from usreg_kernels.ops.compiled import StatelessBackend, define_stateless
from usreg_kernels.ops.warp.native import PADDING_CODES

# outer and inner (B, n, spatial...) have one dtype; the result and its gradient are float64 where that is float64, else
# float32.
define_stateless("compose_ddf", "Tensor outer, Tensor inner, int padding_mode")


class Native(StatelessBackend):
    """One pass for the values, one for the gradient of ``inner``, one for that of ``outer``."""

    op = "compose_ddf"

    def arguments(self, *tensors: Any, padding_mode: str) -> tuple[Any, ...]:
        """The padding."""
        return (PADDING_CODES[padding_mode],)

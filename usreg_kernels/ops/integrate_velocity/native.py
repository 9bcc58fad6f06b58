"""The compiled integration: C++ on CPUs (``csrc/cpu/warp``), by the kernels of the composition."""

from __future__ import annotations

import torch

from usreg_kernels.ops.integrate_velocity.squaring import Squaring
from usreg_kernels.ops.operator import LIBRARY
from usreg_kernels.ops.warp.native import PADDING_CODES

# ddf (B, n, spatial...) and the gradients are float64 or float32.
LIBRARY.define("square_ddf_native_backward(Tensor grad_output, Tensor ddf, int padding_mode) -> Tensor")


class Native(Squaring):
    """The gradient of a squaring is one field: that of the inner one, to which the outer one's is added in place."""

    def square_backward(self, grad_output: torch.Tensor, field: torch.Tensor, padding_mode: str) -> torch.Tensor:
        """The gradient of ``compose_ddf(field, field)`` to ``field``."""
        gradient: torch.Tensor = torch.ops.usreg.square_ddf_native_backward(
            grad_output, field, PADDING_CODES[padding_mode]
        )
        return gradient

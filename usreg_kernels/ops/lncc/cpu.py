"""Local normalised cross-correlation in C++, on CPUs (``csrc/cpu/lncc/lncc.cpp``).

``USREG_LNCC_RECOMPUTE=1`` saves nothing for backward (:mod:`usreg_kernels.ops.lncc.saving`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES
from usreg_kernels.ops.lncc.saving import RECOMPUTE
from usreg_kernels.ops.saved_gradients import GradientSavingBackend, define_saving
from usreg_kernels.windows import make_window

define_saving(
    "lncc",
    "float[] window_z, float[] window_y, float[] window_x, float volume, float smooth_nr, float smooth_dr, "
    "int reduction",
)


@lru_cache(maxsize=256)
def _window_arguments(kernel_type: str, kernel_size: tuple[int, ...]) -> tuple[Any, ...]:
    """The weights along z, y, x, and the window's volume; missing axes have a window of one."""
    window = make_window(kernel_type, kernel_size)
    return (*((1.0,),) * (3 - len(window.weights)), *window.weights, window.volume)


class Cpu(GradientSavingBackend):
    """One march over the volumes for the loss and the gradients."""

    op = "lncc"
    recomputes = RECOMPUTE

    def arguments(
        self,
        pred: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        kernel_size: list[int],
        kernel_type: str,
        reduction: str,
        smooth_nr: float,
        smooth_dr: float,
    ) -> tuple[Any, ...]:
        """The window along each axis, and the choices of the loss."""
        return (*_window_arguments(kernel_type, tuple(kernel_size)), smooth_nr, smooth_dr, REDUCTION_CODES[reduction])

"""The compiled gradient smoothness: C++ on CPUs (``csrc/cpu/field_losses/field_losses.cpp``), CUDA C++ on GPUs.

The kernels of both read ``csrc/common/field_terms.h``. Nothing is saved for backward.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from usreg_kernels.ops.compiled import REDUCTION_CODES, StatelessBackend
from usreg_kernels.ops.gradient_smoothness.reference import axis_scale
from usreg_kernels.ops.operator import LIBRARY

_PARAMS = "bool magnitude, bool central, float[] scales, int reduction"
LIBRARY.define(f"gradient_smoothness_native_forward(Tensor dvf, {_PARAMS}) -> Tensor")
LIBRARY.define(f"gradient_smoothness_native_backward(Tensor grad_output, Tensor dvf, {_PARAMS}) -> Tensor")


@lru_cache(maxsize=256)
def scales(shape: torch.Size, spacing: tuple[float, ...] | None, normalize: bool) -> list[float]:
    """What multiplies each difference of a field of this shape: (components, axes), one row after the other."""
    by_axis = [axis_scale(shape, axis, spacing, normalize) for axis in range(2, len(shape))]
    return [scale for component in zip(*by_axis, strict=True) for scale in component]


class Native(StatelessBackend):
    """One pass over the field each way."""

    op = "gradient_smoothness"

    def arguments(
        self, dvf: torch.Tensor, penalty: str, scheme: str, spacing: list[float] | None, normalize: bool, reduction: str
    ) -> tuple[Any, ...]:
        """The choices of the loss, and what multiplies its differences."""
        found = scales(dvf.shape, None if spacing is None else tuple(spacing), normalize)
        return penalty == "l1", scheme == "central", found, REDUCTION_CODES[reduction]

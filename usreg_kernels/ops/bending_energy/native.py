"""The compiled bending energy: C++ on CPUs (``csrc/cpu/field_losses/field_losses.cpp``), CUDA C++ on GPUs.

The kernels of both read ``csrc/common/field_terms.h``. Nothing is saved for backward.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from usreg_kernels.ops.bending_energy.reference import axis_pairs, pair_scale
from usreg_kernels.ops.compiled import REDUCTION_CODES, StatelessBackend
from usreg_kernels.ops.operator import LIBRARY

LIBRARY.define("bending_energy_native_forward(Tensor dvf, float[] scales, int reduction) -> Tensor")
LIBRARY.define(
    "bending_energy_native_backward(Tensor grad_output, Tensor dvf, float[] scales, int reduction) -> Tensor"
)


@lru_cache(maxsize=256)
def _scales(shape: torch.Size, normalize: bool) -> list[float]:
    """What multiplies each difference of a field of this shape: (components, pairs of axes)."""
    by_pair = [pair_scale(shape, axes, normalize) for axes, _ in axis_pairs(len(shape))]
    return [scale for component in zip(*by_pair, strict=True) for scale in component]


class Native(StatelessBackend):
    """One pass over the field each way."""

    op = "bending_energy"

    def arguments(self, dvf: torch.Tensor, normalize: bool, reduction: str) -> tuple[Any, ...]:
        """What multiplies each difference, and the reduction."""
        return _scales(dvf.shape, normalize), REDUCTION_CODES[reduction]

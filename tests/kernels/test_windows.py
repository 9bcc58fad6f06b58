"""Windows: symmetric, per axis, and MONAI's very float32 numbers."""

from __future__ import annotations

import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss

from usreg_kernels.windows import KERNEL_TYPES, make_window


@pytest.mark.parametrize("kernel_type", KERNEL_TYPES)
@pytest.mark.parametrize("size", [1, 3, 5, 7, 9, 11, 15, 21])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_weights_and_volume_are_monais(kernel_type: str, size: int, dims: int) -> None:
    monai = LocalNormalizedCrossCorrelationLoss(dims, size, kernel_type)
    window = make_window(kernel_type, (size,) * dims)
    assert window.weights == (tuple(monai.kernel.tolist()),) * dims
    assert window.volume == monai.kernel_vol.item()
    assert window.weights[0] == window.weights[0][::-1]


def test_one_size_per_axis() -> None:
    window = make_window("rectangular", (3, 5, 7))
    assert [len(row) for row in window.weights] == [3, 5, 7]
    assert window.volume == 105


def test_independent_of_torchs_defaults() -> None:
    make_window.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        window = make_window("gaussian", (5, 5, 5))
    finally:
        torch.set_default_dtype(torch.float32)
        make_window.cache_clear()
    assert window == make_window("gaussian", (5, 5, 5))

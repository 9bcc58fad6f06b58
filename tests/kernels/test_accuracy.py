"""LNCC on data that low precision gets wrong: a backend with float64 sums stays within the rounding of its output."""

from __future__ import annotations

import pytest
import torch
from kernels.compare import assert_close

import usreg_kernels as uk
from bench.hard_data import PAIRS
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE

SHAPE = (1, 1, 20, 18, 34)


def _loss_and_gradients(pred: torch.Tensor, target: torch.Tensor, window: int) -> list[torch.Tensor]:
    leaves = [pred.detach().clone().requires_grad_(), target.detach().clone().requires_grad_()]
    loss = uk.lncc_loss(*leaves, kernel_size=window, reduction="sum")
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("backend", [name for name in uk.available_backends("lncc") if name == "cpu"])
@pytest.mark.parametrize("window", [3, 5, 7, 9, 15])
@pytest.mark.parametrize("data", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_hard_data(backend: str, window: int, data: str, dtype: torch.dtype) -> None:
    pred, target = (volume.to(dtype).contiguous() for volume in PAIRS[data](SHAPE))
    with uk.use_backend(backend):
        loss, *gradients = _loss_and_gradients(pred, target, window)
    with uk.use_backend("reference"):
        expected, *wanted = _loss_and_gradients(pred.double(), target.double(), window)
    assert_close(loss, expected, LOSS_TOLERANCE[dtype])
    for gradient, oracle in zip(gradients, wanted, strict=True):
        assert_close(gradient, oracle, GRADIENT_TOLERANCE[dtype])

"""NaN and Inf are found in one transfer, and leave no trace."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from usreg.training.nonfinite import RunningStatistics, describe_skips, no_skips, nonfinite, read_step

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found(dtype, value):
    bad = torch.zeros(2, 3, 4, dtype=dtype)
    bad[1, 2, 3] = value
    assert nonfinite(torch.ones(3), bad) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_largest_numbers_are_finite(dtype):
    largest = torch.finfo(dtype).max
    assert nonfinite(torch.tensor([largest, -largest], dtype=dtype)) == 0


@pytest.mark.parametrize(
    ("where", "bad"),
    [("moving", "inputs"), ("ddf", "outputs"), ("loss", "outputs"), ("norm", "gradients"), (None, None)],
)
def test_the_first_bad_stage_is_blamed(where, bad):
    tensors = {key: torch.ones(()) for key in ("moving", "fixed", "warped", "ddf", "loss", "norm")}
    if where is not None:
        tensors[where] = torch.tensor(math.nan)
    report = read_step(
        Accelerator(cpu=True),
        tensors["loss"],
        nonfinite(tensors["moving"], tensors["fixed"]),
        nonfinite(tensors["warped"], tensors["ddf"]),
        tensors["norm"],
        stop=True,
    )
    assert report.bad == bad
    assert report.stop
    assert report.loss == 1.0 or where == "loss"


def test_running_statistics_come_back():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    model(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    statistics = RunningStatistics(model)
    statistics.keep()
    model(torch.full((8, 2), math.nan))
    assert model[0].running_mean.isnan().all()
    statistics.restore()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_description():
    counts = no_skips()
    assert describe_skips(counts) == "0 skipped"
    counts["inputs"] += 2
    assert describe_skips(counts) == "2 skipped (NaN or Inf: 2 in the inputs)"

"""Training steps and registrations are compared without TF32, here on a CPU that rounds as a GPU does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import usreg_kernels as uk
from bench import end_to_end
from bench.end_to_end import (
    LOSS_TOLERANCE,
    MONAI,
    OURS,
    QUALITY_TOLERANCE,
    Registration,
    Training,
    wrong_registration,
    wrong_training,
)
from bench.failures import Failure
from bench.timing import Times

DROPPED_BITS = 13
"""Of float32's mantissa, of 23 bits; TF32 has 10."""


def to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded to the nearest number of TF32; the gradient passes."""
    half = 1 << (DROPPED_BITS - 1)
    bits = tensor.detach().contiguous().view(torch.int32)
    rounded = (((bits + half) >> DROPPED_BITS) << DROPPED_BITS).view(torch.float32)
    return tensor + (rounded - tensor.detach())


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions take their factors in TF32 where torch allows it, and the benchmark knows."""
    convolve = F.conv3d

    def conv3d(input: torch.Tensor, weight: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if torch.backends.cudnn.allow_tf32:
            input, weight = to_tf32(input), to_tf32(weight)
        return convolve(input, weight, *arguments, **named)

    monkeypatch.setattr(F, "conv3d", conv3d)
    monkeypatch.setattr(end_to_end, "is_rounded", lambda device: True)


def test_the_stand_in_rounds_to_ten_bits() -> None:
    torch.testing.assert_close(to_tf32(torch.tensor([1 + 2**-12, 1 + 2**-10])), torch.tensor([1.0, 1 + 2**-10]))


def test_tf32_is_off_inside_and_back_afterwards() -> None:
    before = torch.backends.cudnn.allow_tf32
    with end_to_end.without_tf32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def _register() -> end_to_end.Registrations:
    return end_to_end.registration((20, 24, 28), 4, 0.1, "cpu")


def test_monai_in_tf32_does_not_stop_the_registration(rounding: None) -> None:
    found = _register()
    ours, monai = found[OURS], found[MONAI]
    assert isinstance(ours, Registration)
    assert isinstance(monai, Registration)
    assert wrong_registration(found) is None
    assert ours.checked == pytest.approx(ours.after, abs=1e-6)  # ours has no convolution
    assert monai.checked == pytest.approx(ours.after, abs=1e-4)
    exact = (monai.field - ours.field).norm() / ours.field.norm()
    assert exact > 1e-4  # the timed run was rounded


class Wrong(nn.Module):
    """LNCC with its sign turned."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.loss = LNCC(**arguments)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -self.loss(pred, target)


LNCC: Callable[..., nn.Module] = uk.LNCCLoss


def test_a_wrong_loss_of_ours_stops_the_registration(rounding: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uk, "LNCCLoss", Wrong)
    assert "the similarities differ" in str(wrong_registration(_register()))


@pytest.mark.slow
def test_training_is_compared_in_float32_and_timed_as_it_is(rounding: None, tmp_path: Path) -> None:
    found = end_to_end.training(24, 1, "cpu", tmp_path)
    assert wrong_training(found) is None
    losses = {name: (run.checked_loss, run.last_loss) for name, run in found.items() if isinstance(run, Training)}
    assert set(losses) == {OURS, MONAI}
    assert losses[MONAI][0] == pytest.approx(losses[OURS][0], abs=LOSS_TOLERANCE)
    assert losses[OURS][0] != losses[OURS][1]  # the network's convolutions were rounded


def test_precision_of_the_two_trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[bool, bool]] = []

    def train(size: int, steps: int, device: str, folder: Path, amp: bool) -> tuple:
        calls.append((amp, torch.backends.cudnn.allow_tf32))
        names = [f"{part} {name}" for part in ("step", "loss") for name in end_to_end.NAMES]
        return dict.fromkeys(names, Times([1.0])), dict.fromkeys(end_to_end.NAMES, -0.5 - 0.1 * amp), {}

    monkeypatch.setattr(end_to_end, "_train", train)
    found = end_to_end.training(24, 1, "cuda", tmp_path)[OURS]
    assert calls == [(False, False), (True, True)]
    assert isinstance(found, Training)
    assert (found.checked_loss, found.last_loss) == (-0.5, -0.6)
    end_to_end.training(24, 1, "cpu", tmp_path)
    assert calls[2:] == [(True, True)]  # computes in float32 anyway


TRAINING = Training(Times([1.0]), Times([1.0]), last_loss=-0.5, checked_loss=-0.5)
FAILURE = Failure(RuntimeError, "no")


@pytest.mark.parametrize(
    ("ours", "monai", "reason"),
    [
        (TRAINING, TRAINING, None),
        (TRAINING, replace(TRAINING, last_loss=-40.0), None),  # TF32, timed and marked
        (TRAINING, replace(TRAINING, last_loss=math.nan), None),
        (TRAINING, replace(TRAINING, checked_loss=-0.5 + 2 * LOSS_TOLERANCE), "the losses differ"),
        (replace(TRAINING, checked_loss=math.nan), TRAINING, "the losses differ"),
        (replace(TRAINING, last_loss=math.nan), TRAINING, "from -1 to 0"),
        (replace(TRAINING, checked_loss=None), TRAINING, "ours failed in float32"),
        (TRAINING, FAILURE, None),
        (FAILURE, TRAINING, None),  # its test fails of itself
    ],
)
def test_what_is_wrong_with_a_training(ours: Any, monai: Any, reason: str | None) -> None:
    found = wrong_training({OURS: ours, MONAI: monai})
    assert found is None if reason is None else found is not None and reason in found


REGISTRATION = Registration(Times([1.0]), 0.4, after=0.9, checked=0.9, field=torch.zeros(1, 3, 2, 2, 2))


@pytest.mark.parametrize(
    ("ours", "monai", "reason"),
    [
        (REGISTRATION, REGISTRATION, None),
        (REGISTRATION, replace(REGISTRATION, after=0.1), None),
        (REGISTRATION, replace(REGISTRATION, checked=0.9 - 2 * QUALITY_TOLERANCE), "the similarities differ"),
        (replace(REGISTRATION, after=math.nan), REGISTRATION, "the similarities differ"),
        (replace(REGISTRATION, after=0.8), REGISTRATION, "the similarities differ"),
        (REGISTRATION, FAILURE, None),
        (FAILURE, REGISTRATION, None),
    ],
)
def test_what_is_wrong_with_a_registration(ours: Any, monai: Any, reason: str | None) -> None:
    found = wrong_registration({OURS: ours, MONAI: monai})
    assert found is None if reason is None else found is not None and reason in found

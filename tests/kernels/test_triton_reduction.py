"""The second stage of the sums in Triton: any number of partial sums, against exact sums."""

from __future__ import annotations

import math

import pytest
import torch

from usreg_kernels.ops.triton_backend import INTERPRETED, missing

if missing() is not None:
    pytest.skip(str(missing()), allow_module_level=True)

from usreg_kernels.ops import triton_reduction
from usreg_kernels.ops.triton_reduction import CHUNK, MOST, finish

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

DEVICE = "cpu" if INTERPRETED else "cuda"
OF_A_BRAIN = 161_280
"""Partial sums of the bending energy of a field (1, 3, 160, 192, 224)."""
COUNTS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK + 1, MOST - 1, MOST, MOST + 1, OF_A_BRAIN)


def _partials(count: int, seed: int) -> torch.Tensor:
    """Float32 of both signs and many magnitudes, whose sum float32 would not hold."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, generator=generator) * 2.0 ** torch.randint(-20, 12, (count,), generator=generator)
    values[::3] *= -0.5
    return values.to(DEVICE)


def _exact(partials: torch.Tensor) -> float:
    return math.fsum(partials.tolist())


@pytest.mark.parametrize("count", COUNTS)
def test_a_sum(count: int) -> None:
    partials = _partials(count, seed=1)
    loss, divisor = finish(partials, 7)
    assert (loss.dtype, divisor.dtype) == (torch.float32, torch.float64)
    assert (loss.shape, divisor.shape) == ((), ())
    assert divisor.item() == 7
    assert loss.item() == torch.tensor(_exact(partials) / 7, dtype=torch.float32).item()


@pytest.mark.parametrize("count", COUNTS)
def test_a_sum_over_that_of_the_weights(count: int) -> None:
    partials, weights = _partials(count, seed=1), _partials(count, seed=2).abs()
    loss, divisor = finish(partials, 7, weights)
    assert divisor.item() == pytest.approx(_exact(weights), rel=1e-14)
    assert loss.item() == torch.tensor(_exact(partials) / _exact(weights), dtype=torch.float32).item()


@pytest.mark.parametrize("count", [1, MOST, MOST + 1])
def test_weights_of_zero_count_as_one(count: int) -> None:
    zeros = torch.zeros(count, device=DEVICE)
    loss, divisor = finish(zeros, 7, zeros)
    assert (loss.item(), divisor.item()) == (0.0, 1.0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [MOST, MOST + 1, OF_A_BRAIN])
def test_the_sum_has_the_same_bits_every_time(count: int, weighted: bool) -> None:
    rows = torch.stack([_partials(count, seed) for seed in (1, 2)])
    arguments = (rows[0], 7, rows[1].abs() if weighted else None)
    first, *rest = (finish(*arguments) for _ in range(4))
    for other in rest:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [3, MOST + 1])
def test_values_that_are_not_finite_stay(count: int, bad: float) -> None:
    partials = torch.ones(count, device=DEVICE)
    partials[-1] = bad
    loss, _ = finish(partials, 1)
    assert str(loss.item()) == str(bad)


def test_as_many_passes_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes of chunks, which takes 16 million partial sums otherwise."""
    monkeypatch.setattr(triton_reduction, "CHUNK", 8)
    monkeypatch.setattr(triton_reduction, "MOST", 100)
    partials, weights = _partials(2003, seed=1), _partials(2003, seed=2).abs()
    loss, divisor = finish(partials, 7, weights)
    assert divisor.item() == pytest.approx(_exact(weights), rel=1e-14)
    assert loss.item() == torch.tensor(_exact(partials) / _exact(weights), dtype=torch.float32).item()

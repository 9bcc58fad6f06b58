"""Training steps and registrations, with our losses and with MONAI's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import end_to_end, training_parts
from bench.cases import IMAGES
from bench.end_to_end import LOSS_TOLERANCE, NAMES, OURS, QUALITY_TOLERANCE, REGISTERED, Registrations, Trainings
from bench.failures import Failure
from bench.measure import Plan
from bench.recording import measured, record
from bench.training_parts import Parts

MISSING = end_to_end.missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"training and MONAI's losses are needed: {MISSING}")

DEFAULT = "default"
SIZES = {DEFAULT: 24, "64": 64}
"""By name, sides of the training volumes: the default config's, which always runs, and a realistic one."""

REGISTRATIONS = {"tiny": (5, 0.1), "96": (30, 0.1), "brain": (5, 0.5)}
"""By the name of a shape, iterations of the registration and their learning rate. MONAI takes ten seconds for one of a
brain on two cores: as few as show that both arrive at the same place."""

USUAL = ("96", "brain")
"""What runs where no shapes are chosen."""


def is_chosen(size: str, chosen: list[str]) -> bool:
    """Whether a size runs, given the shapes that were chosen."""
    return size == DEFAULT or size in (chosen or USUAL)


def _measured(found: dict[str, Any], name: str) -> Any:
    """What was found about one of the two. That MONAI's fails is no fault of ours."""
    if isinstance(failure := found[name], Failure):
        (pytest.fail if name == OURS else pytest.skip)(f"{name} fails with {failure}")
    return found[name]


def _agrees(found: dict[str, Any], name: str, value: str, tolerance: float) -> bool:
    """Whether what a timed run arrived at is what ours arrived at, if ours did."""
    ours = found[OURS]
    return isinstance(ours, Failure) or abs(getattr(found[name], value) - getattr(ours, value)) <= tolerance


def _skip_unless_chosen(size: str, chosen: list[str]) -> None:
    if not is_chosen(size, chosen):
        pytest.skip(f"{size}: chosen by --bench-shapes, or --bench-full")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_training_step(
    size: str,
    name: str,
    once: Callable[..., Trainings],
    chosen_shapes: list[str],
    plan: Plan,
    tmp_path: Path,
    benchmark: Any,
) -> None:
    _skip_unless_chosen(size, chosen_shapes)
    found = once(("training", size), lambda: end_to_end.training(SIZES[size], plan.rounds, plan.device, tmp_path))
    training = _measured(found, name)
    wrong = end_to_end.wrong_training(found) if name == OURS else None
    extra = {
        **measured("training", "training step", name, [SIZES[size]] * 3, plan.device, name == OURS),
        "loss_seconds": training.loss.median,
        "loss_share": training.loss.median / training.step.median,
        "last_loss": training.last_loss,
        "checked_loss": training.checked_loss,
        "exact": wrong is None and _agrees(found, name, "last_loss", LOSS_TOLERANCE),
    }
    record(benchmark, f"training step {SIZES[size]}^3", training.step, extra, wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", training_parts.CONFIGS)
def test_training_parts(
    config: str,
    name: str,
    once: Callable[..., dict[str, Parts]],
    chosen_shapes: list[str],
    plan: Plan,
    tmp_path: Path,
    benchmark: Any,
) -> None:
    if config != DEFAULT:
        _skip_unless_chosen("96", chosen_shapes)
    found = once(("parts", config), lambda: training_parts.measure(config, plan.rounds, plan.device, tmp_path))
    parts, losses = found[name], [found[other].loss for other in NAMES]
    agree = abs(losses[0] - losses[1]) <= LOSS_TOLERANCE
    extra = {
        **measured("parts", "training parts", name, parts.shape, plan.device, name == OURS),
        "scheme": config,
        "parts_seconds": {part: times.median for part, times in parts.times.items()},
        "shares": parts.shares,
        "exact": agree,
    }
    wrong = None if agree or name != OURS else f"the losses differ: {losses}"
    record(benchmark, f"parts of a training step, {config}", parts.step, extra, wrong)


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("size", REGISTRATIONS)
def test_registration(
    size: str,
    name: str,
    once: Callable[..., Registrations],
    chosen_shapes: list[str],
    plan: Plan,
    benchmark: Any,
) -> None:
    _skip_unless_chosen(size, chosen_shapes)
    shape, (iterations, learning_rate) = IMAGES[size][2:], REGISTRATIONS[size]
    both = once(("registration", size), lambda: end_to_end.registration(shape, iterations, learning_rate, plan.device))
    found, ours = _measured(both, name), both[OURS]
    wrong = end_to_end.wrong_registration(both) if name == OURS else None
    extra = {
        **measured("registration", "registration", name, shape, plan.device, name == OURS),
        "iterations": iterations,
        "learning_rate": learning_rate,
        "similarity_before": found.before,
        "similarity_after": found.after,
        "similarity_checked": found.checked,
        "exact": wrong is None and _agrees(both, name, "after", QUALITY_TOLERANCE),
        "field_difference": None if isinstance(ours, Failure) else _distance(found.field, ours.field),
    }
    record(benchmark, f"registration {'x'.join(map(str, shape))}", found.times, extra, wrong)


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean distance of two fields (B, 3, D, H, W), voxels."""
    return (first - second).norm(dim=1).mean().item()

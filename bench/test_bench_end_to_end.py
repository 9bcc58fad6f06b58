"""Training steps and registrations, with our losses and with MONAI's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import end_to_end
from bench.cases import IMAGES
from bench.end_to_end import NAMES, OURS, Registration, Training
from bench.measure import Plan
from bench.recording import record

DEFAULT = "default"
SIZES = {DEFAULT: 24, "64": 64}
"""By name, sides of the training volumes: the default config's, which always runs, and a realistic one."""

REGISTRATIONS = {"tiny": (5, 0.1), "96": (30, 0.1), "brain": (5, 0.5)}
"""By the name of a shape, iterations of the registration and their learning rate. MONAI takes ten seconds for one of a
brain on two cores: as few as show that both arrive at the same place."""

USUAL = ("96", "brain")
"""What runs where no shapes are chosen."""

QUALITY_TOLERANCE = 0.01
"""How far the final similarities of the two may lie apart: both are sums of the same terms in another order."""


Trainings = dict[str, dict[str, Training]]
Registrations = dict[str, dict[str, Registration]]


@pytest.fixture(scope="module")
def trainings() -> Trainings:
    """The comparisons so far."""
    return {}


@pytest.fixture(scope="module")
def registrations() -> Registrations:
    """The comparisons so far."""
    return {}


def is_chosen(size: str, chosen: list[str]) -> bool:
    """Whether a size runs, given the shapes that were chosen."""
    return size == DEFAULT or size in (chosen or USUAL)


def _skip_unless_chosen(size: str, chosen: list[str]) -> None:
    if not is_chosen(size, chosen):
        pytest.skip(f"{size}: chosen by --bench-shapes, or --bench-full")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_training_step(
    size: str,
    name: str,
    trainings: Trainings,
    chosen_shapes: list[str],
    plan: Plan,
    tmp_path: Path,
    benchmark: Any,
) -> None:
    _skip_unless_chosen(size, chosen_shapes)
    if size not in trainings:
        trainings[size] = end_to_end.training(SIZES[size], plan.rounds, plan.device, tmp_path)
    found = trainings[size]
    if any(abs(training.last_loss - found[OURS].last_loss) > 1e-3 for training in found.values()):
        pytest.fail(f"no speeds are shown: the losses differ after the same steps: {found}")
    training = found[name]
    extra = {
        "kind": "training",
        "op": "training step",
        "contender": name,
        "ours": name == OURS,
        "shape": [SIZES[size]] * 3,
        "device": plan.device,
        "loss_seconds": training.loss.median,
        "loss_share": training.loss.median / training.step.median,
        "last_loss": training.last_loss,
    }
    record(benchmark, f"training step {SIZES[size]}^3", training.step, extra)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", REGISTRATIONS)
def test_registration(
    size: str,
    name: str,
    registrations: Registrations,
    chosen_shapes: list[str],
    plan: Plan,
    benchmark: Any,
) -> None:
    _skip_unless_chosen(size, chosen_shapes)
    shape, (iterations, learning_rate) = IMAGES[size][2:], REGISTRATIONS[size]
    if size not in registrations:
        registrations[size] = end_to_end.registration(shape, iterations, learning_rate, plan.device)
    ours, found = registrations[size][OURS], registrations[size][name]
    if abs(found.after - ours.after) > QUALITY_TOLERANCE:
        pytest.fail(f"no speeds are shown: similarity {found.after} with {name}, {ours.after} with ours")
    extra = {
        "kind": "registration",
        "op": "registration",
        "contender": name,
        "ours": name == OURS,
        "shape": list(shape),
        "device": plan.device,
        "iterations": iterations,
        "learning_rate": learning_rate,
        "similarity_before": found.before,
        "similarity_after": found.after,
        "field_difference": (found.field - ours.field).norm(dim=1).mean().item(),
    }
    record(benchmark, f"registration {'x'.join(map(str, shape))}", found.times, extra)

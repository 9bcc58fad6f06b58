"""Operations on images and fields: ours against MONAI's blocks and plain PyTorch, checked and then timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from bench.cases import IMAGES
from bench.failures import Failure, attempt
from bench.measure import Plan, in_turn, set_count
from bench.memory import peak_extra_bytes
from bench.operations import OURS, Build, Operation, Tensors, operations
from bench.outcomes import Error
from bench.recording import measured, record
from bench.timing import Times, interleave

USUAL = ("96", "brain")
"""Shapes that run where none are chosen."""

MOST_SETS = 4
STREAM = "torch.add"
PAIRS = [(operation, name) for operation in operations() for name in operation.contenders]


@dataclass(frozen=True)
class Found:
    """What was measured of one contender.

    Attributes:
        times: of its runs.
        error: of the output and of the worst gradient, relative L2 norms against the float64 reference.
        exact: whether the error is within the tolerances.
        peak_extra_bytes: the most that a run held.
        streaming_fraction: the bytes that any implementation must move, over those that ``torch.add`` moves in the
            time of a run.
    """

    times: Times
    error: Error
    exact: bool
    peak_extra_bytes: int | None
    streaming_fraction: float


Comparison = dict[str, "Found | Failure"]


def compare(operation: Operation, spatial: tuple[int, ...], plan: Plan) -> Comparison:
    """Every contender of an operation; one that fails takes no other with it."""
    count = set_count(operation.least_bytes(spatial), MOST_SETS)
    sets = [operation.make_inputs(spatial, seed, plan.device) for seed in range(count)]
    wanted = operation.reference(sets[0])
    found: Comparison = {}
    runs: dict[str, Callable[[], Any]] = {}
    errors, peaks, turns = {}, {}, {}
    for name, build in operation.contenders.items():
        tried = attempt(_try, build, sets, wanted, plan)
        if isinstance(tried, Failure):
            found[name] = tried
        else:
            runs[name], errors[name], peaks[name], seconds = tried
            turns[name] = plan.rounds if seconds < plan.patience else 3
    stream, streamed = _stream(spatial, plan.device)
    failures: dict[str, Failure] = {}
    times = interleave(
        {**runs, STREAM: stream}, {**turns, STREAM: plan.rounds}, plan.seconds_per_turn, plan.device, failures=failures
    )
    rate = streamed / times.pop(STREAM).median
    for name, time in times.items():
        fraction = operation.least_bytes(spatial) / time.median / rate
        exact = errors[name].within_tolerance(torch.float32, ours=name == OURS)
        found[name] = Found(time, errors[name], exact, peaks[name], fraction)
    return {**found, **failures}


def _try(
    build: Build, sets: list[Tensors], wanted: Tensors, plan: Plan
) -> tuple[Callable[[], Any], Error, int | None, float]:
    runs = [build(inputs) for inputs in sets]
    output, *gradients = (_error(one, other) for one, other in zip(runs[0](), wanted, strict=False))
    peak, seconds = peak_extra_bytes(runs[0], plan.device)
    return in_turn(runs), Error(output, max(gradients, default=None)), peak, seconds


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def _stream(spatial: tuple[int, ...], device: str) -> tuple[Callable[[], Any], int]:
    """Reading two fields and writing a third, and the bytes that this moves."""
    first, second, third = (torch.ones(3, *spatial, device=device) for _ in range(3))
    return lambda: torch.add(first, second, out=third), 3 * first.nbytes


@pytest.mark.parametrize(("operation", "name"), PAIRS, ids=[f"{o.title}-{name}" for o, name in PAIRS])
@pytest.mark.parametrize("size", ["tiny", "96", "brain"])
def test_operation(
    size: str,
    operation: Operation,
    name: str,
    once: Callable[..., Comparison],
    chosen_shapes: list[str],
    plan: Plan,
    benchmark: Any,
) -> None:
    if size not in (chosen_shapes or USUAL):
        pytest.skip(f"{size}: chosen by --bench-shapes, or --bench-full")
    spatial = IMAGES[size][2:]
    found = once((operation.title, size), lambda: compare(operation, spatial, plan))[name]
    if isinstance(found, Failure):
        (pytest.fail if name == OURS and not found.is_lack_of_memory else pytest.skip)(f"{name} fails with {found}")
    extra = {
        **measured("operation", operation.title, name, spatial, plan.device, name == OURS),
        "pass": operation.passes,
        "dtype": "float32",
        "loss_error": found.error.loss,
        "gradient_error": found.error.gradient,
        "exact": found.exact,
        "peak_extra_bytes": found.peak_extra_bytes,
        "streaming_fraction": found.streaming_fraction,
    }
    wrong = None if found.exact or name != OURS else f"{name} is wrong: {operation.title} of {size}: {found.error}"
    record(benchmark, f"{operation.title} {size}", found.times, extra, wrong)

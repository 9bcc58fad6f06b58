"""Our LNCC against itself: what a window, a dtype, a second gradient or a second thread costs, all in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import usreg_kernels as uk
from bench.cases import IMAGES, WINDOW, Case, make_inputs
from bench.failures import Failure, attempt
from bench.measure import Plan
from bench.recording import measured, record
from bench.steps import step
from bench.timing import Times, interleave
from tools.tolerances import LOSS_TOLERANCE

BASE = "window 9, float32, gradient of one image"
ONE_THREAD = "one thread"

VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "forward alone": {"backward": False},
    "gradients of both images": {"both": True},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
    "window 3": {"kernel_size": 3},
    "window 15": {"kernel_size": 15},
    "gaussian window": {"kernel_type": "gaussian"},
    ONE_THREAD: {},
}
"""By name, what is other than in the first: of the inputs (:func:`make_run`), or arguments of ``lncc_loss``."""

Step = Callable[[], torch.Tensor]


def make_run(
    shape: tuple[int, ...],
    device: str,
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
    both: bool = False,
    **arguments: Any,
) -> Step:
    """A run of our LNCC on the machine's own choice of backend; ``both``: with gradients of both images."""
    inputs = make_inputs(Case("lncc", shape, dtype, backward), 0, device)
    inputs[1].requires_grad_(both)
    return step(lambda pred, target: uk.lncc_loss(pred, target, **{"kernel_size": WINDOW, **arguments}), *inputs)


def make_runs(shape: tuple[int, ...], device: str) -> dict[str, Step]:
    """A run for each of :data:`VARIANTS` that the device has."""
    runs = {name: make_run(shape, device, **changes) for name, changes in VARIANTS.items()}
    one_thread = _on_one_thread(runs.pop(ONE_THREAD))
    return {**runs, ONE_THREAD: one_thread} if device == "cpu" else runs


def _on_one_thread(run: Step) -> Step:
    threads = torch.get_num_threads()

    def inner() -> torch.Tensor:
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return inner


def check(device: str) -> dict[str, str]:
    """Each variant against the float64 reference, on a small volume: the large one is the other benchmarks' matter.

    Returns:
        By name, what is wrong.
    """
    wrong = {}
    for name, run in make_runs(IMAGES["tiny"], device).items():
        found = attempt(_against_reference, run)
        if isinstance(found, Failure):
            wrong[name] = f"fails with {found}"
            continue
        value, expected = found
        if not abs(value - expected) <= LOSS_TOLERANCE[torch.float32] * abs(expected):
            wrong[name] = f"{value} instead of {expected}"
    return wrong


def _against_reference(run: Step) -> tuple[float, float]:
    value = run().item()
    with uk.use_backend("reference"):
        return value, run().item()


@pytest.fixture(scope="module")
def shape(chosen_shapes: list[str]) -> tuple[int, ...]:
    usual = not chosen_shapes or "128" in chosen_shapes
    return IMAGES["128" if usual else chosen_shapes[0]]


@dataclass(frozen=True)
class Variants:
    """All variants.

    Attributes:
        times: by name, of those that ran.
        failures: by name, how others failed.
        wrong: by name, what is wrong with a result.
    """

    times: dict[str, Times]
    failures: dict[str, Failure]
    wrong: dict[str, str]


@pytest.fixture(scope="module")
def variants(shape: tuple[int, ...], plan: Plan) -> Variants:
    wrong = check(plan.device)
    failures: dict[str, Failure] = {}
    runs = make_runs(shape, plan.device)
    times = interleave(runs, plan.rounds, plan.seconds_per_turn, plan.device, failures=failures)
    return Variants(times, failures, wrong)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str, shape: tuple[int, ...], variants: Variants, plan: Plan, benchmark: Any) -> None:
    if variant in variants.failures:
        pytest.fail(f"{variant} fails with {variants.failures[variant]}", pytrace=False)
    if variant not in variants.times:
        pytest.skip(f"{variant}: a matter of CPUs")
    times, base = variants.times[variant], variants.times.get(BASE)
    extra = {
        **measured("variant", "lncc", variant, shape, plan.device, ours=True),
        "ratio_to_base": None if base is None else times.median / base.median,
    }
    wrong = f"{variant}: {variants.wrong[variant]}" if variant in variants.wrong else None
    record(benchmark, f"lncc variants {'x'.join(map(str, shape))}", times, extra, wrong)

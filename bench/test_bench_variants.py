"""Our LNCC against itself: what a window, a dtype, a second gradient or a second thread costs, all in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import usreg_kernels as uk
from bench.cases import IMAGES, WINDOW, Case, Loss, make_inputs
from bench.failures import Failure, attempt
from bench.measure import Plan
from bench.recording import record
from bench.steps import step
from bench.timing import Times, interleave
from tools.tolerances import LOSS_TOLERANCE

BASE = "window 9, float32, gradient of one image"

VARIANTS = (
    BASE,
    "forward alone",
    "gradients of both images",
    "float16",
    "bfloat16",
    "float64",
    "window 3",
    "window 15",
    "gaussian window",
    "one thread",
)


def lncc(**arguments: Any) -> Loss:
    """Our LNCC on the machine's own choice of backend."""
    return lambda pred, target: uk.lncc_loss(pred, target, **{"kernel_size": WINDOW, **arguments})


Step = Callable[[], torch.Tensor]


def make_runs(shape: tuple[int, ...], device: str) -> dict[str, Step]:
    """A run for each of :data:`VARIANTS` that the device has."""
    case = Case("lncc", shape, window=WINDOW)

    def inputs(**changes: Any) -> list[torch.Tensor]:
        return make_inputs(replace(case, **changes), 0, device)

    both = [tensor.detach().requires_grad_() for tensor in inputs()]
    runs: dict[str, Step] = {
        BASE: step(lncc(), *inputs()),
        "forward alone": step(lncc(), *inputs(backward=False)),
        "gradients of both images": step(lncc(), *both),
        "gaussian window": step(lncc(kernel_type="gaussian"), *inputs()),
    }
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        runs[str(dtype).removeprefix("torch.")] = step(lncc(), *inputs(dtype=dtype))
    for window in (3, 15):
        runs[f"window {window}"] = step(lncc(kernel_size=window), *inputs())
    if device == "cpu":
        runs["one thread"] = _on_one_thread(step(lncc(), *inputs()))
    return {name: runs[name] for name in VARIANTS if name in runs}


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
        "kind": "variant",
        "op": "lncc",
        "contender": variant,
        "ours": True,
        "shape": list(shape),
        "device": plan.device,
        "ratio_to_base": None if base is None else times.median / base.median,
    }
    wrong = f"{variant}: {variants.wrong[variant]}" if variant in variants.wrong else None
    record(benchmark, f"lncc variants {'x'.join(map(str, shape))}", times, extra, wrong)

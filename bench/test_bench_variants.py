"""Our LNCC against itself: what a window, a dtype, a second gradient or a second thread costs, all in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import usreg_kernels as uk
from bench.cases import IMAGES, WINDOW, Case, Loss, make_inputs
from bench.measure import LOSS_TOLERANCE, Plan, WrongResult, step
from bench.recording import record
from bench.timing import Times, interleave

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
        value = run()
        torch.set_num_threads(threads)
        return value

    return inner


def check(device: str) -> None:
    """Each variant against the float64 reference, on a small volume: the large one is the other benchmarks' matter."""
    for name, run in make_runs(IMAGES["tiny"], device).items():
        value = run().item()
        with uk.use_backend("reference"):
            expected = run().item()
        if not abs(value - expected) <= LOSS_TOLERANCE[torch.float32] * abs(expected):
            raise WrongResult(f"{name}: {value} instead of {expected}")


@pytest.fixture(scope="module")
def shape(chosen_shapes: list[str]) -> tuple[int, ...]:
    usual = not chosen_shapes or "128" in chosen_shapes
    return IMAGES["128" if usual else chosen_shapes[0]]


@pytest.fixture(scope="module")
def times(shape: tuple[int, ...], plan: Plan) -> dict[str, Times]:
    check(plan.device)
    return interleave(make_runs(shape, plan.device), plan.rounds, plan.seconds_per_turn, plan.device)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str, shape: tuple[int, ...], times: dict[str, Times], plan: Plan, benchmark: Any) -> None:
    if variant not in times:
        pytest.skip(f"{variant}: a matter of CPUs")
    extra = {
        "kind": "variant",
        "op": "lncc",
        "contender": variant,
        "ours": True,
        "shape": list(shape),
        "device": plan.device,
        "ratio_to_base": times[variant].median / times[BASE].median,
    }
    record(benchmark, f"lncc variants {'x'.join(map(str, shape))}", times[variant], extra)

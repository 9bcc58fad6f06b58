"""What a call costs whose tensors hold next to nothing: every loss on 4 x 4 x 4 voxels, beside ``F.mse_loss``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import usreg_kernels as uk
from bench.cases import PASSES, Case, Loss, make_inputs
from bench.failures import Failure, attempt
from bench.measure import Plan
from bench.outcomes import Error
from bench.recording import identity, record
from bench.recording import on_gpu as parts_on_gpu
from bench.steps import error_of, graph_step, reference, step
from bench.timing import OnGpu, Times, interleave, on_gpu
from usreg_kernels.functional import LOSSES

YARDSTICK = "F.mse_loss"
OURS = "USReg"
SIDE = 4

MORE_TURNS = 8
"""Times as many turns as elsewhere, and shorter: what disturbs the machine for a while disturbs all alike."""

SECONDS_PER_TURN = 0.01


@dataclass(frozen=True)
class Overhead:
    """What a call of one loss costs.

    Attributes:
        times: of its runs.
        backend: that runs it.
        error: against the reference; None for the yardstick.
        wrong: the error is not within the tolerances.
        on_gpu: the device's and the CPU's part; None on a CPU.
    """

    times: Times
    backend: str | None
    error: Error | None
    wrong: bool
    on_gpu: OnGpu | None = None

    @property
    def seconds(self) -> float:
        """Median time of a run; on a GPU what a call takes to launch.

        On a machine with twice as many busy processes as cores the ratio of two medians is off by a tenth, that of two
        lower quartiles by half: a shorter run is undisturbed more often.
        """
        if self.on_gpu is not None and self.on_gpu.launch_seconds is not None:
            return self.on_gpu.launch_seconds
        return self.times.median


Overheads = dict[str, "Overhead | Failure"]


def case_of(op: str, backward: bool) -> Case:
    """A volume that every op takes; the arguments are the defaults of our functions."""
    return Case("dvf_mse" if op == YARDSTICK else op, (1, 1 if op == "lncc" else 3, *[SIDE] * 3), backward=backward)


def overheads(plan: Plan, backward: bool) -> Overheads:
    """Every loss and the yardstick, checked and then timed in turns; or how it failed."""
    losses: dict[str, Loss] = {**LOSSES, YARDSTICK: F.mse_loss}
    inputs = {name: make_inputs(case_of(name, backward), 0, plan.device) for name in losses}
    errors = {op: attempt(_error, LOSSES[op], inputs[op]) for op in LOSSES}
    failures = {op: error for op, error in errors.items() if isinstance(error, Failure)}
    runs = {name: step(loss, *inputs[name]) for name, loss in losses.items() if name not in failures}
    rounds = MORE_TURNS * plan.rounds
    times = interleave(runs, rounds, SECONDS_PER_TURN, plan.device, failures=failures)
    found: Overheads = dict(failures)
    for name, time in times.items():
        error = errors.get(name)
        assert not isinstance(error, Failure)
        found[name] = Overhead(
            times=time,
            backend=None if name == YARDSTICK else uk.explain(name, *inputs[name]).chosen,
            error=error,
            wrong=error is not None and not error.within_tolerance(torch.float32, ours=True),
            on_gpu=_on_gpu(name, runs[name], graph_step(losses[name], *inputs[name]), plan.device),
        )
    return found


def _error(function: Loss, inputs: list[torch.Tensor]) -> Error:
    oracle = reference(function, inputs)
    value = step(function, *inputs)()
    return error_of(value, inputs[0].grad, oracle)


def _on_gpu(name: str, run: Callable, captured: Callable, device: str) -> OnGpu | None:
    return on_gpu(name, run, [captured], 0.0) if device == "cuda" else None


@pytest.mark.parametrize("name", [*LOSSES, YARDSTICK])
@pytest.mark.parametrize("backward", PASSES, ids=["forward+backward", "forward"])
def test_overhead(backward: bool, name: str, once: Callable[..., Overheads], plan: Plan, benchmark: Any) -> None:
    found = once(("overhead", backward), lambda: overheads(plan, backward))
    overhead, yardstick = found[name], found[YARDSTICK]
    if isinstance(overhead, Failure):
        pytest.fail(f"{name} fails with {overhead}", pytrace=False)
    case, error = case_of(name, backward), overhead.error
    ratio = None if isinstance(yardstick, Failure) else overhead.seconds / yardstick.seconds
    extra = {
        **identity("overhead", case, YARDSTICK if name == YARDSTICK else OURS, plan.device),
        "ours": name != YARDSTICK,
        "backend": overhead.backend,
        "overhead_seconds": overhead.seconds,
        "ratio_to_mse_loss": ratio,
        "loss_error": None if error is None else error.loss,
        "gradient_error": None if error is None else error.gradient,
        "exact": not overhead.wrong,
        **parts_on_gpu(overhead.on_gpu),
    }
    wrong = f"{name} is wrong on {'x'.join(map(str, case.shape))}: {error}" if overhead.wrong else None
    record(benchmark, f"overhead {case.passes}", overhead.times, extra, wrong)

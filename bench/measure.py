"""One comparison: check every contender against the float64 reference, then time those that run, in turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

import torch

import usreg_kernels as uk
from bench import gpu
from bench.cases import Case, make_inputs
from bench.contenders import REFERENCE, Absent, Contender, third_party_warnings_ignored
from bench.failures import Failure, attempt
from bench.gpu import DeviceLost, Run
from bench.memory import peak_extra_bytes
from bench.outcomes import Error, Measured, NotMeasured, Outcome
from bench.steps import Oracle, error_of, graph_step, reference, step
from bench.ties import has_one_gradient
from bench.timing import OnGpu, interleave, on_gpu, turn_length
from usreg_kernels.functional import LOSSES

CACHE_BYTES = 128 * 2**20
"""Input sets hold this many bytes together, above the last-level cache of CPUs and GPUs, so that none flatters."""

MOST_SETS = 16
FEWEST_TURNS = 3

LEAST_SECONDS = 0.1
"""A shorter run is mostly overhead: it says nothing about larger volumes."""

GROWTH = 2.0
"""How many times as long a voxel may take in a larger volume, whose arrays no cache or free memory holds: two to five
times in what uses the most memory."""

LONG_TRIAL = 1.0
"""Seconds of a first run that need no second one: what is prepared at first is lost in them."""

_STREAM = "torch.add"
"""The memory's own speed takes turns with the contenders, under this name."""

REFERENCE_PATIENCE = 1 / 3
"""Of the others' patience: that the oracle is slow is known, and it runs once for every comparison anyway."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        rounds: turns of each contender.
        seconds_per_turn: of the runs that count; a faster contender runs again in its turn.
        patience: a contender whose single run takes, or is expected to take, more seconds than this is left out,
            unless it is the standard.
        budget: seconds for all turns of one contender, which take part in fewer rounds (but three) to keep it.
    """

    device: str = "cpu"
    rounds: int = 5
    seconds_per_turn: float = 0.05
    patience: float = 3.0
    budget: float = 2.0


@dataclass(frozen=True)
class _Ready:
    """A contender that passed its trial.

    Attributes:
        run: a step, on another input set each time.
        captured: a step on each input set, as a CUDA graph holds it.
        seconds, error, peak_extra_bytes: of its trial.
    """

    run: Run
    captured: list[Run]
    seconds: float
    error: Error
    peak_extra_bytes: int | None


@dataclass
class Session:
    """What one comparison learns for the next.

    Attributes:
        runs: what a contender took for how many voxels, so that none is started that would take too long.
        lost: why the GPU no longer works; None where it does.
    """

    runs: dict[object, tuple[float, int]] = field(default_factory=dict)
    lost: str | None = None

    def expect(self, case: Case, name: str) -> float:
        """Seconds that a run is expected to take, judged by another shape; 0 where none was measured."""
        seconds, voxels = self.runs.get(_kind(case, name), (0.0, case.voxels))
        return seconds * case.voxels / voxels * (GROWTH if case.voxels > voxels else 1)

    def note(self, case: Case, name: str, seconds: float) -> None:
        """Remember what a run took, if it took long enough for its voxels to count."""
        if seconds >= LEAST_SECONDS:
            self.runs[_kind(case, name)] = seconds, case.voxels


def _kind(case: Case, name: str) -> object:
    return case.op, len(case.shape), case.dtype, case.backward, case.window, case.scheme, name


def compare(case: Case, contenders: Sequence[Contender], plan: Plan, session: Session) -> dict[str, Outcome]:
    """Check and time the contenders of a case. One that fails takes no other with it.

    Returns:
        By name, what was measured, or the reason why nothing was.
    """
    torch.compiler.reset()  # a function that is compiled for too many shapes would silently run uncompiled
    outcomes: dict[str, Outcome] = {}
    try:
        if session.lost is not None:
            raise DeviceLost(session.lost)
        with third_party_warnings_ignored():
            _compare(case, contenders, plan, session, outcomes)
    except DeviceLost as lost:
        session.lost = str(lost)
        _say_lost(contenders, session.lost, outcomes)
    return {contender.name: outcomes[contender.name] for contender in contenders}


def _compare(
    case: Case, contenders: Sequence[Contender], plan: Plan, session: Session, outcomes: dict[str, Outcome]
) -> None:
    """Fill in the outcomes, as far as the device works."""
    prepared = attempt(_prepare, case, plan, session)
    if isinstance(prepared, Failure):
        gpu.survive(plan.device, f"the float64 reference failed for {case.op} {case.name}")
        reason, is_fault = f"the float64 reference fails with {prepared}", not prepared.is_lack_of_memory
        outcomes.update({c.name: NotMeasured(reason, is_fault=c.ours and is_fault) for c in contenders})
        return
    sets, oracle = prepared
    ready: dict[str, _Ready] = {}
    for contender in contenders:
        tried = attempt(_try, case, contender, sets, oracle, plan, session)
        if isinstance(tried, Failure):
            outcomes[contender.name] = _not_measured(contender, tried)
            if tried.kind is not Absent:
                gpu.survive(plan.device, f"{contender.name} failed for {case.op} {case.name} with {tried}")
        else:
            ready[contender.name] = tried
    if ready:
        by_name = {contender.name: contender for contender in contenders}
        _time(case, {name: (by_name[name], found) for name, found in ready.items()}, plan, outcomes)


def _prepare(case: Case, plan: Plan, session: Session) -> tuple[list[list[torch.Tensor]], Oracle]:
    """The input sets, and the reference's result for the first."""
    sets = _input_sets(case, plan.device)
    start = time.perf_counter()
    oracle = _oracle(case, sets[0], plan.device)
    session.note(case, REFERENCE, time.perf_counter() - start)
    if case.op == "mind" and oracle.gradient is not None:
        oracle = oracle._replace(is_defined=has_one_gradient(sets[0][0]).to(plan.device))
    return sets, oracle


def _oracle(case: Case, inputs: list[torch.Tensor], device: str) -> Oracle:
    """The reference's result; from the CPU where the GPU has too little memory for it."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return reference(LOSSES[case.op], inputs, **case.arguments)
    gpu.survive(device, "the float64 reference ran out of memory")
    loss, gradient, _ = reference(LOSSES[case.op], make_inputs(case, 0), **case.arguments)
    return Oracle(loss.to(device), None if gradient is None else gradient.to(device))


def _not_measured(contender: Contender, failure: Failure) -> NotMeasured:
    if failure.kind is Absent:
        return NotMeasured(failure.message)
    excused = failure.is_lack_of_memory or issubclass(failure.kind, uk.BackendError)
    return NotMeasured(f"fails with {failure}", is_fault=contender.ours and not excused)


def _say_lost(contenders: Sequence[Contender], reason: str, outcomes: dict[str, Outcome]) -> None:
    """The device broke: say so wherever something is missing. What was measured before stays."""
    for contender in contenders:
        outcome = outcomes.get(contender.name, NotMeasured(reason, is_fault=contender.ours))
        if isinstance(outcome, Measured) and outcome.on_gpu is None:
            outcome = replace(outcome, on_gpu=OnGpu(None, None, reason))
        outcomes[contender.name] = outcome


def _time(case: Case, ready: dict[str, tuple[Contender, _Ready]], plan: Plan, outcomes: dict[str, Outcome]) -> None:
    """Time those that are ready, in turns; on a GPU then each one's CUDA graph."""
    runs = {name: found.run for name, (_, found) in ready.items()}
    turns = {name: _turns(name, found.seconds, plan) for name, (_, found) in ready.items()}
    streams = _streams(case, plan.device)
    failures: dict[str, Failure] = {}
    times = interleave(
        {**runs, _STREAM: in_turn(streams)},
        {**turns, _STREAM: plan.rounds},
        plan.seconds_per_turn,
        plan.device,
        warm_up=False,
        failures=failures,
    )
    stream = times.pop(_STREAM, None)
    for name, (contender, found) in ready.items():
        if name in failures:
            outcomes[name] = _not_measured(contender, failures[name])
            continue
        exact = found.error.within_tolerance(case.dtype, contender.ours)
        outcomes[name] = Measured(
            times=times[name],
            error=found.error,
            exact=exact,
            wrong=contender.ours and not exact,
            peak_extra_bytes=found.peak_extra_bytes,
            streaming=None if stream is None else stream.median,
        )
    if plan.device == "cuda":
        _time_on_gpu({name: found for name, (_, found) in ready.items()}, streams, outcomes)


def _time_on_gpu(ready: dict[str, _Ready], streams: list[Run], outcomes: dict[str, Outcome]) -> None:
    """Add the device's and the CPU's part to what was measured."""
    streaming = on_gpu("torch.add", in_turn(streams), streams, 0.0).seconds
    for name, found in ready.items():
        outcome = outcomes[name]
        if isinstance(outcome, Measured):
            parts = on_gpu(name, found.run, found.captured, outcome.times.median)
            outcomes[name] = replace(outcome, on_gpu=parts, streaming_on_gpu=streaming)


def _turns(name: str, seconds: float, plan: Plan) -> int:
    length = turn_length(seconds, plan.seconds_per_turn)
    few = FEWEST_TURNS if name == REFERENCE else plan.rounds  # it is there to be right
    return min(plan.rounds, few, max(FEWEST_TURNS, int(plan.budget / length)))


def _try(
    case: Case, contender: Contender, sets: list[list[torch.Tensor]], oracle: Oracle, plan: Plan, session: Session
) -> _Ready:
    """A contender's runs, and what one or two of them showed; Absent where it cannot or may not take part."""
    expected = session.expect(case, contender.name)
    patience = float("inf") if contender.standard else plan.patience
    if contender.name == REFERENCE:
        patience *= REFERENCE_PATIENCE
    if expected > patience:
        raise Absent(f"about {expected:.2g} s a run are expected; --bench-patience gives it {patience:g}")
    try:
        loss = contender.build(case)
        first = step(loss, *sets[0])
        values: list[torch.Tensor] = []
        peak, seconds = peak_extra_bytes(lambda: values.append(first()), plan.device)
        error = error_of(values.pop(), sets[0][0].grad, oracle)
        if contender.compiles or seconds < LONG_TRIAL:
            sets[0][0].grad = None  # else the memory of the next gradient would not count as new
            peak, seconds = peak_extra_bytes(first, plan.device)
    finally:
        sets[0][0].grad = None
    session.note(case, contender.name, seconds)
    if seconds > patience:
        raise Absent(f"{seconds:.2g} s a run; --bench-patience gives it {patience:g}")
    return _Ready(
        run=in_turn([step(loss, *inputs) for inputs in sets]),
        captured=[graph_step(loss, *inputs) for inputs in sets],
        seconds=seconds,
        error=error,
        peak_extra_bytes=peak,
    )


def in_turn(runs: Sequence[Run]) -> Run:
    """One of the runs each time."""
    forever = cycle(runs)
    return lambda: next(forever)()


def _input_sets(case: Case, device: str) -> list[list[torch.Tensor]]:
    return [make_inputs(case, seed, device) for seed in range(set_count(case.least_bytes))]


def set_count(size: int, most: int = MOST_SETS) -> int:
    """How many input sets of so many bytes no cache holds together; at least two."""
    return min(most, max(2, -(-CACHE_BYTES // size)))


def _streams(case: Case, device: str) -> list[Run]:
    """Reading two tensors of the case's shape and writing a third: what the memory can do. One run for each set."""

    def run(first: torch.Tensor, second: torch.Tensor, result: torch.Tensor) -> Run:
        return lambda: torch.add(first, second, out=result)

    count = set_count(case.least_bytes)
    return [run(*(torch.ones(case.shape, dtype=case.dtype, device=device) for _ in range(3))) for _ in range(count)]


def streamed_bytes(case: Case) -> int:
    """What ``torch.add`` of two tensors of the case's shape moves."""
    return 3 * case.dtype.itemsize * torch.Size(case.shape).numel()

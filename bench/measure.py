"""One comparison: check every contender against the float64 reference, then time those that run, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch

import usreg_kernels as uk
from bench.cases import FUNCTIONS, Case, Loss, make_inputs
from bench.contenders import REFERENCE, Absent, Contender, third_party_warnings_ignored
from bench.memory import peak_extra_bytes
from bench.timing import Run, Times, interleave, turn_length

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

REFERENCE_PATIENCE = 1 / 3
"""Of the others' patience: that the oracle is slow is known, and it runs once for every comparison anyway."""

LOSS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative errors above which a result counts as inexact; a gradient is rounded to its input's dtype."""


class WrongResult(Exception):
    """One of our backends is wrong: nothing of its comparison may be shown."""


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
class Error:
    """Relative errors against the float64 reference; the gradient's is that of its L2 norm, None without one."""

    loss: float
    gradient: float | None

    def within_tolerance(self, dtype: torch.dtype) -> bool:
        """Whether the result counts as exact for inputs of this dtype; NaN does not."""
        return self.loss <= LOSS_TOLERANCE[dtype] and (
            self.gradient is None or self.gradient <= GRADIENT_TOLERANCE[dtype]
        )


@dataclass(frozen=True)
class Measured:
    """What was found about one contender."""

    times: Times
    error: Error
    exact: bool
    peak_extra_bytes: int | None
    streaming_bytes_per_second: float


@dataclass(frozen=True)
class _Trial:
    """What the runs before the timed ones showed."""

    seconds: float
    error: Error
    peak_extra_bytes: int | None


@dataclass
class Session:
    """What one comparison learns for the next: what a contender took for how many voxels, so that none is waited for in
    vain."""

    runs: dict[object, tuple[float, int]] = field(default_factory=dict)

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


def step(loss: Loss, *inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One forward pass and, where an input needs a gradient, the backward pass."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def run() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*inputs)
        if leaves:
            value.backward()
        return value

    return run


def compare(case: Case, contenders: Sequence[Contender], plan: Plan, session: Session) -> dict[str, Measured | str]:
    """Check and time the contenders of a case.

    Returns:
        By name, what was measured, or the reason why nothing was.

    Raises:
        WrongResult: one of our backends differs from the reference.
    """
    torch.compiler.reset()  # a function that is compiled for too many shapes would silently run uncompiled
    sets = _input_sets(case, plan.device)
    start = time.perf_counter()
    oracle = _reference(case, sets[0])
    session.note(case, REFERENCE, time.perf_counter() - start)
    outcomes: dict[str, Measured | str] = {}
    runs: dict[str, Run] = {}
    checked: dict[str, tuple[Error, bool, int | None]] = {}
    turns: dict[str, int] = {}
    with third_party_warnings_ignored():
        for contender in contenders:
            name = contender.name
            try:
                run, trial = _try(case, contender, sets, oracle, plan, session)
            except Absent as absent:
                outcomes[name] = str(absent)
                continue
            exact = trial.error.within_tolerance(case.dtype)
            if contender.ours and not exact:
                raise WrongResult(f"{name} is wrong for {case.op} {case.name}: {trial.error}")
            checked[name] = trial.error, exact, trial.peak_extra_bytes
            runs[name] = run
            length = turn_length(trial.seconds, plan.seconds_per_turn)
            few = FEWEST_TURNS if name == REFERENCE else plan.rounds  # it is there to be right
            turns[name] = min(plan.rounds, few, max(FEWEST_TURNS, int(plan.budget / length)))
        if runs:
            stream = _streaming(case, plan.device)
            times = interleave(
                {**runs, "": stream}, {**turns, "": plan.rounds}, plan.seconds_per_turn, plan.device, warm_up=False
            )
            bandwidth = _streamed_bytes(case) / times.pop("").median
            for name, found in times.items():
                outcomes[name] = Measured(found, *checked[name], bandwidth)
    return outcomes


def _try(
    case: Case,
    contender: Contender,
    sets: list[list[torch.Tensor]],
    oracle: tuple[torch.Tensor, torch.Tensor | None],
    plan: Plan,
    session: Session,
) -> tuple[Run, _Trial]:
    """A contender's run over all input sets in turn, and what one or two showed; Absent where it cannot or may not."""
    expected = session.expect(case, contender.name)
    patience = float("inf") if contender.standard else plan.patience
    if contender.name == REFERENCE:
        patience *= REFERENCE_PATIENCE
    if expected > patience:
        raise Absent(f"about {expected:.2g} s a run are expected; --bench-patience gives it {patience:g}")
    try:
        loss = contender.build(case)
        run = step(loss, *sets[0])
        values: list[torch.Tensor] = []
        peak, seconds = peak_extra_bytes(lambda: values.append(run()), plan.device)
        error = _error(values.pop(), sets[0][0].grad, oracle)
        if contender.compiles or seconds < LONG_TRIAL:
            sets[0][0].grad = None  # else the memory of the next gradient would not count as new
            peak, seconds = peak_extra_bytes(run, plan.device)
    except Absent:
        raise
    except Exception as failure:
        if contender.ours and not isinstance(failure, uk.BackendError | torch.OutOfMemoryError):
            raise WrongResult(f"{contender.name} fails for {case.op} {case.name}: {failure}") from failure
        raise Absent(f"fails with {type(failure).__name__}: {_first_line(failure)}") from failure
    finally:
        sets[0][0].grad = None
    session.note(case, contender.name, seconds)
    if seconds > patience:
        raise Absent(f"{seconds:.2g} s a run; --bench-patience gives it {patience:g}")
    steps = cycle([step(loss, *inputs) for inputs in sets])
    return lambda: next(steps)(), _Trial(seconds, error, peak)


def _input_sets(case: Case, device: str) -> list[list[torch.Tensor]]:
    return [make_inputs(case, seed, device) for seed in range(_set_count(case))]


def _set_count(case: Case) -> int:
    return min(MOST_SETS, max(2, -(-CACHE_BYTES // case.least_bytes)))


def _reference(case: Case, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss and the first input's gradient in float64."""
    oracle = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    with uk.use_backend("reference"):
        value = step(lambda *tensors: FUNCTIONS[case.op](*tensors, **case.arguments), *oracle)()
    return value.detach(), oracle[0].grad


def _error(
    value: torch.Tensor, gradient: torch.Tensor | None, oracle: tuple[torch.Tensor, torch.Tensor | None]
) -> Error:
    expected, wanted = oracle
    loss = ((value.detach().double() - expected).abs() / expected.abs()).item()
    if wanted is None or gradient is None:
        return Error(loss, None if wanted is None else float("inf"))
    return Error(loss, ((gradient.double() - wanted).norm() / wanted.norm()).item())


def _streaming(case: Case, device: str) -> Run:
    """Reading two tensors of the case's shape and writing a third: what the memory can do."""
    triples = cycle(
        [[torch.ones(case.shape, dtype=case.dtype, device=device) for _ in range(3)] for _ in range(_set_count(case))]
    )

    def run() -> None:
        first, second, result = next(triples)
        torch.add(first, second, out=result)

    return run


def _streamed_bytes(case: Case) -> int:
    return 3 * case.dtype.itemsize * torch.Size(case.shape).numel()


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0]

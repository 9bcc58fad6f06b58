"""Interleaved timing: contenders take turns, so that a busy machine slows them all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch

Run = Callable[[], object]

RUNS_PER_TURN = 200
"""The most runs of one contender that count in one turn: results stay small, however fast it is."""

FEWEST_UNCOUNTED = 2
"""Runs at the beginning of a turn that do not count: one for each set of large inputs, whose gradients lie apart."""

LONG_RUN = 5.0
"""A run that takes this many times a turn is a turn by itself: what the contender before left behind is lost in it."""


@dataclass
class Times:
    """Seconds of each run of one contender.

    Attributes:
        wall: wall-clock time; on a GPU, the time between two events around the run.
        cpu: CPU time of all threads of the process, of all runs together: kernels count it in ticks of milliseconds,
            which a single run may be shorter than. On a GPU, that of the launches.
    """

    wall: list[float] = field(default_factory=list)
    cpu: float = 0.0

    @property
    def median(self) -> float:
        """Median wall-clock time."""
        return median(self.wall)

    @property
    def cpu_per_run(self) -> float:
        """Mean CPU time."""
        return self.cpu / len(self.wall)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles over the median."""
        ordered = sorted(self.wall)
        return (ordered[(3 * len(ordered)) // 4] - ordered[len(ordered) // 4]) / 2 / self.median


def interleave(
    contenders: Mapping[str, Run],
    rounds: int | Mapping[str, int],
    seconds_per_turn: float = 0.0,
    device: str = "cpu",
    warm_up: bool = True,
) -> dict[str, Times]:
    """Time each contender in turn.

    A turn begins with runs that do not count, :data:`FEWEST_UNCOUNTED` or more and for half of ``seconds_per_turn``:
    they find the caches and the free memory as the contender before left them, and may take many times as long as the
    next.

    Args:
        contenders: what to run, by name.
        rounds: turns of each; with a number per name, a slow contender takes part in the first rounds alone.
        seconds_per_turn: a contender that is done sooner runs again in its turn, so that fast ones have many samples.
            If even its fastest run takes :data:`LONG_RUN` times as long, as any does with 0, its turn is one run, which
            counts.
        device: ``"cuda"`` times with events, and waits for the device after each turn.
        warm_up: run each once before, which does not count.
    """
    turns = rounds if isinstance(rounds, Mapping) else dict.fromkeys(contenders, rounds)
    take_turn = _turn_on_gpu if device == "cuda" else _turn_on_cpu
    times = {name: Times() for name in contenders}
    with _no_garbage_collection():
        for run in contenders.values() if warm_up else ():
            take_turn(run, 0.0, Times())
        for turn in range(max(turns.values())):
            for name, run in contenders.items():
                if turn < turns[name]:
                    take_turn(run, seconds_per_turn, times[name])
                    gc.collect(0)
    return times


def turn_length(run_seconds: float, seconds_per_turn: float) -> float:
    """Seconds that a turn takes of a contender whose runs take ``run_seconds``."""
    if run_seconds >= LONG_RUN * seconds_per_turn:
        return run_seconds
    return max(FEWEST_UNCOUNTED * run_seconds, seconds_per_turn / 2) + max(run_seconds, seconds_per_turn)


def _turn_on_cpu(run: Run, seconds: float, times: Times) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    run()
    first = time.perf_counter() - start
    if min([first, *times.wall]) >= LONG_RUN * seconds:
        times.wall.append(first)
        times.cpu += time.process_time() - cpu
        return
    uncounted = 1
    while uncounted < FEWEST_UNCOUNTED or time.perf_counter() < start + seconds / 2:
        run()
        uncounted += 1
    cpu = time.process_time()
    start = now = time.perf_counter()
    for _ in range(RUNS_PER_TURN):
        run()
        before, now = now, time.perf_counter()
        times.wall.append(now - before)
        if now >= start + seconds:
            break
    times.cpu += time.process_time() - cpu


def _turn_on_gpu(run: Run, seconds: float, times: Times) -> None:
    """All runs of the turn that count are launched before the first is waited for, as in training."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    cpu, events = time.process_time(), [_between_events(run)]
    cpu = time.process_time() - cpu
    torch.cuda.synchronize()
    last = time.perf_counter() - start
    if min([last, *times.wall]) < LONG_RUN * seconds:
        uncounted = 1
        while (before := time.perf_counter()) < start + seconds / 2 or uncounted < FEWEST_UNCOUNTED:
            run()
            torch.cuda.synchronize()
            last = time.perf_counter() - before
            uncounted += 1
        cpu = time.process_time()
        events = [_between_events(run) for _ in range(min(RUNS_PER_TURN, max(1, int(seconds / last))))]
        cpu = time.process_time() - cpu
        torch.cuda.synchronize()
    times.cpu += cpu
    times.wall += [first.elapsed_time(second) / 1e3 for first, second in events]


def _between_events(run: Run) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    second.record()
    return first, second


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

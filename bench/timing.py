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

RUNS_PER_TURN = 10
"""The most runs of one contender in one turn: results stay small, however fast it is."""


@dataclass
class Times:
    """Seconds of each run of one contender.

    Attributes:
        wall: wall-clock time; on a GPU, the time between two events around the run.
        cpu: CPU time of all threads of the process.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median wall-clock time."""
        return median(self.wall)

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

    Args:
        contenders: what to run, by name.
        rounds: turns of each; with a number per name, a slow contender takes part in the first rounds alone.
        seconds_per_turn: a contender that is done sooner runs again in its turn, so that fast ones have many samples.
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


def _turn_on_cpu(run: Run, seconds: float, times: Times) -> None:
    end = time.perf_counter() + seconds
    for _ in range(RUNS_PER_TURN):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times.wall.append(time.perf_counter() - wall)
        times.cpu.append(time.process_time() - cpu)
        if time.perf_counter() >= end:
            return


def _turn_on_gpu(run: Run, seconds: float, times: Times) -> None:
    """All runs of the turn are launched before the first is waited for, as in training."""
    torch.cuda.synchronize()
    end = time.perf_counter() + seconds
    events = []
    for _ in range(RUNS_PER_TURN):
        cpu = time.process_time()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        times.cpu.append(time.process_time() - cpu)
        events.append((start, stop))
        if time.perf_counter() >= end:
            break
    torch.cuda.synchronize()
    times.wall += [start.elapsed_time(stop) / 1e3 for start, stop in events]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

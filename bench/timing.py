"""Interleaved timing: contenders take turns, so that a busy machine slows them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Times:
    """Seconds of each run of one contender.

    Attributes:
        wall: wall-clock time.
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
    contenders: Mapping[str, Callable[[], object]], rounds: int, seconds_per_turn: float = 0.0
) -> dict[str, Times]:
    """Time each contender in turn, ``rounds`` times over, after one turn that does not count.

    Args:
        contenders: what to run, by name.
        rounds: turns that count.
        seconds_per_turn: a contender that is done sooner runs again in its turn, so that fast ones have many samples.
    """
    times = {name: Times() for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            end = time.perf_counter() + seconds_per_turn
            while True:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if turn:
                    times[name].wall.append(wall)
                    times[name].cpu.append(cpu)
                if time.perf_counter() >= end:
                    break
    return times

"""Clocks for kernels. On a GPU, times come from CUDA graphs: launches and the L2 cache do not count.

A clock is an object, so that a test or a trial without a GPU replaces it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

import torch

from bench import gpu

Run = Callable[[], object]


class Clock(Protocol):
    """What measurements need of a device.

    Attributes:
        device: where tensors live: ``"cuda"`` or ``"cpu"``.
        cache_bytes: what input sets must exceed together, so that no cache holds them from one run to the next.
    """

    device: str
    cache_bytes: int

    def seconds(self, runs: Sequence[Run]) -> float:
        """Seconds of a run on the device, launches left out: the median over rounds of all runs in a row."""

    def loop(self, runs: Sequence[Run]) -> tuple[float, float]:
        """Seconds of a run in a Python loop, as training runs it; and the CPU's share, which launches it."""

    def held_bytes(self, run: Callable[[], object]) -> int:
        """Bytes that the result of a run keeps alive on the device."""

    def kernels(self, run: Run) -> dict[str, float]:
        """Seconds of each kernel that a run starts, by name."""

    def lost(self) -> str | None:
        """Why the device no longer works, as after an illegal memory access; None where it does."""


class GraphClock:
    """The clock of the current GPU."""

    device = "cuda"

    def __init__(self, budget: float = 0.1, most_rounds: int = 200) -> None:
        """Measure for about ``budget`` seconds, in at most ``most_rounds`` rounds."""
        self.budget, self.most_rounds = budget, most_rounds
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes = 5 * getattr(properties, "L2_cache_size", 50 * 2**20)

    def seconds(self, runs: Sequence[Run]) -> float:
        """Replays of a CUDA graph of all runs, as the benchmark times them."""
        gpu.rehearse(runs)
        replay = gpu.capture(runs)
        first = gpu.elapsed(replay)
        rounds = max(5, min(self.most_rounds, int(self.budget / first)))
        return median(gpu.elapsed(replay) for _ in range(rounds)) / len(runs)

    def loop(self, runs: Sequence[Run]) -> tuple[float, float]:
        """Wall time around many runs without a pause between them, and until the CPU had launched the last one."""
        for run in runs:
            run()
        torch.cuda.synchronize()
        whole, _ = _wall(runs, 1)
        return _wall(runs, max(1, min(self.most_rounds, int(self.budget / (whole * len(runs))))))

    def held_bytes(self, run: Callable[[], object]) -> int:
        """By torch's own count, which rounds each tensor up to 512 bytes."""
        run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        result = run()
        held = torch.cuda.memory_allocated() - before
        del result
        return held

    def kernels(self, run: Run) -> dict[str, float]:
        """By torch's profiler, which needs no permission to read hardware counters."""
        run()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for event in profile.events() or ():
            if event.device_type.name == "CUDA":
                found[event.name] += event.time_range.elapsed_us() / 1e6
        return dict(found)

    def lost(self) -> str | None:
        """By a tiny computation, after an earlier failure has given back its memory."""
        gpu.free_memory()
        return gpu.failure()


class TrialClock:
    """A clock for a trial without a GPU: everything runs once on the CPU, and times mean nothing."""

    device = "cpu"
    cache_bytes = 0

    def seconds(self, runs: Sequence[Run]) -> float:
        """The wall time of the first run."""
        start = time.perf_counter()
        runs[0]()
        return time.perf_counter() - start

    def loop(self, runs: Sequence[Run]) -> tuple[float, float]:
        """The wall time of the first run, twice."""
        seconds = self.seconds(runs)
        return seconds, seconds

    def held_bytes(self, run: Callable[[], object]) -> int:
        """Nothing: a CPU's memory is not counted."""
        run()
        return 0

    def kernels(self, run: Run) -> dict[str, float]:
        """One entry for all of the run."""
        return {"everything": self.seconds([run])}

    def lost(self) -> str | None:
        """Never."""
        return None


def _wall(runs: Sequence[Run], rounds: int) -> tuple[float, float]:
    """Seconds of a run, and the seconds that launching it took."""
    start = time.perf_counter()
    for _ in range(rounds):
        for run in runs:
            run()
    launched = time.perf_counter() - start
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / (rounds * len(runs)), launched / (rounds * len(runs))

"""Interleaved timing: contenders take turns, so that a busy machine slows them all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from bench import gpu
from bench.failures import Failure, attempt
from bench.gpu import Run

RUNS_PER_TURN = 200
"""The most runs of one contender that count in one turn: results stay small, however fast it is."""

FEWEST_UNCOUNTED = 2
"""Runs at the beginning of a turn that do not count: one for each set of large inputs, whose gradients lie apart."""

LONG_RUN = 5.0
"""A run that takes this many times a turn is a turn by itself: what the contender before left behind is lost in it."""

GPU_SECONDS = 0.1
"""For the replays of a CUDA graph, and again for the launches."""

LAUNCHES_IN_A_ROW = 8
"""Runs that are launched before the device is waited for. Many more would fill its queue, and a launch would wait."""

FEWEST_REPLAYS, MOST_REPLAYS = 5, 100

LONGEST_CAPTURED = 0.1
"""Seconds of a run above which launches do not count, and no CUDA graph is made."""


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


@dataclass(frozen=True)
class OnGpu:
    """What a run takes on a GPU, without what its launches take.

    Attributes:
        seconds: of the device for one run, from a CUDA graph of runs over all input sets; None without a graph.
        launch_seconds: until the call returns, nothing waited for: the CPU's part. None where a run waits.
        reason: why there is no graph; None where there is one.
    """

    seconds: float | None
    launch_seconds: float | None
    reason: str | None = None


def on_gpu(name: str, run: Run, captured: Sequence[Run], seconds: float) -> OnGpu:
    """Measure the device's and the CPU's part of a run.

    Args:
        name: of the contender, for the message where it breaks the device.
        run: as training runs it; its launches are timed.
        captured: the run on each input set, so that the L2 cache flatters nobody; they go into one graph.
        seconds: that a run is known to take.

    Raises:
        DeviceLost: the device does not work any more.
    """
    if seconds > LONGEST_CAPTURED:
        return OnGpu(None, None, f"a run takes more than {LONGEST_CAPTURED:g} s: launches do not count")
    rehearsed = attempt(gpu.rehearse, captured)
    if isinstance(rehearsed, Failure) and rehearsed.kind is gpu.Waits:
        gpu.survive("cuda", f"{name} waited for it")
        return OnGpu(None, None, rehearsed.message)
    launch = attempt(_launch_seconds, run)
    found = rehearsed if isinstance(rehearsed, Failure) else attempt(_replay_seconds, captured)
    gpu.survive("cuda", f"the CUDA graph of {name}")  # also gives the graph's memory back
    known = None if isinstance(launch, Failure) else launch
    if isinstance(found, Failure):
        return OnGpu(None, known, f"no CUDA graph: {found}")
    return OnGpu(found, known)


def _launch_seconds(run: Run) -> float:
    """Median seconds until a run's call returns."""
    found: list[float] = []
    with _no_garbage_collection():
        end = time.perf_counter() + GPU_SECONDS
        while not found or time.perf_counter() < end:
            gpu.wait()
            for _ in range(LAUNCHES_IN_A_ROW):
                start = time.perf_counter()
                run()
                found.append(time.perf_counter() - start)
    gpu.wait()
    return median(found)


def _replay_seconds(runs: Sequence[Run]) -> float:
    """Median seconds of one of the runs in a replay of all."""
    replay = gpu.capture(runs)
    gpu.elapsed(replay)  # the first replay also uploads the graph
    repeats = int(GPU_SECONDS / max(gpu.elapsed(replay), 1e-9))
    repeats = min(MOST_REPLAYS, max(FEWEST_REPLAYS, repeats))
    return median(gpu.elapsed(replay) for _ in range(repeats)) / len(runs)


def interleave(
    contenders: Mapping[str, Run],
    rounds: int | Mapping[str, int],
    seconds_per_turn: float = 0.0,
    device: str = "cpu",
    warm_up: bool = True,
    failures: dict[str, Failure] | None = None,
) -> dict[str, Times]:
    """Time each contender in turn.

    A turn begins with runs that do not count, :data:`FEWEST_UNCOUNTED` or more and for half of ``seconds_per_turn``:
    they find the caches and the free memory as the contender before left them, and may take many times as long as the
    next.

    Args:
        contenders: what to run, by name.
        rounds: turns of each; with a number per name, a slow contender takes part only in the first rounds.
        seconds_per_turn: a contender that is done sooner runs again in its turn, so that fast ones have many samples.
            If even its fastest run takes :data:`LONG_RUN` times as long, as any does with 0, its turn is one run, which
            counts.
        device: ``"cuda"`` times with events, and waits for the device after each turn.
        warm_up: run each once before, which does not count.
        failures: where a contender that raises is noted; the others go on without it, and it has no times. Where this
            is None the exception ends everything.

    Raises:
        DeviceLost: a contender failed, and the GPU does not work any more.
    """
    turns = rounds if isinstance(rounds, Mapping) else dict.fromkeys(contenders, rounds)
    runs = dict(contenders)
    times = {name: Times() for name in runs}

    def take_turn(name: str, seconds: float, into: Times) -> None:
        turn_on = _turn_on_gpu if device == "cuda" else _turn_on_cpu
        if failures is None:
            turn_on(runs[name], seconds, into)
        elif isinstance(failure := attempt(turn_on, runs[name], seconds, into), Failure):
            failures[name] = failure
            del runs[name], times[name]
            gpu.survive(device, f"{name} failed in its turn with {failure}")

    with _no_garbage_collection():
        for name in tuple(runs) if warm_up else ():
            take_turn(name, 0.0, Times())
        for turn in range(max(turns.values(), default=0)):
            for name in tuple(runs):
                if turn < turns[name]:
                    take_turn(name, seconds_per_turn, times[name])
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
    gpu.wait()
    start = time.perf_counter()
    cpu, events = time.process_time(), [gpu.between_events(run)]
    cpu = time.process_time() - cpu
    gpu.wait()
    last = time.perf_counter() - start
    if min([last, *times.wall]) < LONG_RUN * seconds:
        uncounted = 1
        while (before := time.perf_counter()) < start + seconds / 2 or uncounted < FEWEST_UNCOUNTED:
            run()
            gpu.wait()
            last = time.perf_counter() - before
            uncounted += 1
        cpu = time.process_time()
        events = [gpu.between_events(run) for _ in range(min(RUNS_PER_TURN, max(1, int(seconds / last))))]
        cpu = time.process_time() - cpu
        gpu.wait()
    times.cpu += cpu
    times.wall += [first.elapsed_time(second) / 1e3 for first, second in events]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

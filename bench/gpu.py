"""What the benchmark asks of the GPU. The tests put stand-ins in the place of these functions."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from bench.failures import Failure, attempt

Run = Callable[[], object]

EXPECTED = 3.0
"""What :func:`failure` computes on the device."""


class DeviceLost(Exception):
    """The GPU answers no more, as after an illegal memory access: this process can measure nothing else on it."""


class Waits(Exception):
    """A run waits for the device, so that no CUDA graph can hold it."""


def wait() -> None:
    """Until the device is done."""
    torch.cuda.synchronize()


def between_events(run: Run) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Launch a run between two events, and do not wait for it."""
    first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    second.record()
    return first, second


def elapsed(run: Run) -> float:
    """The device's seconds for a run.

    The same run goes ahead of it: the device is busy with that while the CPU launches the one that counts.
    """
    run()
    first, second = between_events(run)
    wait()
    return first.elapsed_time(second) / 1e3


def most_memory(run: Run) -> int:
    """The most bytes that torch's allocator gives out during a run, beyond those that it gave out before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    wait()
    return torch.cuda.max_memory_allocated() - before


def rehearse(runs: Sequence[Run]) -> None:
    """Run everything twice on a side stream, as a capture asks for.

    A failed capture leaves torch before 2.12 with memory that it never gives back. So the second time finds out
    beforehand who would fail.

    Raises:
        Waits: torch had to wait for the device in a run.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for run in runs:
                run()
            with _no_waiting():
                for run in runs:
                    run()
    finally:
        torch.cuda.synchronize()


def capture(runs: Sequence[Run]) -> Run:
    """Capture the runs, one after the other, in a CUDA graph; the result replays it.

    What the runs return stays alive until all are captured, so that their gradients lie apart, as in training.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run() for run in runs]
    del results
    return graph.replay


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # of a lost device; failure() says so
            torch.cuda.empty_cache()


def failure() -> str | None:
    """Why the device no longer works; None where it does."""
    found = attempt(lambda: torch.full((3,), EXPECTED / 3, device="cuda").sum().item())
    if isinstance(found, Failure):
        return str(found)
    return None if found == EXPECTED else f"the sum of three times {EXPECTED / 3:g} is {found:g}"


def survive(device: str, event: str) -> None:
    """After something failed: free its memory, and find out whether the device still works.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        event: what failed, in words.

    Raises:
        DeviceLost: it does not.
    """
    free_memory()
    if device == "cuda" and (reason := failure()) is not None:
        raise DeviceLost(f"the GPU no longer works ({reason}) since {event}; measure the others in a run of their own")


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Waiting for the device raises."""
    previous = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            if "synchronizing" in str(error):
                raise Waits("waits for the device") from None
            raise
        finally:
            torch.cuda.set_sync_debug_mode(previous)

"""The clock of a GPU, on a pretended ``torch.cuda``."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest

from bench import gpu as bench_gpu
from tools.gpu import clock as clocks


class FakeCuda:
    """As much of torch.cuda as the clock uses. A replay takes 1 ms of the device's time for each run in the graph."""

    def __init__(self) -> None:
        self.now, self.captured, self.replays, self.allocated = 0.0, 0, 0, 1000
        fake = self

        class Graph:
            def replay(self) -> None:
                fake.replays += 1
                fake.now += 1e-3 * fake.captured

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.time = 0.0

            def record(self) -> None:
                self.time = fake.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.time - self.time)

        self.CUDAGraph, self.Event, self.Stream = Graph, Event, mock.Mock
        self.current_stream = mock.Mock()
        self.graph = self.stream = lambda thing: nullcontext()
        self.synchronize = self.empty_cache = lambda: None
        self.current_device = lambda: 0
        self.get_device_properties = lambda device: SimpleNamespace(L2_cache_size=50 * 2**20)
        self.memory_allocated = lambda: self.allocated
        self.get_sync_debug_mode = lambda: 0
        self.set_sync_debug_mode = lambda mode: None


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """torch.cuda for the clock only."""
    cuda = FakeCuda()
    for module in (clocks, bench_gpu):
        monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_the_clock_of_a_gpu_replays_graphs(fake_cuda: FakeCuda) -> None:
    clock = clocks.GraphClock(budget=0.1, most_rounds=40)
    assert clock.cache_bytes == 250 * 2**20
    started = []
    fake_cuda.captured = 2
    assert clock.seconds([lambda: started.append(1), lambda: started.append(2)]) == pytest.approx(1e-3)
    assert started == [1, 2] * 3  # twice to warm up, once captured
    assert fake_cuda.replays == 2 * (1 + 40)  # one goes ahead of each that counts
    whole, launch = clock.loop([lambda: time.sleep(0.01)])
    assert whole >= launch >= 0.01


def test_the_clock_of_a_gpu_counts_memory(fake_cuda: FakeCuda) -> None:
    clock = clocks.GraphClock()

    class Maps:
        def __init__(self) -> None:
            fake_cuda.allocated += 512

        def __del__(self) -> None:
            fake_cuda.allocated -= 512

    assert clock.held_bytes(Maps) == 512
    assert fake_cuda.allocated == 1000


def test_the_clock_of_a_gpu_notices_a_lost_device(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "free_memory", lambda: None)
    monkeypatch.setattr(bench_gpu, "failure", lambda: "an illegal memory access")
    assert clocks.GraphClock().lost() == "an illegal memory access"

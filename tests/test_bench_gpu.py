"""The benchmark's part for GPUs, on a stand-in for ``bench.gpu`` that runs everything on the CPU."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import conftest, gpu, measure, steps, timing
from bench import test_bench_overhead as overhead
from bench.cases import Case, make_inputs
from bench.contenders import Contender
from bench.measure import Plan, Session, compare
from bench.outcomes import Measured, NotMeasured
from bench.timing import OnGpu, on_gpu

CASE = Case("dvf_mse", (1, 3, 6, 7, 8))
PLAN = Plan(device="cuda", rounds=2, seconds_per_turn=0.0)
EXACT = Contender("exact", lambda case: torch.nn.functional.mse_loss)
REPLAY = 0.006
"""Seconds that a replay takes on the stand-in."""


class StandIn:
    """A GPU whose graphs are lists, and that breaks where a run says so.

    Attributes:
        broken: what every call answers from then on; None where it works.
        captured: how many runs each graph held.
    """

    def __init__(self) -> None:
        self.broken: str | None = None
        self.captured: list[int] = []

    def between_events(self, run: gpu.Run) -> tuple[Any, Any]:
        class Event:
            def elapsed_time(self, other: Any) -> float:
                return 1e3 * REPLAY

        run()
        return Event(), Event()

    def wait(self) -> None:
        if self.broken is not None:
            raise RuntimeError(self.broken)

    def most_memory(self, run: gpu.Run) -> int:
        run()
        return 0

    def rehearse(self, runs: Sequence[gpu.Run]) -> None:
        for run in runs:
            if getattr(run(), "waits", False):
                raise gpu.Waits("waits for the device")

    def capture(self, runs: Sequence[gpu.Run]) -> gpu.Run:
        self.captured.append(len([run() for run in runs]))
        return lambda: None

    def failure(self) -> str | None:
        return self.broken


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    for name in ("between_events", "wait", "most_memory", "rehearse", "capture", "failure"):
        monkeypatch.setattr(gpu, name, getattr(found, name))
    monkeypatch.setattr(timing, "GPU_SECONDS", 0.001)
    streams = measure._streams
    monkeypatch.setattr(measure, "make_inputs", lambda case, seed, device="cpu": make_inputs(case, seed))
    monkeypatch.setattr(measure, "_streams", lambda case, device: streams(case, "cpu"))
    return found


def test_a_graph_holds_a_run_on_every_input_set(device: StandIn) -> None:
    runs = [lambda: None for _ in range(3)]
    found = on_gpu("any", runs[0], runs, 0.0)
    assert device.captured == [3]
    assert found.seconds == pytest.approx(REPLAY / 3)
    assert found.launch_seconds is not None
    assert found.reason is None


def test_launches_are_timed_without_the_wait(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "wait", lambda: time.sleep(0.02))
    found = on_gpu("any", lambda: time.sleep(0.001), [lambda: None], 0.0)
    assert found.launch_seconds == pytest.approx(0.001, abs=0.01)


def _waiting() -> Any:
    result = type("Result", (), {})()
    result.waits = True
    return result


def test_who_waits_for_the_device_has_neither_a_graph_nor_launches(device: StandIn) -> None:
    assert on_gpu("any", _waiting, [_waiting], 0.0) == OnGpu(None, None, "waits for the device")
    assert not device.captured


def test_who_cannot_be_captured_says_why(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(runs: Sequence[gpu.Run]) -> gpu.Run:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(gpu, "capture", refuse)
    found = on_gpu("any", lambda: None, [lambda: None], 0.0)
    assert found.seconds is None
    assert found.launch_seconds is not None
    assert found.reason == "no CUDA graph: RuntimeError: operation not permitted when stream is capturing"


def test_long_runs_need_no_graph(device: StandIn) -> None:
    found = on_gpu("any", lambda: None, [lambda: None], 2 * timing.LONGEST_CAPTURED)
    assert found.seconds is None
    assert not device.captured


def test_a_comparison_on_a_gpu_holds_both_parts(device: StandIn) -> None:
    found = compare(CASE, [EXACT], PLAN, Session())["exact"]
    assert isinstance(found, Measured)
    assert found.on_gpu is not None
    assert found.on_gpu.seconds == pytest.approx(REPLAY / measure.MOST_SETS)
    assert found.streaming_on_gpu == pytest.approx(REPLAY / measure.MOST_SETS)
    assert device.captured == [measure.MOST_SETS] * 2  # torch.add, and the contender


def test_the_reference_moves_to_the_cpu_where_the_gpu_is_too_small(
    device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.device] = []

    def reference(function: Callable, inputs: Sequence[torch.Tensor], **arguments: Any) -> steps.Oracle:
        calls.append(inputs[0].device)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("too large")
        return steps.reference(function, inputs, **arguments)

    monkeypatch.setattr(measure, "reference", reference)
    loss, gradient, _ = measure._oracle(CASE, make_inputs(CASE, 0), "cpu")
    assert len(calls) == 2
    expected = steps.reference(measure.LOSSES[CASE.op], make_inputs(CASE, 0))
    torch.testing.assert_close((loss, gradient), expected[:2])


def test_what_is_recorded_of_a_gpu(device: StandIn) -> None:
    found = compare(CASE, [EXACT], PLAN, Session())["exact"]
    assert isinstance(found, Measured)
    extra = conftest._extra(CASE, EXACT, found, PLAN)
    assert found.on_gpu is not None
    assert extra["gpu_seconds"] == found.on_gpu.seconds
    assert extra["launch_overhead_seconds"] == found.on_gpu.launch_seconds
    assert extra["no_gpu_seconds"] is None
    share = CASE.least_bytes / measure.streamed_bytes(CASE)  # as both take as long on the stand-in
    assert extra["streaming_fraction"] == pytest.approx(share)
    without = conftest._extra(CASE, EXACT, replace(found, on_gpu=OnGpu(None, None, "waits")), PLAN)
    assert without["streaming_fraction"] is None
    assert without["no_gpu_seconds"] == "waits"


def test_the_overhead_on_a_gpu_is_that_of_the_launch(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "make_inputs", lambda case, seed, device: make_inputs(case, seed))
    monkeypatch.setattr(overhead, "SECONDS_PER_TURN", 0.0)
    found = overhead.overheads(replace(PLAN, rounds=1), backward=True)
    for part in found.values():
        assert isinstance(part, overhead.Overhead)
        assert part.on_gpu is not None
        assert part.seconds == part.on_gpu.launch_seconds != part.times.median


@pytest.mark.parametrize("needs_grad", [True, False])
def test_what_a_graph_holds_gives_the_gradient_and_writes_to_no_input(needs_grad: bool) -> None:
    first, second = make_inputs(Case("dvf_mse", (1, 3, 4, 4, 4), backward=needs_grad), 0)
    loss, *gradients = steps.graph_step(torch.nn.functional.mse_loss, first, second)()
    assert first.grad is None
    assert not loss.requires_grad
    assert len(gradients) == needs_grad
    for gradient in gradients:
        torch.testing.assert_close(gradient, 2 * (first - second).detach() / first.numel())


def _breaks(device: StandIn, calls: int) -> Contender:
    """A contender that breaks the device in its n-th call."""
    count = 0

    def loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == calls:
            device.broken = "an illegal memory access was encountered"
        device.wait()
        return torch.nn.functional.mse_loss(pred, target)

    return Contender("breaks", lambda case: loss)


@pytest.mark.parametrize("calls", [1, 3], ids=["trial", "turns"])
def test_a_device_that_broke_measures_nothing_else(device: StandIn, calls: int) -> None:
    session = Session()
    found = compare(CASE, [_breaks(device, calls), EXACT], PLAN, session)
    breaks, exact = found["breaks"], found["exact"]
    assert isinstance(breaks, NotMeasured)
    assert isinstance(exact, NotMeasured)
    assert "an illegal memory access" in breaks.reason
    assert exact.reason.startswith("the GPU no longer works (an illegal memory access was encountered) since ")
    assert session.lost == exact.reason
    later = compare(CASE, [EXACT, Contender("ours", EXACT.build, ours=True)], PLAN, session)
    assert later == {name: NotMeasured(session.lost, is_fault=name == "ours") for name in ("exact", "ours")}


def test_a_device_that_breaks_in_a_graph_leaves_the_times_before(
    device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(runs: Sequence[gpu.Run]) -> gpu.Run:
        device.broken = "an illegal memory access was encountered"
        raise RuntimeError(device.broken)

    monkeypatch.setattr(gpu, "capture", breaks)
    session = Session()
    measured = compare(CASE, [EXACT], PLAN, session)["exact"]
    assert isinstance(measured, Measured)
    assert measured.times.wall
    assert measured.on_gpu == OnGpu(None, None, session.lost)


@pytest.mark.parametrize(("works", "reason"), [(True, None), (False, "is nan")])
def test_the_device_is_asked_for_a_sum(works: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.full
    value: Callable = (lambda x: x) if works else (lambda x: math.nan)
    monkeypatch.setattr(torch, "full", lambda size, number, device: full(size, value(number)))
    found = gpu.failure()
    assert found is None if reason is None else found is not None and found.endswith(reason)


def test_a_device_that_answers_with_an_error_is_broken() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.failure() is not None
    with pytest.raises(gpu.DeviceLost, match=r"the GPU no longer works .* since a test"):
        gpu.survive("cuda", "a test")
    gpu.survive("cpu", "a test")


def test_waiting_is_found_before_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a side stream, and with torch's check of synchronisation, which is put back."""
    modes: list[object] = [0]
    streams: list[str] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            streams.append("waits")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: streams.append("done"))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def item() -> None:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    gpu.rehearse([lambda: None])
    with pytest.raises(gpu.Waits):
        gpu.rehearse([item])
    with pytest.raises(ValueError, match="no"):
        gpu.rehearse([_raise])
    assert modes == [0, "error", 0, "error", 0]
    assert streams == ["waits", "done"] * 3


def _raise() -> None:
    raise ValueError("no")


def test_the_device_is_busy_while_a_timed_run_is_launched(device_queue: list[str]) -> None:
    assert gpu.elapsed(lambda: device_queue.append("run")) == 0.002
    assert device_queue == ["run", "event", "run", "event", "wait"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backward", [True, False])
def test_both_parts_on_a_gpu(backward: bool) -> None:
    case = Case("dvf_mse", (1, 3, 64, 64, 64), backward=backward)
    sets = [make_inputs(case, seed, "cuda") for seed in range(3)]
    run = steps.step(torch.nn.functional.mse_loss, *sets[0])
    found = on_gpu("mse_loss", run, [steps.graph_step(torch.nn.functional.mse_loss, *inputs) for inputs in sets], 0.0)
    assert found.reason is None
    assert found.seconds is not None
    assert 0 < found.seconds < 0.01
    assert found.launch_seconds is not None
    assert 0 < found.launch_seconds < 0.01
    waits = on_gpu("waits", run, [lambda: sets[0][0].sum().item()], 0.0)
    assert waits.reason == "waits for the device"
    assert gpu.failure() is None

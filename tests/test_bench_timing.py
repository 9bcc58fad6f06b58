"""The benchmark's turns."""

from __future__ import annotations

import time

import pytest
import torch

from bench import timing
from bench.timing import RUNS_PER_TURN, interleave


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleave(runs, {"a": 3, "b": 3, "c": 1})
    assert "".join(calls) == "abc" + "abc" + "ab" + "ab"  # the first turn does not count
    assert {name: len(found.wall) for name, found in times.items()} == {"a": 3, "b": 3, "c": 1}


def test_a_fast_contender_runs_often_in_its_turn() -> None:
    times = interleave({"fast": lambda: None, "slow": lambda: time.sleep(0.02)}, 2, seconds_per_turn=0.01)
    assert len(times["fast"].wall) == 2 * RUNS_PER_TURN
    assert len(times["slow"].wall) == 2
    assert 0.02 <= times["slow"].median < 1
    assert times["slow"].spread >= 0


def test_what_the_contender_before_left_behind_does_not_count() -> None:
    """The first runs of a turn may take many times as long as the next: cold caches, and pages that were given back."""
    disturbed = 0

    def disturb() -> None:
        nonlocal disturbed
        disturbed = 2

    def run() -> None:
        nonlocal disturbed
        time.sleep(0.1 if disturbed else 0.001)
        disturbed = max(0, disturbed - 1)

    times = interleave({"run": run, "other": disturb}, 2, seconds_per_turn=0.1)
    assert times["run"].median < 0.05
    assert max(times["run"].wall) < 0.1


def test_a_long_run_is_a_turn_by_itself() -> None:
    calls: list[float] = []
    times = interleave({"long": lambda: calls.append(time.sleep(0.05) or 0)}, 2, seconds_per_turn=0.01, warm_up=False)
    assert len(calls) == len(times["long"].wall) == 2
    assert timing.turn_length(0.05, 0.01) == 0.05
    assert timing.turn_length(0.03, 0.01) == pytest.approx(0.09)  # two that do not count, and one that does
    assert timing.turn_length(0.001, 0.01) == 0.015


def test_cpu_time_is_known_though_its_clock_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tick = time.process_time, 0.004
    monkeypatch.setattr(timing.time, "process_time", lambda: clock() // tick * tick)

    def busy() -> None:
        end = clock() + 0.001
        while clock() < end:
            pass

    times = interleave({"busy": busy}, 4, seconds_per_turn=0.06)["busy"]
    assert times.cpu_per_run == pytest.approx(0.001, rel=0.3)


def test_turns_on_a_gpu(device_queue: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are launched together and waited for once; the first ones do not count. On a device that is a list."""

    def wait() -> None:
        device_queue.append("wait")
        time.sleep(0.01)

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    runs = {"run": lambda: device_queue.append("run")}
    times = interleave(runs, 1, seconds_per_turn=0.05, device="cuda", warm_up=False)
    counted = len(times["run"].wall)
    assert 1 <= counted <= 5
    assert times["run"].wall == [0.002] * counted
    assert device_queue[-1 - 3 * counted :] == ["event", "run", "event"] * counted + ["wait"]
    assert device_queue.count("run") > counted
    assert times["run"].cpu < 0.005

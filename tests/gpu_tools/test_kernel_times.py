"""The measurement of kernels: passes, bytes, and what is measured at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import usreg_kernels as uk
from tools.gpu import kernel_times, tables
from tools.gpu.clock import Run, TrialClock


class CountingClock(TrialClock):
    """Runs everything once; forward takes 1 ms and a step 3 ms, as far as it knows from their order."""

    cache_bytes = 10**6

    def __init__(self) -> None:
        self.runs: list[int] = []

    def seconds(self, runs: Sequence[Run]) -> float:
        for run in runs:
            run()
        self.runs.append(len(runs))
        return (1e-3, 3e-3)[(len(self.runs) - 1) % 2]

    def loop(self, runs: Sequence[Run]) -> tuple[float, float]:
        runs[0]()
        return 4e-3, 2e-3

    def held_bytes(self, run: Run) -> int:
        return 1000


def test_a_measurement_counts_passes_and_bytes() -> None:
    clock = CountingClock()
    call = kernel_times.Call("lncc", "window 3", "tiny", {"kernel_size": 3})
    row = kernel_times.measure(call, "cpu" if "cpu" in uk.available_backends("lncc") else "reference", clock)
    assert row.problem is None
    assert row.backward == pytest.approx(2e-3)
    size = 20 * 24 * 28 * 4
    assert row.forward_bytes == 2 * size + 1000
    assert row.backward_bytes == 3 * size + 1000
    assert clock.runs == [-(-(10**6) // (2 * size))] * 2  # no cache holds the inputs of all sets
    line = tables.line(row, peak=1e9)
    assert f"| {row.forward_bytes / 1e-3 / 1e9:.0%} / {row.backward_bytes / 2e-3 / 1e9:.0%} | 25% |" in line


def test_without_a_gradient_only_forward_is_timed() -> None:
    row = kernel_times.measure(kernel_times.Call("dvf_mse", "", "tiny", gradients=0), "reference", CountingClock())
    assert row.step is None
    assert row.backward is None
    assert row.backward_bytes == 0
    assert tables.whole(row) == row.forward


def test_a_backend_that_declines_is_no_fault_and_an_error_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    call = kernel_times.Call("dvf_mse", "", "tiny")
    declined = kernel_times.measure(call, "cuda", CountingClock())
    assert declined.problem is not None
    assert "cuda" in declined.problem
    assert not declined.failed

    def broken(*tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("illegal address\nmore")

    monkeypatch.setitem(kernel_times.LOSSES, "dvf_mse", broken)
    row = kernel_times.measure(call, "reference", CountingClock())
    assert row.failed
    assert row.problem == "RuntimeError: illegal address"


def test_all_ops_are_measured_and_written_after_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "times.json"
    arguments = ["--backend", "reference", "--shape", "tiny", "--window", "3", "--kernels", "--json", str(file)]
    assert kernel_times.main([*arguments, "--trial"]) == 0
    content, rows = tables.load(file)
    assert {row.op for row in rows} == set(kernel_times.LOSSES)
    assert all(row.kernels for row in rows)
    assert content["versions"]["torch"] == torch.__version__
    assert len(tables.times_table(content, rows).splitlines()) == len(rows) + 2
    capsys.readouterr()
    assert kernel_times.main([*arguments, "--trial", "--compile", "0/2"]) == 0
    assert capsys.readouterr().out == ""
    assert kernel_times.main(["--backend", "cuda", "--trial", "--shape", "tiny"]) == (not torch.cuda.is_available())


def test_a_lost_device_ends_the_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Lost(CountingClock):
        def lost(self) -> str | None:
            return "an illegal memory access"

    file = tmp_path / "times.json"
    arguments = ["--backend", "reference", "--shape", "tiny", "--window", "3", "--json", str(file)]
    assert kernel_times.main(arguments, Lost()) == 1
    assert len(tables.load(file)[1]) == 1
    assert "no longer works (an illegal memory access)" in capsys.readouterr().out


def test_the_calls_cover_every_op_dtype_and_window() -> None:
    chosen = list(kernel_times.calls(list(kernel_times.LOSSES), kernel_times.SHAPES))
    assert len({(call.op, call.variant, call.shape_name, call.dtype) for call in chosen}) == len(chosen)
    lncc = [call for call in chosen if call.op == "lncc" and call.shape_name == "brain"]
    assert {call.arguments["kernel_size"] for call in lncc} == set(kernel_times.WINDOWS)
    assert {call.dtype for call in lncc} == {torch.float32, torch.float16, torch.bfloat16, torch.float64}
    assert {call.gradients for call in lncc} == {0, 1, 2}
    assert {call.op for call in chosen} == set(kernel_times.LOSSES)


def test_the_plan_can_be_asked_for_more_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from usreg_kernels.ops.lncc import triton_plan

    monkeypatch.setattr(triton_plan, "_multiprocessors", lambda device: 132)
    kernel_times.change_processors(0.5)
    assert triton_plan._multiprocessors(torch.device("cuda")) == 66

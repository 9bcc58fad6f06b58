"""``python -m tools.gpu`` as far as it needs no driver: what it asks for, how it runs stages, and what it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import usreg_kernels as uk
from bench import gpu as bench_gpu
from tools.gpu import __main__ as command_line
from tools.gpu import (
    checks,
    common,
    kernel_times,
    measurements,
    pack,
    profile_target,
    runner,
    sanitize_target,
    summary,
    tables,
    tiles,
)
from tools.gpu import clock as clocks
from tools.gpu import machine as machines
from tools.gpu import stages as all_stages
from tools.gpu.clock import Run, TrialClock
from tools.gpu.machine import Device, Machine, Torch
from tools.gpu.runner import CannotRun, Context, Finished, Result, Stage
from tools.gpu.tables import Row
from usreg_kernels.ops.lncc.triton_plan import Tile, tiles_to_measure

ROOT = Path(__file__).parents[1]
GPU = Device("NVIDIA H100 80GB HBM3", "90", 79.6, 132)
TOOLS = {name: f"/usr/local/cuda/bin/{name}" for name in machines.TOOLS}
EVERYTHING = Machine(
    TOOLS, ("GPU 0: NVIDIA H100",), Torch("2.13.0", "13.0", None, (GPU,)), "", frozenset(machines.PACKAGES)
)


# ---- what a machine lacks --------------------------------------------------------------------------------------------


def _missing(machine: Machine, set_up_follows: bool = False) -> dict[str, machines.Requirement]:
    return {one.name: one for one in machines.requirements(machine, set_up_follows) if one.found is None}


def test_a_machine_with_everything_lacks_nothing() -> None:
    assert _missing(EVERYTHING) == {}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"gpus": (), "tools": {}, "torch": None}, "NVIDIA driver", "nvidia-smi was not found"),
        ({"gpus": (), "torch": None}, "NVIDIA driver", "lists no GPU"),
        ({"torch": None, "torch_error": "torch is not installed"}, "torch with CUDA", "GPU_PYTHON=python3"),
        ({"torch": Torch("2.13.0+cpu")}, "torch with CUDA", "make gpu VENV=.venv-gpu TORCH=torch"),
        ({"torch": Torch("2.13.0", "13.0")}, "torch with CUDA", "CUDA_VISIBLE_DEVICES"),
        ({"torch": Torch("2.13.0", None, "7.1", (GPU,))}, "torch with CUDA", "AMD"),
    ],
)
def test_without_a_gpu_nothing_starts_and_the_message_says_what_to_install(
    change: dict, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = replace(EVERYTHING, **change)
    requirement = _missing(machine)[name]
    assert requirement.stops_everything
    assert words in requirement.remedy
    out = tmp_path / "out"
    assert command_line.main(["--out", str(out)], lambda: machine) == 2
    assert re.sub(r"\s+", " ", words) in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(("tool", "stage"), [("nvcc", "build"), ("compute-sanitizer", "sanitize"), ("ncu", "profile")])
def test_a_missing_tool_costs_its_stage_only(tool: str, stage: str) -> None:
    machine = replace(EVERYTHING, tools={**TOOLS, tool: None})
    (requirement,) = _missing(machine).values()
    assert requirement.needed_for == (stage,)
    assert "CUDA toolkit" in requirement.remedy


def test_before_the_set_up_packages_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(EVERYTHING, torch=None, torch_error="torch is not installed", packages=frozenset())
    monkeypatch.setattr(machines, "find_spec", lambda name: None)
    assert _missing(bare, set_up_follows=True) == {}
    assert "torch with CUDA" in _missing(bare)
    # A torch that is there stays, so it must be the right one.
    cpu = replace(EVERYTHING, torch=Torch("2.13.0+cpu"))
    assert "torch with CUDA" in _missing(cpu, set_up_follows=True)


def test_tools_are_found_beside_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert machines.find_tool("compute-sanitizer") == str(tool)
    monkeypatch.setenv("NVCC", str(tool))
    assert machines.find_tool("nvcc") == str(tool)


def test_this_machine_can_be_inspected() -> None:
    found = machines.inspect()
    assert found.torch is not None
    assert found.torch.version == torch.__version__
    assert "pytest" in found.packages


def test_the_driver_lists_its_gpus(tmp_path: Path) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-0123)'\n")
    nvidia_smi.chmod(0o755)
    assert machines._list_gpus(str(nvidia_smi)) == ("GPU 0: NVIDIA H100",)  # the card's own number is nobody's business
    nvidia_smi.write_text("#!/bin/sh\necho 'no driver is loaded'\nexit 9\n")
    assert machines._list_gpus(str(nvidia_smi)) == ()


def test_a_torch_that_crashes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_ASK_TORCH", "raise SystemExit('libcuda.so.1 is broken')")
    assert machines._ask_torch() == (None, "torch fails: libcuda.so.1 is broken")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_module_and_make_gpu_end_at_once_without_a_gpu() -> None:
    direct = [sys.executable, "-m", "tools.gpu", "smoke"]
    make = ["make", "--no-print-directory", "gpu", f"GPU_PYTHON={sys.executable}"]
    for command in (direct, make):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "cannot run on this machine" in done.stderr
        assert "summary" not in done.stdout


# ---- stages ----------------------------------------------------------------------------------------------------------


def _stage(name: str, *command: str, limit: float = 60, gate: bool = False) -> Stage:
    """A stage of one Python command."""

    def work(context: Context, result: Result) -> None:
        result.note(name, context.run_python(*command))

    return Stage(name, "for a test", limit, work, gate)


def _run(stages: Sequence[Stage], out: Path, limit: float | None = None) -> list[runner.Row]:
    return runner.run_stages(stages, EVERYTHING, out, limit, lambda row: summary.write(out, EVERYTHING, [row]))


def test_stages_are_chosen_by_name_and_run_in_their_own_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert [stage.name for stage in all_stages.choose(["times", "smoke"])] == ["smoke", "times"]
    assert all_stages.choose([]) == list(all_stages.STAGES)
    assert command_line.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [s.name for s in all_stages.STAGES]
    with pytest.raises(SystemExit):
        command_line.main(["smoek"], lambda: EVERYTHING)
    assert "unknown stage smoek; valid: machine, build" in capsys.readouterr().err


def test_every_stage_is_documented() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert [stage.name for stage in all_stages.STAGES if f"| `{stage.name}` |" not in page] == []


def test_a_failing_stage_shows_its_reason_and_the_others_run(tmp_path: Path) -> None:
    bad = _stage("tests", "-c", "print('loud'); raise SystemExit('it broke')")
    rows = _run([bad, _stage("bench", "-c", "print('fine')")], tmp_path)
    assert [row.state for row in rows] == ["failed", "passed"]
    assert rows[0].details == ("tests: exit status 1: it broke",)
    assert "loud" in (tmp_path / "tests.log").read_text()


def test_nothing_follows_a_failed_gate(tmp_path: Path) -> None:
    rows = _run([_stage("smoke", "-c", "raise SystemExit(1)", gate=True), _stage("times", "-c", "")], tmp_path)
    assert [row.state for row in rows] == ["failed", "not started"]
    assert "smoke failed" in rows[1].details[0]


def test_a_stage_that_lacks_something_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_tools = replace(EVERYTHING, tools={})
    monkeypatch.setattr(command_line, "choose", lambda names: all_stages.choose(["sanitize", "profile"]))
    assert command_line.main(["--out", str(tmp_path)], lambda: no_tools) == 0
    text = (tmp_path / "summary.md").read_text()
    assert "| sanitize | cannot run | 0 | compute-sanitizer was not found: it comes with the CUDA toolkit" in text


def test_a_fault_of_the_tool_in_one_stage_does_not_end_the_run(tmp_path: Path) -> None:
    def work(context: Context, result: Result) -> None:
        raise KeyError("planted")

    rows = _run([Stage("times", "", 60, work), _stage("bench", "-c", "")], tmp_path)
    assert [row.state for row in rows] == ["failed", "passed"]
    assert "KeyError: 'planted'" in rows[0].details[0]


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.1)
    file = tmp_path / "child"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(file)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    (row,) = _run([_stage("tests", "-c", code, limit=5)], tmp_path)
    assert time.monotonic() - start < 60
    assert row.state == "stopped"
    assert "time limit" in row.details[0]
    deadline = time.monotonic() + 20
    while _is_running(int(file.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(int(file.read_text()))


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_outer_limit_starts_nothing_that_it_would_stop(tmp_path: Path) -> None:
    rows = _run([_stage("tests", "-c", ""), _stage("bench", "-c", "")], tmp_path, limit=10)
    assert [row.state for row in rows] == ["not started", "not started"]
    assert rows[0].details == ("no time left of --limit 10",)
    context = Context(EVERYTHING, tmp_path, tmp_path / "log", time.monotonic() + 1)
    assert context.run_python("-c", "").code is None


def test_a_program_that_does_not_exist_fails_its_stage(tmp_path: Path) -> None:
    finished = runner.run(["/nonexistent/program"], tmp_path / "log", 20)
    assert finished.code == 127
    assert "No such file" in finished.output


# ---- the summary -----------------------------------------------------------------------------------------------------


def test_a_later_run_replaces_its_own_rows(tmp_path: Path) -> None:
    _run([_stage("bench", "-c", "raise SystemExit('first | try')"), _stage("tests", "-c", "")], tmp_path)
    _run([_stage("bench", "-c", "")], tmp_path)
    rows = summary.load_rows(tmp_path)
    assert [(row.stage, row.state) for row in rows] == [("tests", "passed"), ("bench", "passed")]
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["machine"]["gpu"]["capability"] == "90"
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# NVIDIA H100 80GB HBM3, capability 90, 80 GiB\n")
    assert "| tests | passed |" in text


def test_the_default_folder_tells_date_and_gpu() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-nvidia-h100-80gb-hbm3", command_line.default_folder(EVERYTHING).name)


def _row(backend: str, forward: float, step: float, **more: object) -> Row:
    row = Row("lncc", "window 9", "brain", "float32", backend, forward, step, 2 * step, step, 82, 100, 150)
    return replace(row, **more)  # type: ignore[arg-type]


def test_the_summary_shows_what_was_measured(tmp_path: Path) -> None:
    def write(name: str, rows: list[Row]) -> None:
        content = {"peak": 3e12, "versions": {"torch": "2.13.0"}, "rows": [asdict(row) for row in rows]}
        (tmp_path / f"times-{name}.json").write_text(json.dumps(content))

    write("triton", [_row("triton", 1e-4, 3e-4, kernels={"march": 2.5e-4, "sum | second stage": 5e-5})])
    write("cuda", [_row("cuda", 2e-4, 6e-4), _row("cuda", 0, 0, dtype="float64", problem="no | memory")])
    write("recompute", [_row("triton", 1e-4, 4.8e-4)])
    found = {"tiles": {"by counts": [_row("triton", 1.1e-4, 3e-4)], "other": [_row("triton", 1e-4, 3e-4)]}}
    content = {part: {way: [asdict(row) for row in rows] for way, rows in ways.items()} for part, ways in found.items()}
    (tmp_path / "tiles.json").write_text(json.dumps({**content, "programs": {"1": content["tiles"]["by counts"]}}))
    text = "\n".join(summary.figures(tmp_path))
    assert "| lncc window 9 | brain | float32 | triton | 2.00 |" in text
    assert "| lncc window 9 | brain | float32 | triton | 300.0 | 480.0 | 1.60 | 0.0 |" in text
    assert "march 250.0 (83%); sum / second stage 50.0 (17%)" in text
    assert "| lncc window 9 | brain | float64 | cuda | no / memory |" in text
    assert "| brain, window 9, forward | 110.0 | – | 100.0 | other | 1.10 |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("| lncc") and "float64" not in line}
    assert max(columns) <= 10
    assert tables.worst({way: found["tiles"][way] for way in found["tiles"]}) == ("brain, window 9, forward", 1.1)


TWO_PROCESSES = Torch("2.13.0", "13.0", None, (replace(GPU, memory_gib=2 * common.GIB_PER_PROCESS),))


# ---- what stages read from their commands ----------------------------------------------------------------------------


class Commands(Context):
    """A context that runs nothing, notes commands, and answers by the words that they hold."""

    def __init__(self, out: Path, answers: dict[str, Finished], machine: Machine = EVERYTHING) -> None:
        super().__init__(machine, out, out / "log", time.monotonic() + 1000)
        self.answers, self.commands, self.environments = answers, [], []

    def run(self, *command, limit=None, environment=None):
        self.commands.append(" ".join(command))
        self.environments.append(dict(environment or {}))
        return next(
            (answer for words, answer in self.answers.items() if words in self.commands[-1]), Finished(0, 1, "")
        )

    def run_parts(self, count, *arguments, limit=None):
        return [self.run_python(*arguments, f"{part}/{count}") for part in range(count)]


def test_the_build_is_for_this_gpu_only(tmp_path: Path) -> None:
    context, result = Commands(tmp_path, {}), Result()
    checks.build(context, result)
    assert "build_ext --inplace" in context.commands[0]
    assert context.environments[0]["USREG_CUDA_ARCHS"] == "90"
    assert context.environments[0]["USREG_BUILD_CUDA"] == "1"


def test_wrong_results_fail_the_smoke_test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    first = "ok    triton lncc\ndvf has no cuda: why\n1 checks, 0 wrong; largest error in float32: 2.0e-07"
    second = f"WRONG cuda dvf_mse 1e-1\n{first.replace('0 wrong', '1 wrong')}"
    result = Result()
    answers = {"sanitize_target --check --part 0/2": Finished(0, 1, first), "--part 1/2": Finished(1, 1, second)}
    checks.smoke(Commands(tmp_path, answers, replace(EVERYTHING, torch=TWO_PROCESSES)), result)
    assert result.failures == ["WRONG cuda dvf_mse 1e-1"]
    assert result.findings == ["2 checks; largest error in float32: 2.0e-07", "dvf has no cuda: why"]


def test_a_smoke_test_that_checks_nothing_fails(tmp_path: Path) -> None:
    for answer in ({}, {"sanitize_target": Finished(1, 1, "ImportError: planted")}):
        result = Result()
        checks.smoke(Commands(tmp_path, answer), result)
        assert result.state == "failed"


def test_parts_run_at_once_and_their_outputs_stay_apart(tmp_path: Path) -> None:
    code = "import sys, time\nfor _ in range(3): print('part', sys.argv[1], flush=True); time.sleep(0.2)"
    context = Context(EVERYTHING, tmp_path, tmp_path / "log", time.monotonic() + 100)
    found = context.run_parts(2, "-c", code)
    assert [one.output.split() for one in found] == [["part", "0/2"] * 3, ["part", "1/2"] * 3]
    assert (tmp_path / "log").read_text().count("part 1/2") == 3


def test_the_tests_share_the_gpu_by_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert common.processes(16, 80) == 16
    assert common.processes(16, 8) == 2
    assert common.processes(16, 2) == 1
    context = Commands(tmp_path, {})
    checks.tests(context, Result())
    assert "-n 16" in context.commands[0]
    assert checks.USUAL in context.commands[0]
    assert "tests/kernels/test_gpu.py" in context.commands[0]
    alone = Commands(tmp_path, {}, replace(EVERYTHING, packages=frozenset({"pytest"})))
    result = Result()
    checks.tests(alone, result)
    assert "-n 16" not in alone.commands[0]
    assert "pytest-xdist" in result.findings[0]


def test_failures_are_read_from_the_results_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_good(): pass\n\ndef test_bad(): assert 1 == 2\n\n"
        "@pytest.mark.skip(reason='x')\ndef test_skipped(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "--junitxml=junit.xml"]
    subprocess.run([*command, "test_it.py"], cwd=tmp_path, capture_output=True, check=False)
    text, failures = checks.read_junit(tmp_path / "junit.xml")
    assert text == "1 passed, 1 skipped, 1 failed"
    assert len(failures) == 1
    assert failures[0].startswith("test_bad: ")


def test_each_large_test_has_a_process_of_its_own(tmp_path: Path) -> None:
    listed = "tests/kernels/test_gpu.py::test_a[x y]\ntests/kernels/test_gpu.py::test_b\n\n2 tests collected in 1 s\n"
    answers = {
        "--collect-only": Finished(0, 1, listed),
        "test_a": Finished(0, 1, "1 passed in 3 s"),
        "test_b": Finished(1, 1, "E  memory\n1 failed in 3 s"),
    }
    context, result = Commands(tmp_path, answers), Result()
    checks.large(context, result)
    assert len(context.commands) == 3
    assert result.findings == ["of 2: 1 passed, 0 skipped"]
    assert result.failures == ["test_b: exit status 1: 1 failed in 3 s"]


def test_no_large_test_at_all_is_a_failure(tmp_path: Path) -> None:
    for listed in (Finished(5, 1, "no tests collected"), Finished(0, 1, "")):
        result = Result()
        checks.large(Commands(tmp_path, {"--collect-only": listed}), result)
        assert result.state == "failed"


def test_sanitizers_are_read_by_their_summaries(tmp_path: Path) -> None:
    report = (
        "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 3 errors"
    )
    answers = {
        "--tool memcheck": Finished(9, 1, report),
        "--tool racecheck": Finished(0, 1, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"),
        "--tool synccheck": Finished(None, 60, ""),
    }
    context, result = Commands(tmp_path, answers), Result()
    checks.sanitize(context, result)
    assert result.failures == ["memcheck: 3 errors: Invalid __global__ read of size 4"]
    assert result.findings == ["racecheck: 0 hazards displayed (0 errors, 0 warnings)"]
    assert result.stopped == ["synccheck: stopped by the time limit after 60 s"]
    assert all(given["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" for given in context.environments)
    refused = Commands(tmp_path, {"--tool": Finished(1, 1, "Error: Device not supported")})
    with pytest.raises(CannotRun, match="refuses this device"):
        checks.sanitize(refused, Result())


def test_ncu_leaves_the_clocks_alone_and_may_lack_permission(tmp_path: Path) -> None:
    context, result = (
        Commands(tmp_path, {"--import": Finished(0, 1, 'warning\n"ID","Kernel"\n"","ns"\n"1","a"\n')}),
        Result(),
    )
    measurements.profile(context, result)
    assert "--clock-control none" in context.commands[0]
    assert (tmp_path / "kernels.csv").read_text().startswith('"ID"')
    with pytest.raises(CannotRun, match="run as root"):
        measurements.profile(Commands(tmp_path, {"ncu": Finished(1, 1, "==ERROR== ERR_NVGPUCTRPERM")}), Result())


def test_times_are_taken_per_backend_and_without_saved_maps(tmp_path: Path) -> None:
    context, result = Commands(tmp_path, {}), Result()
    (tmp_path / "times-old.json").write_text("of an earlier run")
    measurements.times(context, result)
    measured = [command for command in context.commands if "--json" in command]
    assert ["--backend triton" in measured[0], "--backend cuda" in measured[1]] == [True, True]
    assert context.environments[-1] == {"USREG_LNCC_RECOMPUTE": "1"}
    assert not (tmp_path / "times-old.json").exists()


def test_the_benchmark_needs_its_plugin(tmp_path: Path) -> None:
    context = Commands(tmp_path, {})
    measurements.bench(context, Result())
    assert "bench --benchmark-only" in context.commands[-1]
    with pytest.raises(CannotRun, match="pip install pytest-benchmark"):
        measurements.bench(Commands(tmp_path, {}, replace(EVERYTHING, packages=frozenset({"pytest"}))), Result())


# ---- kernel times ----------------------------------------------------------------------------------------------------


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


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_tiles_are_pinned_by_the_file_that_the_library_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = tiles.Processes(tmp_path / "tiles", ["64"], [9], trial=False)
    seen: dict[str, tuple[dict | None, tuple[str, ...]]] = {}
    compiled = []

    def run(pinned: Path | None, *more: str) -> str:
        if "--compile" in more:
            compiled.append((pinned, more[1]))
            return ""
        file = Path(more[1])
        if pinned is not None and not pinned.exists():  # the library measures, and fills it
            pinned.write_text(json.dumps({"forward": asdict(Tile(2, 32, 4)), "backward": asdict(Tile(2, 32, 8))}))
        seen[file.stem] = (json.loads(pinned.read_text()) if pinned is not None else None, more[2:])
        row = _row("triton", 1e-4 * (1 + len(seen)), 3e-4 * (1 + len(seen)))
        file.write_text(json.dumps({"rows": [asdict(row)]}))
        return ""

    monkeypatch.setattr(processes, "run", run)
    candidates = tiles_to_measure()[:2]
    saved = []
    tiles.compile_all(processes, 2, at_once=2)
    found = tiles.measure_all(processes, candidates, [0.5], lambda found: saved.append(len(found["tiles"])))
    assert saved == [2, 2, 3, 4]
    assert list(found["tiles"]) == ["by counts", "measured", *map(tiles.label, candidates)]
    assert seen["by-counts"] == (None, ())
    pinned, _ = seen["tile-1"]
    assert pinned == {"forward": asdict(candidates[1]), "backward": asdict(candidates[1])}
    assert seen["programs-0.5"] == (None, ("--processors", "0.5"))
    assert sorted(part for _, part in compiled) == ["0/2", "1/2"]
    assert len({file for file, _ in compiled}) == 2  # each process writes a file of its own
    text = tables.tiles_table(found["tiles"])
    assert "| brain, window 9, forward | 200.0 | 300.0 | 200.0 | by counts | 1.00 |" in text
    assert "x 0.5, µs | x 1, µs" in tables.programs_table(found["programs"])


def test_a_process_that_fails_leaves_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes = tiles.Processes(tmp_path, ["no such shape"], [9], trial=True)
    assert processes.measure("by-counts", None) == []
    assert "no such shape" in capsys.readouterr().out


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One call per op of those that the sanitizers get."""
    chosen = list({call.op: call for call in sanitize_target.calls()}.values())
    monkeypatch.setattr(sanitize_target, "calls", lambda: iter(chosen))
    return None


def test_the_target_of_the_sanitizers_is_right_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize_target.main(["--check", "--device", "cpu", "--backend", "cpu", "reference"]) == 0
    assert re.search(r"^\d+ checks, 0 wrong; largest error in float32: ", capsys.readouterr().out, re.MULTILINE)


def test_the_target_reaches_every_op() -> None:
    chosen = list(sanitize_target.calls())
    assert {call.op for call in chosen} == set(sanitize_target.LOSSES)
    assert len({str(call) for call in chosen}) == len(chosen)


@pytest.mark.usefixtures("few_calls")
@pytest.mark.parametrize("planted", [1.001, float("nan")])
def test_the_check_finds_a_planted_error(
    planted: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sanitize_target.LOSSES["dvf_mse"]

    def wrong(pred: torch.Tensor, target: torch.Tensor, **arguments: object) -> torch.Tensor:
        loss = real(pred, target, **arguments)
        return loss if pred.dtype == torch.float64 else loss * planted

    monkeypatch.setitem(sanitize_target.LOSSES, "dvf_mse", wrong)
    assert sanitize_target.main(["--check", "--device", "cpu", "--backend", "reference"]) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("WRONG")]
    assert len(bad) == 3  # float32 and both half precisions
    assert all("dvf_mse" in line for line in bad)


@pytest.mark.usefixtures("few_calls")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_target_that_runs_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize_target.main(["--device", "cpu", "--backend", "cuda"]) == 1
    assert "has no cuda: " in capsys.readouterr().out


def test_the_target_of_ncu_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile_target.main(["--device", "cpu", "--shape", "tiny", "--backend", "reference"]) == 0
    assert capsys.readouterr().out == f"{len(profile_target.calls())} steps\n"


# ---- the pack --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """A Python whose pip makes empty wheels, and whose builds make small libraries; it notes what it is asked for."""
    file = tmp_path / "python"
    file.write_text(
        f"""#!{sys.executable}
import os, pathlib, sys
arguments = sys.argv[1:]
with open({str(tmp_path / "asked")!r}, "a") as asked:
    asked.write(" ".join(arguments) + " " + os.environ.get("USREG_CUDA_ARCHS", "") + chr(10))
def after(name):
    return pathlib.Path(arguments[arguments.index(name) + 1])
if arguments[0] == "-c":
    print("3.12" if "version_info" in arguments[1] else "False")
elif "download" in arguments:
    for package in (a for a in arguments if "==" in a):
        (after("--dest") / (package.replace("==", "-") + "-py3-none-any.whl")).write_bytes(b"wheel")
elif "build_ext" in arguments:
    folder = after("--build-lib") / "usreg_kernels"
    folder.mkdir()
    for kind in ("cpu", "cuda"):
        (folder / ("libusreg_" + kind + ".so")).write_bytes(b"library" * 1000)
elif "install" in arguments:
    for name in ("triton/_C/libtriton.so", "triton/_C/libproton.so", "triton/backends/nvidia/bin/ptxas", "bin/x"):
        path = after("--target") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
"""
    )
    file.chmod(0o755)
    return file


def test_the_pack_holds_what_the_other_machine_lacks(
    fake_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack.shutil, "which", lambda name, **options: None)  # no strip, no nvcc
    out = tmp_path / ".gpu"
    options = ["--python", str(fake_python), "--arch", "86", "--package", "einops==0.8.2", "--out", str(out)]
    assert command_line.main(["pack", *options]) == 0
    asked = (tmp_path / "asked").read_text()
    assert "--python-version 3.12" in asked
    assert "--inplace" not in asked  # the tree's own libraries stay as they are
    assert re.search(r"build_ext --build-lib \S+ 86$", asked, re.MULTILINE)
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    wheels = {name.replace("==", "-") for name in (*pack.PACKAGES, *pack.contenders(), "einops==0.8.2")}
    assert names == {
        "contents.json",
        "libusreg_cpu.so.xz",
        "libusreg_cuda.so.xz",
        "run.sh",
        "triton.tar.xz",
        *(f"wheels/{name}-py3-none-any.whl" for name in wheels),
    }
    assert any(name.startswith("neurite==") for name in pack.contenders())
    with pack.tarfile.open(out / "triton.tar.xz") as archive:
        assert [name for name in archive.getnames() if name.endswith(("so", "ptxas", "x"))] == [
            "./triton/_C/libtriton.so"
        ]
    printed = capsys.readouterr().out
    assert "MiB in " in printed
    assert "fused-lncc==0.1.0 is left out" in printed
    monkeypatch.setattr(pack, "MOST_BYTES", 10)
    assert pack.main([*options, "--triton", "none", "--no-libraries"]) == 1
    assert "too large" in capsys.readouterr().out


def test_the_pack_says_what_failed(fake_python: Path, tmp_path: Path) -> None:
    fake_python.write_text("#!/bin/sh\necho no network\nexit 1\n")
    with pytest.raises(SystemExit, match="no network"):
        pack.main(["--python", str(fake_python), "--out", str(tmp_path / ".gpu")])
    with pytest.raises(SystemExit):
        pack.main(["--arch", "9.0", "--out", str(tmp_path / ".gpu")])


def test_what_was_packed_runs_on_the_other_machine(tmp_path: Path) -> None:
    """run.sh in a copy of the tree, with a Python that notes what it is asked for."""
    kit, unpacked = tmp_path / "tree" / ".gpu", tmp_path / "unpacked"
    kit.mkdir(parents=True)
    (tmp_path / "tree" / "usreg_kernels").mkdir()
    (kit / "run.sh").write_bytes((ROOT / "tools" / "gpu" / "run.sh").read_bytes())
    (kit / "contents.json").write_text("{}")
    (kit / "wheels").mkdir()
    (kit / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"")
    library = tmp_path / "tree" / "usreg_kernels" / "libusreg_cuda.so"
    (kit / "libusreg_cuda.so.xz").write_bytes(pack.lzma.compress(b"library"))
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$PYTHONPATH: $*" >> {tmp_path / "asked"}\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "USREG_GPU_UNPACKED": str(unpacked)}
    for _ in range(2):
        command = ["bash", str(kit / "run.sh"), "smoke", "--limit", "600"]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert library.read_bytes() == b"library"
    install, *runs = (tmp_path / "asked").read_text().splitlines()
    assert "pip install" in install
    assert "--no-index" in install
    assert len(runs) == 2  # what is unpacked serves the second call
    (kit / "contents.json").write_text("[]")
    subprocess.run(["bash", str(kit / "run.sh")], env=environment, check=True)
    assert len(re.findall("pip install", (tmp_path / "asked").read_text())) == 2  # another pack
    assert all(run.startswith(f"{unpacked}/site") and run.endswith("-m tools.gpu smoke --limit 600") for run in runs)

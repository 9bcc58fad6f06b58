"""What the stages of ``tools.gpu`` run, and what they read from the output."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_tools.stand_ins import EVERYTHING, GPU

from tools.gpu import checks, common, measurements
from tools.gpu.machine import Machine, Torch
from tools.gpu.runner import CannotRun, Context, Finished, Result

TWO_PROCESSES = Torch("2.13.0", "13.0", None, (replace(GPU, memory_gib=2 * common.GIB_PER_PROCESS),))


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
    without_xdist = Commands(tmp_path, {}, replace(EVERYTHING, packages=frozenset({"pytest"})))
    result = Result()
    checks.tests(without_xdist, result)
    assert "-n 16" not in without_xdist.commands[0]
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

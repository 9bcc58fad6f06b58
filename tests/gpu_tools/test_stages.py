"""How the stages of ``tools.gpu`` are chosen, run and stopped."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_tools.stand_ins import EVERYTHING, ROOT, run_stages, stage_of

from tools.gpu import __main__ as command_line
from tools.gpu import runner
from tools.gpu import stages as all_stages
from tools.gpu.runner import Context, Result, Stage


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
    bad = stage_of("tests", "-c", "print('loud'); raise SystemExit('it broke')")
    rows = run_stages([bad, stage_of("bench", "-c", "print('fine')")], tmp_path)
    assert [row.state for row in rows] == ["failed", "passed"]
    assert rows[0].details == ("tests: exit status 1: it broke",)
    assert "loud" in (tmp_path / "tests.log").read_text()


def test_nothing_follows_a_failed_gate(tmp_path: Path) -> None:
    rows = run_stages(
        [stage_of("smoke", "-c", "raise SystemExit(1)", gate=True), stage_of("times", "-c", "")], tmp_path
    )
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

    rows = run_stages([Stage("times", "", 60, work), stage_of("bench", "-c", "")], tmp_path)
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
    (row,) = run_stages([stage_of("tests", "-c", code, limit=5)], tmp_path)
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
    rows = run_stages([stage_of("tests", "-c", ""), stage_of("bench", "-c", "")], tmp_path, limit=10)
    assert [row.state for row in rows] == ["not started", "not started"]
    assert rows[0].details == ("no time left of --limit 10",)
    context = Context(EVERYTHING, tmp_path, tmp_path / "log", time.monotonic() + 1)
    assert context.run_python("-c", "").code is None


def test_a_program_that_does_not_exist_fails_its_stage(tmp_path: Path) -> None:
    finished = runner.run(["/nonexistent/program"], tmp_path / "log", 20)
    assert finished.code == 127
    assert "No such file" in finished.output

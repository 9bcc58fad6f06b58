"""The benchmark's machinery: turns, checks, reports and comparisons. Its speeds are nobody's test."""

from __future__ import annotations

import copy
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import usreg_kernels as uk
from bench import accuracy, contenders, plain, report, tables, test_bench_end_to_end, timing
from bench.cases import ALL_WINDOWS, FUNCTIONS, IMAGES, INPUTS, Case, cases
from bench.comparison import describe
from bench.conftest import shapes
from bench.contenders import Absent, Contender
from bench.measure import Measured, Plan, Session, WrongResult, compare
from bench.results import load
from bench.timing import RUNS_PER_TURN, interleave

ROOT = Path(__file__).parent.parent
CASE = Case("dvf_mse", (1, 3, 6, 7, 8))
PLAN = Plan(rounds=2, seconds_per_turn=0.0)

OURS = Contender("USReg", lambda case: uk.dvf_mse_loss, ours=True)
EXACT = Contender("exact", lambda case: torch.nn.functional.mse_loss)
WRONG = Contender("wrong", lambda case: lambda a, b: 1.25 * torch.nn.functional.mse_loss(a, b))


def _compare(*contenders: Contender, plan: Plan = PLAN, session: Session | None = None) -> dict[str, Measured | str]:
    return compare(CASE, contenders, plan, session or Session())


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

    times = interleave({"run": run, "other": disturb}, 3, seconds_per_turn=0.04)
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


def test_turns_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are launched together and waited for once; the first ones do not count. On a device that is a list."""
    queue: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            queue.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 2.0  # ms

    def wait() -> None:
        queue.append("wait")
        time.sleep(0.01)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    times = interleave({"run": lambda: queue.append("run")}, 1, seconds_per_turn=0.05, device="cuda", warm_up=False)
    counted = len(times["run"].wall)
    assert 1 <= counted <= 5
    assert times["run"].wall == [0.002] * counted
    assert queue[-1 - 3 * counted :] == ["event", "run", "event"] * counted + ["wait"]
    assert queue.count("run") > counted
    assert times["run"].cpu < 0.005


def test_a_wrong_contender_is_timed_and_marked_with_its_error() -> None:
    found = _compare(OURS, EXACT, WRONG)
    exact, wrong = found["exact"], found["wrong"]
    assert isinstance(exact, Measured)
    assert isinstance(wrong, Measured)
    assert exact.exact
    assert not wrong.exact
    assert wrong.error.loss == pytest.approx(0.25, rel=1e-5)
    assert wrong.error.gradient == pytest.approx(0.25, rel=1e-5)
    assert wrong.times.wall


def test_no_speeds_where_ours_is_wrong() -> None:
    with pytest.raises(WrongResult, match="wrong is wrong"):
        _compare(replace(WRONG, ours=True), EXACT)


def test_who_cannot_take_part_says_why() -> None:
    def absent(case: Case) -> Any:
        raise Absent("not installed")

    def failing(case: Case) -> Any:
        return lambda *tensors: torch.zeros(2) + torch.zeros(3)

    found = _compare(EXACT, Contender("absent", absent), Contender("failing", failing))
    assert found["absent"] == "not installed"
    assert isinstance(found["failing"], str)
    assert found["failing"].startswith("fails with RuntimeError: The size of tensor a (2) must match")
    assert isinstance(found["exact"], Measured)


def test_the_slow_are_not_waited_for() -> None:
    def sleepy(*tensors: torch.Tensor) -> torch.Tensor:
        time.sleep(0.12)
        return torch.nn.functional.mse_loss(*tensors)

    session = Session()
    slow = Contender("slow", lambda case: sleepy)
    plan = replace(PLAN, patience=0.05)
    assert "s a run; --bench-patience allows" in str(_compare(slow, EXACT, plan=plan, session=session)["slow"])
    assert "are expected" in str(_compare(slow, EXACT, plan=plan, session=session)["slow"])


@pytest.mark.parametrize("shape", [(2, 1, 12, 13), (1, 2, 9, 10, 11)])
@pytest.mark.parametrize("formula", [plain.pooled_lncc, plain.conv_lncc, plain.separable_conv_lncc])
def test_the_plain_formulas_are_lncc(formula: Callable[[int], Callable], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = uk.lncc_loss(pred, target, kernel_size=5)
    torch.testing.assert_close(formula(5)(pred, target), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_the_plain_differences_are_the_smoothness(scheme: str) -> None:
    dvf = torch.rand(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = uk.gradient_smoothness_loss(dvf, scheme=scheme)
    torch.testing.assert_close(plain.finite_differences(central=scheme == "central")(dvf), expected)


def test_the_plain_supervision_is_ours() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, gt = (torch.rand(2, 3, 5, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(plain.supervision()(pred, gt), uk.dvf_supervision_loss(pred, gt))


def test_every_loss_of_ours_is_measured_and_has_a_table() -> None:
    ops = {name.removesuffix("_loss") for name in uk.__all__ if name.endswith("_loss")}
    assert set(FUNCTIONS) == set(INPUTS) == set(tables.TITLES) == ops
    assert {f"test_bench_{op}.py" for op in ops} <= {file.name for file in (ROOT / "bench").glob("test_bench_*.py")}


CASE_OF_LNCC = Case("lncc", (1, 1, 20, 24, 28), window=5)
PACKAGES = {
    "neurite.nn.modules": ("VoxelMorph (neurite)", "VoxelMorph's formula, conv"),
    "fireants.losses.cc": ("FireANTs (not fused)", "FireANTs' formula, separable conv"),
}


@pytest.mark.parametrize("module", PACKAGES)
def test_a_formula_stands_in_for_a_package_that_is_not_there(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, formula = PACKAGES[module]
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    failure = contenders._import_failure.__wrapped__
    monkeypatch.setattr(contenders, "_import_failure", failure)  # without what it found out before
    taking_part = [c for c in contenders.contenders("lncc") if c.name in (own, formula)]
    found = compare(CASE_OF_LNCC, taking_part, PLAN, Session())
    assert str(found[own]).startswith(f"{module} cannot be imported")
    assert str(found[own]).endswith("(`make contenders`)")
    measured = found[formula]
    assert isinstance(measured, Measured)
    assert measured.exact


@pytest.mark.parametrize("module", PACKAGES)
def test_a_package_computes_our_loss(module: str) -> None:
    try:
        with contenders.third_party_warnings_ignored():
            __import__(module)
    except ImportError as error:
        pytest.skip(f"{error} (`make contenders`)")
    own, formula = PACKAGES[module]
    by_name = {c.name: c for c in contenders.contenders("lncc")}
    assert formula not in by_name
    measured = compare(CASE_OF_LNCC, [by_name[own]], PLAN, Session())[own]
    assert isinstance(measured, Measured), measured
    assert measured.exact


def test_no_contender_can_change_torch() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installed = re.findall(r"^(?:GPU_)?CONTENDERS := .*", makefile, re.MULTILINE)
    assert len(installed) == 2
    assert not any("torch" in line for line in installed)
    commands = [line for line in makefile.splitlines() if "pip install" in line and "CONTENDERS)" in line]
    assert len(commands) == 2
    assert all("--no-deps" in line for line in commands)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_the_full_run_holds_the_short_one(op: str) -> None:
    short, full = cases(op), cases(op, full=True)
    assert set(short) < set(full)
    sizes = {case.shape for case in full}
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    varieties = {(case.window, case.scheme) for case in full}
    assert len(varieties) == {"lncc": len(ALL_WINDOWS), "gradient_smoothness": 2}.get(op, 1)
    assert {(case.shape, case.dtype, case.backward, (case.window, case.scheme)) for case in full} == set(
        itertools.product(sizes, dtypes, (False, True), varieties)
    )
    assert len({case.name for case in full}) == len(full)
    assert [case.voxels for case in full] == sorted(case.voxels for case in full)


def _benchmark(contender: str, seconds: float, voxels: int = 1000, **changes: Any) -> dict[str, Any]:
    info = {
        "kind": "loss", "op": "lncc", "contender": contender, "ours": contender.startswith("USReg"),
        "pass": "forward+backward", "shape": [1, 1, 10, 10, voxels // 100], "dtype": "float32", "window": 9,
        "scheme": None, "device": "cpu", "loss_error": 1e-8, "gradient_error": 1e-7, "exact": True,
        "peak_extra_bytes": 4000 * voxels, "voxels": voxels, "voxels_per_second": voxels / seconds,
        "bytes_per_second": 12 * voxels / seconds, "streaming_fraction": 0.5, "cpu_seconds": seconds,
        "processor": "Some CPU", "gpu": None, "cpu_capability": "avx2", "threads": 2, "revision": "abc",
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    stats = {"median": seconds, "q1": 0.98 * seconds, "q3": 1.02 * seconds, "rounds": 5, "data": [seconds] * 5}
    return {"stats": stats, "extra_info": info | changes}


@pytest.fixture
def content() -> dict[str, Any]:
    """Results of two contenders that scale as they should, and of one that is wrong."""
    benchmarks = [
        _benchmark(name, 1e-6 * factor * voxels, voxels)
        for voxels in (1000, 10_000)
        for name, factor in (("USReg cpu", 1), ("MONAI", 20))
    ]
    benchmarks.append(_benchmark("PyTorch avg_pool", 0.005, exact=False, loss_error=0.3, gradient_error=0.5))
    info = _benchmark("", 1.0)["extra_info"]
    absent = [
        info | {"contender": "USReg triton", "reason": "no GPU"},
        info | {"contender": "USReg triton", "reason": "no GPU", "shape": [1, 1, 10, 10, 100]},
        info | {"contender": "MONAI, compiled", "reason": "12 s a run", "shape": [1, 1, 10, 10, 100]},
    ]
    return {"datetime": "2026-01-02T03:04:05+00:00", "benchmarks": benchmarks, "absent": absent}


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_report_of_a_run(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [accuracy.Row("noise", 3, name, 1e-8, 1e-7) for name in (accuracy.OURS, accuracy.MONAI)]
    monkeypatch.setattr(accuracy, "rows", lambda device: iter(rows))
    assert report.main([str(_write(tmp_path / "run.json", content))]) == 0
    printed = capsys.readouterr().out
    assert "| LNCC, window 9 | 1 x 1 x 10 x 10 x 10 | 1 ms ± 2% | 20 x |" in printed
    assert "5 x (inexact: **3e-01, 5e-01**)" in printed
    assert "Some CPU (avx2, 2 threads), 2026-01-02, revision abc, torch 2.13.0" in printed
    assert (
        "- USReg triton: no GPU\n- MONAI, compiled: 12 s a run (1 x 1 x 10 x 10 x 100, forward+backward, f" in printed
    )
    assert "### DVF MSE" not in printed
    pictures = sorted(file.name for file in tmp_path.glob("*.png"))
    assert pictures == [f"bench-cpu-{name}.png" for name in ("accuracy", "memory", "speed", "windows")]


def test_publishing_replaces_what_lies_between_the_markers() -> None:
    page = "before\n<!-- bench:summary-cpu -->\nold\n<!-- /bench:summary-cpu -->\n<!-- bench:x -->\n<!-- /bench:x -->\n"
    filled = report.fill(page, {"summary-cpu": "new"})
    assert filled == page.replace("old", "\nnew\n")
    assert report.fill(filled, {"summary-cpu": "new"}) == filled


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_published_tables_are_those_of_committed_results(page: Path) -> None:
    text = page.read_text()
    sources = set(re.findall(r"\(\[all numbers\]\(([^)]+)\)\)", text))
    for source in sources:
        results = load((page.parent / source).resolve())
        assert report.fill(text, report.blocks(results, page)) == text


def test_comparison_names_what_got_slower(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _write(tmp_path / "old.json", content)
    changed = copy.deepcopy(content)
    for name in ("median", "q1", "q3"):
        changed["benchmarks"][2]["stats"][name] *= 1.5  # ours on the larger volume
    new = _write(tmp_path / "new.json", changed)
    assert report.main([str(new), "--against", str(old)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 measurements got slower by more than 10%" in printed
    assert "1.50 x  lncc, USReg cpu, 1 x 1 x 10 x 10 x 100" in printed
    assert report.main([str(old), "--against", str(old)]) == 0


def test_a_slower_machine_is_no_slower_code(content: dict[str, Any], tmp_path: Path) -> None:
    slower = copy.deepcopy(content)
    for benchmark in slower["benchmarks"]:
        for name in ("median", "q1", "q3"):
            benchmark["stats"][name] *= 2
    old, new = (load(_write(tmp_path / name, c)) for name, c in (("old.json", content), ("new.json", slower)))
    text, found = describe(old, new)
    assert not found
    assert "Other contenders took 2.00 of their earlier time" in text


def test_a_file_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no result"):
        load(_write(tmp_path / "empty.json", {"datetime": "2026-01-02", "benchmarks": []}))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], []),  # the usual ones
        (["--bench-shapes=tiny,96"], ["tiny", "96"]),
        (["--bench-full"], ["64", "96", "128", "brain", "2d", "wide"]),
        (["--bench-full", "--bench-shapes=tiny"], ["tiny"]),
    ],
)
def test_shapes_that_are_chosen_hold_for_the_full_run_too(options: list[str], expected: list[str]) -> None:
    given = {option.partition("=")[0]: option.partition("=")[2] or True for option in options}

    class Config:
        def getoption(self, name: str) -> Any:
            return given.get("--" + name.replace("_", "-"))

    assert shapes(Config()) == expected


def test_registrations_of_both_sizes_run_where_no_shapes_are_chosen() -> None:
    sizes = [size for size in test_bench_end_to_end.REGISTRATIONS if test_bench_end_to_end.is_chosen(size, [])]
    assert [IMAGES[size][2:] for size in sizes] == [(96, 96, 96), (160, 192, 224)]
    assert not test_bench_end_to_end.is_chosen("brain", ["tiny"])


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """From the command to the JSON, which holds the recorded times and the facts, and no name of the machine."""
    pytest.importorskip("pytest_benchmark")
    file = tmp_path / "run.json"
    options = ["--benchmark-only", "--bench-shapes=tiny", "--bench-rounds=2", "--bench-contenders=none", "-q"]
    command = [sys.executable, "-m", "pytest", "bench/test_bench_dvf_mse.py", *options, f"--benchmark-json={file}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    content = json.loads(file.read_text())
    assert "node" not in content["machine_info"]
    assert set(content["commit_info"]) <= {"id", "time", "dirty"}
    for entry in load(file).entries:
        assert entry["op"] == "dvf_mse"
        assert entry["exact"]
        assert entry["voxels_per_second"] == pytest.approx(entry["voxels"] / entry.seconds)
        assert {"processor", "threads", "versions", "revision", "peak_extra_bytes", "cpu_seconds"} <= set(entry.info)
    results = load(file)
    assert [entry["contender"] for entry in results.entries][-1] == "USReg reference"
    took_part = {(entry.case, entry["contender"]) for entry in results.entries}
    absent = {(entry.case, entry["contender"]): entry["reason"] for entry in results.absent}
    assert not took_part & set(absent)
    assert {name for _, name in took_part | set(absent)} == {
        f"USReg {b}" for b in ("cpu", "triton", "cuda", "reference")
    }
    assert all(absent.values())

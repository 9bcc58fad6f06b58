"""The benchmark's results: tables, pictures and comparisons of runs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import accuracy, report, tables
from bench.comparison import describe
from bench.results import load, ours


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


def test_tables_need_no_package_for_pictures(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "import_failure", lambda name: f"{name} cannot be imported")
    assert report.main([str(_write(tmp_path / "run.json", content))]) == 0
    printed = capsys.readouterr()
    assert "| LNCC, window 9 |" in printed.out
    assert printed.err == "\nno pictures: bench.pictures cannot be imported\n"


def _overhead(contender: str, op: str, passes: str, seconds: float, **changes: Any) -> dict[str, Any]:
    facts = {"kind": "overhead", "op": op, "pass": passes, "window": None, "shape": [1, 3, 4, 4, 4]}
    ratio = {"overhead_seconds": seconds, "ratio_to_mse_loss": seconds / 1e-5}
    return _benchmark(contender, seconds, **facts, **ratio, **changes)


def test_overhead_is_shown_where_it_was_measured(content: dict[str, Any], tmp_path: Path) -> None:
    page = report.PAGES[0]
    without = report.blocks(load(_write(tmp_path / "run.json", content)), page)
    assert not any("overhead per call" in block for block in without.values())
    content["benchmarks"] += [
        _overhead("USReg", "lncc", "forward+backward", 3.21e-5),
        _overhead("USReg", "lncc", "forward", 1.5e-5, wrong=True),
        _overhead("USReg", "dvf_mse", "forward", 1.2e-5),
        _overhead("F.mse_loss", "dvf_mse", "forward", 1e-5, ours=False),
    ]
    blocks = report.blocks(load(_write(tmp_path / "run.json", content)), page)
    for name in ("summary-cpu", "tables-cpu"):
        assert "| LNCC | 32.1 | 3.21 x | **15 (wrong)** | 1.50 x |" in blocks[name]
        assert "| DVF MSE | – | – | 12 | 1.20 x |" in blocks[name]
        assert "| F.mse_loss | – | – | 10 | 1.00 x |" in blocks[name]


def test_what_is_wrong_is_bold_and_never_our_best(content: dict[str, Any], tmp_path: Path) -> None:
    wrong = _benchmark("USReg triton", 1e-4, exact=False, wrong=True, loss_error=0.25, gradient_error=0.5)
    content["benchmarks"].insert(0, wrong)
    results = load(_write(tmp_path / "run.json", content))
    assert "| **USReg triton: wrong** | **0.1 ms ± 2%** | 0.1 x |" in tables.details(results, "lncc")
    best = ours(results.select(window=9, shape=wrong["extra_info"]["shape"]))
    assert best is not None
    assert best["contender"] == "USReg cpu"
    assert "| 1 ms ± 2% with USReg cpu (**USReg triton: wrong**) | 20 x |" in tables.summary(results)
    text, slower = describe(results, results)
    assert not slower
    assert "WRONG, and not compared: lncc, USReg triton, 1 x 1 x 10 x 10 x 10" in text


def test_the_summary_names_what_is_broken_where_nothing_of_ours_is_right(
    content: dict[str, Any], tmp_path: Path
) -> None:
    for entry in content["benchmarks"]:
        entry["extra_info"]["wrong"] = entry["extra_info"]["ours"]
    content["absent"] = [content["absent"][0] | {"contender": "USReg cuda", "reason": "fails with x", "fault": True}]
    results = load(_write(tmp_path / "run.json", content))
    broken = "**USReg cpu: wrong; USReg cuda: fails**"
    assert f"| LNCC, window 9 | 1 x 1 x 10 x 10 x 10 | {broken} | – | – | – | – |" in tables.summary(results)
    assert "- **USReg cuda: fails with x** (" in tables.absent(results, "lncc")


def test_results_of_a_gpu_have_columns_of_their_own(content: dict[str, Any], tmp_path: Path) -> None:
    for entry in content["benchmarks"]:
        info = entry["extra_info"]
        info |= {"device": "cuda", "gpu": "Some GPU", "gpu_seconds": entry["stats"]["median"] / 2}
        info |= {"launch_overhead_seconds": 2e-5, "no_gpu_seconds": None}
    pooled = content["benchmarks"][-1]["extra_info"]
    pooled |= {"gpu_seconds": None, "launch_overhead_seconds": None, "no_gpu_seconds": "waits for the device"}
    pooled["streaming_fraction"] = None
    results = load(_write(tmp_path / "run.json", content))
    details = tables.details(results, "lncc").splitlines()
    assert "| time | to ours | GPU time | GPU time to ours | launch | CPU time |" in details[0]
    assert "| MONAI | 20 ms ± 2% | 20 x | 10 ms | 20 x | 0.02 ms | 20 ms |" in details[4]
    assert "| PyTorch avg_pool | 5 ms ± 2% | 5 x | – | – | – | 5 ms |" in details[3]
    summary = tables.summary(results).splitlines()
    assert "| ours | ours, GPU time | ours, launch | MONAI |" in summary[0]
    assert "| 1 ms ± 2% | 0.5 ms | 0.02 ms | 20 x |" in summary[2]
    tables_on_gpu = report.blocks(results, report.PAGES[1])["tables-cuda"]
    assert "Without a GPU time:\n\n- PyTorch avg_pool: waits for the device (1 x 1 x 10 x 10 x 10, " in tables_on_gpu


def test_publishing_replaces_what_lies_between_the_markers() -> None:
    page = "before\n<!-- bench:summary-cpu -->\nold\n<!-- /bench:summary-cpu -->\n<!-- bench:x -->\n<!-- /bench:x -->\n"
    filled = report.fill(page, {"summary-cpu": "new"})
    assert filled == page.replace("old", "\nnew\n")
    assert report.fill(filled, {"summary-cpu": "new"}) == filled


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_on_each_device_has_its_place_in_the_pages(device: str, content: dict[str, Any], tmp_path: Path) -> None:
    for entry in content["benchmarks"]:
        entry["extra_info"] |= {"device": device, "gpu": "Some GPU" if device == "cuda" else None}
    results = load(_write(tmp_path / "run.json", content))
    for page, names in zip(report.PAGES, (["summary"], ["pictures", "tables"]), strict=True):
        contents = {name: f"new {name}" for name in report.blocks(results, page)}
        filled = report.fill(page.read_text(), contents)
        assert all(f"\nnew {name}-{device}\n" in filled for name in names)


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

"""The benchmark of registrations of whole pairs: its results, its table, and what is published of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.register.__main__ import _chosen, _plain
from bench.register.growth import halved
from bench.register.growth import table as growth_table
from bench.register.publish import PAGE, README, blocks
from bench.register.results import Report, load
from bench.register.table import summary, table
from bench.report import fill
from usreg.registration.pair import Volume
from usreg.spatial import Grid

MACHINE = {"processor": "Some CPU", "threads": 2, "date": "2026-01-02"}


def row(contender: str, pair: int, dice: float, **measured: Any) -> dict[str, Any]:
    """A row of the results."""
    return {"contender": contender, "dataset": "hippocampus", "pair": f"hippocampus {pair:02}", "dice": dice} | measured


def test_published_registrations_are_those_of_committed_results() -> None:
    (source,) = re.findall(r"\(\[all registrations\]\(([^)]+)\)\)", PAGE.read_text())
    for page in (PAGE, README):
        assert fill(page.read_text(), blocks((PAGE.parent / source).resolve())) == page.read_text()


def test_the_table_has_means_and_says_which_times_are_of_a_busy_machine() -> None:
    report = Report(MACHINE, "A note.")
    measured = {"folded": 0.0, "processor_seconds": 3.0, "peak_extra_megabytes": 12.0}
    report.add([row("ANTs SyN", n, 0.7 + n / 100, seconds=2.0, busy=n == 1, **measured) for n in range(12)])
    report.add([row("USReg", n, 0.8, seconds=1.0, busy=False, **measured) for n in range(12)])
    report.leave_out("ConvexAdam", "hippocampus", "no environment")
    lines = table(report.content).splitlines()
    assert lines[0] == "Some CPU, 2 threads, 2026-01-02. A note."
    assert "| USReg | 12 | 0.8000 | 0.8000 | 0.8000 | 0.8000 | 0.800 | 0.0e+00 | 1 | 3 | 12 |" in lines
    ants = "| ANTs SyN | 12 | 0.7550 | 0.7450 | 0.7500 | 0.7600 | 0.700 | 0.0e+00 | 2 (busy) | 3 | 12 |"
    assert lines.index(ants) > lines.index(next(line for line in lines if line.startswith("| USReg")))
    assert lines[-1] == "- ConvexAdam, hippocampus: no environment"


def test_the_summary_has_all_data_sets_side_by_side() -> None:
    report = Report(MACHINE, "A note.")
    report.add([{**row("USReg", 0, 0.8), "dataset": "brain", "seconds": 4.04, "busy": False}])
    report.add([{**row("ANTs SyNCC", 0, 0.7), "dataset": "brain", "seconds": 3821.0, "busy": True}])
    report.add([row("before", n, 0.5) for n in range(2)] + [row("USReg", n, 0.8, seconds=0.2) for n in range(2)])
    assert summary(report.content).splitlines() == [
        "| contender | brain: Dice | brain: seconds a pair | hippocampus: Dice | hippocampus: seconds a pair |",
        "| --- | --- | --- | --- | --- |",
        "| before | – | – | 0.500 |  |",
        "| USReg | 0.800 | 4.04 | 0.800 | 0.2 |",
        "| ANTs SyNCC | 0.700 | 3,821 (busy) | – | – |",
        "",
        "Some CPU, 2 threads, 2026-01-02. A note.",
    ]


def test_results_grow_contender_by_contender(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first = Report(MACHINE, "A note.")
    first.add([row("USReg", 0, 0.7), row("USReg", 1, 0.7)])
    first.leave_out("ConvexAdam", "hippocampus", "fails")
    first.write(path)
    second = Report(MACHINE | {"date": "2026-01-03"}, path=path)
    second.add([row("USReg", 0, 0.8), row("ConvexAdam", 0, 0.6)])
    second.write(path)
    content = load(path)
    assert [(r["contender"], r["pair"][-2:], r["dice"]) for r in content["results"]] == [
        ("USReg", "01", 0.7),
        ("USReg", "00", 0.8),
        ("ConvexAdam", "00", 0.6),
    ]
    assert content["absent"] == []
    assert content["note"] == "A note."
    with pytest.raises(ValueError, match=r"is of processor Some CPU, and this is Another CPU"):
        Report(MACHINE | {"processor": "Another CPU"}, path=path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="make bench-register"):
        load(path)


def test_contenders_are_chosen_by_name_or_by_part_of_it() -> None:
    assert [one.name for one in _chosen(["ants syn"])] == ["ANTs SyN"]
    assert [one.name for one in _chosen(["syn", "usreg"])] == ["USReg", "ANTs SyN", "ANTs SyNCC"]


def test_names_of_folders_have_no_blanks() -> None:
    assert _plain("Greedy (PICSL)") == "greedy-picsl"


def test_growth_halves_each_axis_over_the_same_box() -> None:
    grid = Grid((6, 8, 10), np.diag([1.0, 2.0, 3.0, 1.0]))
    ramp = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 8, 10).contiguous()
    half = halved(Volume(ramp, grid))
    assert half.grid.size == (3, 4, 5) == tuple(half.voxels.shape[1:])
    assert np.allclose(half.grid.spacing, (2, 4, 6))
    assert np.allclose(half.grid.centre, grid.centre)
    assert half.voxels[0, :, 0, 0].tolist() == [0.5, 2.5, 4.5]


def test_growth_says_how_many_times_the_whole_takes_the_half() -> None:
    lines = growth_table({"half": [0.5, 0.2, 0.2, 0.1], "whole": [4.0, 0.5, 2.5, 1.0]}).splitlines()
    assert lines[2:] == [
        "| all | 0.5 | 4 | 8.00 |",
        "| affine | 0.2 | 0.5 | 2.50 |",
        "| greedy | 0.2 | 2.5 | 12.50 |",
        "| the rest: intensities, inverse | 0.1 | 1 | 10.00 |",
    ]

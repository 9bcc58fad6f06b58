"""What ``tools.gpu`` writes of a run."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from gpu_tools.stand_ins import EVERYTHING, row_of, run_stages, stage_of

from tools.gpu import __main__ as command_line
from tools.gpu import summary, tables
from tools.gpu.tables import Row


def test_a_later_run_replaces_its_own_rows(tmp_path: Path) -> None:
    run_stages([stage_of("bench", "-c", "raise SystemExit('first | try')"), stage_of("tests", "-c", "")], tmp_path)
    run_stages([stage_of("bench", "-c", "")], tmp_path)
    rows = summary.load_rows(tmp_path)
    assert [(row.stage, row.state) for row in rows] == [("tests", "passed"), ("bench", "passed")]
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["machine"]["gpu"]["capability"] == "90"
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# NVIDIA H100 80GB HBM3, capability 90, 80 GiB\n")
    assert "| tests | passed |" in text


def test_the_default_folder_tells_date_and_gpu() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-nvidia-h100-80gb-hbm3", command_line.default_folder(EVERYTHING).name)


def test_the_summary_shows_what_was_measured(tmp_path: Path) -> None:
    def write(name: str, rows: list[Row]) -> None:
        content = {"peak": 3e12, "versions": {"torch": "2.13.0"}, "rows": [asdict(row) for row in rows]}
        (tmp_path / f"times-{name}.json").write_text(json.dumps(content))

    write("triton", [row_of("triton", 1e-4, 3e-4, kernels={"march": 2.5e-4, "sum | second stage": 5e-5})])
    write("cuda", [row_of("cuda", 2e-4, 6e-4), row_of("cuda", 0, 0, dtype="float64", problem="no | memory")])
    write("recompute", [row_of("triton", 1e-4, 4.8e-4)])
    found = {"tiles": {"by counts": [row_of("triton", 1.1e-4, 3e-4)], "other": [row_of("triton", 1e-4, 3e-4)]}}
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

"""The measurement of tiles."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from gpu_tools.stand_ins import row_of

from tools.gpu import tables, tiles
from usreg_kernels.ops.lncc.triton_plan import Tile, tiles_to_measure


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
        row = row_of("triton", 1e-4 * (1 + len(seen)), 3e-4 * (1 + len(seen)))
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

"""The summary of a run: ``summary.md`` to read, ``summary.json`` for programs.

A later run into the same folder replaces the rows of its own stages, and keeps the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu import tables
from tools.gpu.machine import Machine
from tools.gpu.runner import Row
from tools.gpu.stages import STAGES

KERNEL_SHAPES = ("64", "brain")
"""Small, where launches and second stages count, and large."""


def load_rows(out: Path) -> list[Row]:
    """The rows of earlier runs into the folder."""
    file = out / "summary.json"
    if not file.exists():
        return []
    return [Row(**{**row, "details": tuple(row["details"])}) for row in json.loads(file.read_text())["stages"]]


def write(out: Path, machine: Machine, rows: Iterable[Row]) -> None:
    """Write both files: the rows of earlier runs with these in their place."""
    by_name = {row.stage: row for row in [*load_rows(out), *rows]}
    ordered = [by_name[stage.name] for stage in STAGES if stage.name in by_name]
    content: dict[str, Any] = {
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": machine.facts(),
        "stages": [asdict(row) for row in ordered],
    }
    (out / "summary.json").write_text(json.dumps(content, indent=1))
    (out / "summary.md").write_text("\n\n".join([heading(content), stage_table(ordered), *figures(out)]) + "\n")


def heading(content: dict[str, Any]) -> str:
    """The machine in a few words."""
    machine, gpu = content["machine"], content["machine"]["gpu"]
    name = f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory_gib']:.0f} GiB" if gpu else "no GPU"
    versions = f"torch {machine['torch']}, CUDA {machine['cuda']}, Python {machine['python']}"
    return f"# {name}\n\n{content['written']}, {versions}."


def stage_table(rows: Iterable[Row]) -> str:
    """A row per stage; its details are the first failure, then key figures."""
    lines = ["| stage | state | seconds | details | log |\n|---|---|---|---|---|"]
    for row in rows:
        details = "<br>".join(tables.cell(text) for text in row.details)
        lines.append(f"| {row.stage} | {row.state} | {row.seconds:.0f} | {details} | {row.log or ''} |")
    return "\n".join(lines)


def figures(out: Path) -> list[str]:
    """Sections with the tables of what was measured; nothing where it was not."""
    sections = []
    measured = {file.stem.removeprefix("times-"): tables.load(file) for file in sorted(out.glob("times-*.json"))}
    recomputed = measured.pop("recompute", None)
    rows = [row for _, found in measured.values() for row in found]
    if faster := tables.faster_backends(rows):
        sections.append(f"## Which backend is faster, forward and backward together\n\n{tables.faster_table(faster)}")
    if recomputed is not None and (pairs := tables.pairs(recomputed[1], rows)):
        sections.append(f"## Saved maps or recompute\n\n{tables.recompute_table(pairs)}")
    if (out / "tiles.json").exists():
        found = tables.load_tiles(out / "tiles.json")
        sections.append(f"## Tiles of the Triton march\n\n{tables.tiles_table(found['tiles'])}")
        sections.append(f"## Programs of the Triton march\n\n{tables.programs_table(found['programs'])}")
    if kernels := [row for row in rows if row.kernels and row.shape in KERNEL_SHAPES and row.dtype == "float32"]:
        sections.append(f"## Kernels of a step\n\n{tables.kernels_table(kernels)}")
    for name, (content, found_rows) in measured.items():
        versions = ", ".join(f"{package} {number}" for package, number in content["versions"].items())
        title = f"## Times of {name}\n\n{versions}; peak of the memory {content['peak'] / 1e12:.2f} TB/s."
        sections.append(f"{title}\n\n{tables.times_table(content, found_rows)}")
    return sections

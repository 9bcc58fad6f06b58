"""report.html and its pictures: a registration to look at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io.whole import whole, write_text
from ...viz.page import Picture, Table, make_page
from ...viz.pair_pictures import (
    PairVolumes,
    draw_before_after,
    draw_checkerboards,
    draw_deformation,
    draw_losses,
)
from ..outputs.files import PAGE, PICTURES
from ..outputs.results import Inputs, Results
from ..pair import Registration
from .measures import MEANINGS


def write_page(out: Path, report: Mapping[str, Any], inputs: Inputs, found: Registration, results: Results) -> None:
    """Draw the pictures, and write them by themselves and as one page.

    Raises:
        UsageError: a file cannot be written.
    """
    pictures = _pictures(inputs, found, results)
    for name, picture in pictures.items():
        (out / PICTURES).mkdir(exist_ok=True)
        with whole(out / PICTURES / f"{name}.png") as temporary:
            temporary.write_bytes(picture.png)
    parts: list[Table | Picture] = [_measures_table(report), *pictures.values(), _stages_table(report)]
    if (labels := _labels_table(report)) is not None:
        parts.insert(1 + len(pictures), labels)
    facts = {
        "Fixed image": report["files"].get("fixed", ""),
        "Moving image": report["files"].get("moving", ""),
        "Date": report["date"],
        "Start": report["start"],
        "Time": f"{report['seconds']:.1f} s on {report['device']}",
    }
    if report["status"] == "stopped":
        facts = {"Stopped": "before its end; these are the results so far", **facts}
    command = shlex.join(["python", "-m", "usreg.register", *report["command"]])
    write_text(out / PAGE, make_page("Registration of a pair", facts, parts, command))


def _pictures(inputs: Inputs, found: Registration, results: Results) -> dict[str, Picture]:
    volumes = PairVolumes.of(inputs.fixed, found, results)
    view = "Radiological view: the patient's right is on the left. "
    pictures = {
        "before_after": Picture(
            "Before and after",
            view + "In the overlays the fixed image is green and the moving one magenta: where they match it is grey.",
            draw_before_after(volumes),
        ),
        "checkerboard": Picture(
            "Checkerboard",
            "Squares of the fixed and the moving image in turn. Edges go on across the squares where the images match.",
            draw_checkerboards(volumes),
        ),
    }
    if found.field is not None and results.jacobian is not None:
        pictures["deformation"] = Picture(
            "Deformation",
            "What the field does, without the affine: a regular grid of the fixed image where it is sent, the length "
            "of the displacement, and the change of volume. Folded voxels are black, with a ring around each.",
            draw_deformation(volumes),
        )
    if losses := [(stage.stage, stage.losses) for stage in found.stages if any(stage.losses)]:
        pictures["losses"] = Picture(
            "Loss", "Of each iteration. Dashed lines: from one level to the next finer one.", draw_losses(losses)
        )
    return pictures


def _measures_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (_titled(name, values), shown(values["before"]), shown(values["after"]), MEANINGS[name])
        for name, values in report["measures"].items()
    ]
    return Table("Measures", ("measure", "before", "after", "meaning"), rows, words=(0, 3))


def _labels_table(report: Mapping[str, Any]) -> Table | None:
    """A row for each label, where there are labels."""
    measures = {name: values for name, values in report["measures"].items() if "labels" in values}
    if not measures:
        return None
    header = ["label", *(f"{_titled(name, m)}, {when}" for name, m in measures.items() for when in ("before", "after"))]
    numbers = next(iter(measures.values()))["labels"]
    rows = [
        [number, *(shown(m["labels"][number][when]) for m in measures.values() for when in ("before", "after"))]
        for number in numbers
    ]
    return Table("Labels", header, rows)


def _stages_table(report: Mapping[str, Any]) -> Table:
    rows = [
        (
            stage["stage"],
            stage["loss"],
            " + ".join(str(level["iterations"]) for level in stage["levels"]),
            f"{stage['seconds']:.2f}",
        )
        for stage in report["stages"]
    ]
    return Table("Stages", ("stage", "loss", "iterations of the levels", "seconds"), rows, words=(0, 1, 2))


def _titled(name: str, values: Mapping[str, Any]) -> str:
    return f"{name}, {values['unit']}" if values.get("unit") else name


def shown(value: float | None) -> str:
    """A number in a table; empty where there is none."""
    return "" if value is None else f"{value:.4g}"

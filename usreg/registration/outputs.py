"""The files of a registration's folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..io.landmark_details import read_details
from ..io.landmark_formats import without_volume
from ..io.landmark_writing import write_landmarks
from ..io.transforms import write_affine, write_composite, write_field
from ..io.whole import whole, write_text
from ..io.writing import write_volume
from ..viz.page import Picture, Table, make_page
from ..viz.pair_pictures import (
    PairVolumes,
    draw_before_after,
    draw_checkerboards,
    draw_deformation,
    draw_losses,
)
from .measures import MEANINGS
from .pair import Registration
from .results import Inputs, Results

REPORT, PAGE, CONFIG, PICTURES = "report.json", "report.html", "config.yaml", "pictures"

CONTENTS = {
    PAGE: "pictures, measures and losses, for a browser",
    REPORT: "losses, seconds and measures, before and after",
    CONFIG: "every setting, for --config",
    PICTURES: "the pictures of report.html",
    "warped.nii.gz": "the moving image on the fixed image's grid",
    "warped_label.nii.gz": "the moving label on the fixed image's grid",
    "warped_landmarks": "the moving landmarks in the fixed image's world",
    "affine.mat": "the affine, as ITK and ANTs read it",
    "field.nii.gz": "the displacement field in mm, as ITK and ANTs read it",
    "inverse_field.nii.gz": "its inverse",
    "composite.h5": "field and affine in one file, as ITK and ANTs read it",
    "jacobian.nii.gz": "Jacobian determinant of the field: 0 or less where it folds",
}
"""What the folder may hold, and what each file is for."""


def landmarks_name(source: Path) -> str:
    """The name of the file of the warped landmarks: the format is that of the source."""
    name = without_volume(source).name.lower()
    return f"warped_landmarks{'.mrk.json' if name.endswith('.mrk.json') else Path(name).suffix}"


def write_data(out: Path, inputs: Inputs, found: Registration, results: Results) -> None:
    """Write images, labels and transforms.

    Raises:
        UsageError: a file cannot be written.
    """
    grid = inputs.fixed.grid
    write_volume(out / "warped.nii.gz", results.warped.numpy(), grid)
    if results.warped_label is not None:
        write_volume(out / "warped_label.nii.gz", results.warped_label[None].numpy(), grid)
    if results.jacobian is not None:
        write_volume(out / "jacobian.nii.gz", results.jacobian[None].numpy(), grid)
    for name, field in (("field", found.field), ("inverse_field", found.inverse_field)):
        if field is not None:
            with whole(out / f"{name}.nii.gz") as temporary:
                write_field(temporary, field)
    with whole(out / "affine.mat") as temporary:
        write_affine(temporary, found.affine)
    if find_spec("SimpleITK") is not None:
        with whole(out / "composite.h5") as temporary:
            try:
                write_composite(temporary, found.transform)
            except RuntimeError as error:  # of ITK
                raise OSError(str(error)) from error


def write_points(out: Path, source: Path, results: Results, space: str, inputs: Inputs) -> None:
    """Write the warped landmarks in the format and the space of their file, with their names and further columns.

    Raises:
        UsageError: the file cannot be written.
    """
    assert results.warped_points is not None
    with whole(out / landmarks_name(source)) as temporary:
        write_landmarks(temporary, results.warped_points, space, inputs.fixed.grid, read_details(source))


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and config.yaml.

    Raises:
        UsageError: a file cannot be written.
    """
    write_text(out / CONFIG, yaml.safe_dump(report["config"], sort_keys=False))
    write_text(out / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")


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

"""The files of a registration's folder: what it holds, and the images, transforms and points in it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ...io.landmark_details import read_details
from ...io.landmark_formats import without_volume
from ...io.landmark_writing import write_landmarks
from ...io.transforms import write_affine, write_composite, write_field
from ...io.whole import whole
from ...io.writing import write_volume
from ..pair import Registration
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

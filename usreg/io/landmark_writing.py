"""Writing landmarks, in the formats that are read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..spatial import Grid, lps_to_ras
from ..spatial.grid import Points
from .landmark_details import Details

_COLUMNS = {"lps": "L,P,S", "ras": "R,A,S", "voxel": "i,j,k"}
_FIDUCIAL = {
    "ow": "0",
    "ox": "0",
    "oy": "0",
    "oz": "1",
    "vis": "1",
    "sel": "1",
    "lock": "0",
    "label": "",
    "desc": "",
    "associatedNodeID": "",
}
"""Columns of a fiducial file after the place, and what they hold where nothing is known."""

_MARKUPS = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"


def write_landmarks(
    path: Path, points: NDArray[np.float64], space: str, image: Grid | None = None, details: Details | None = None
) -> str:
    """Write points; every text file states its space.

    Args:
        path: by its suffix a ``.csv``, ``.txt``, ``.pts`` (elastix), ``.fcsv`` or ``.mrk.json`` (3D Slicer), ``.tag``
            (MNI), ``.npy`` or ``.npz``.
        points: (N, 3) in mm of the world, RAS.
        space: ``"lps"``, ``"ras"`` or ``"voxel"``; a format that cannot hold it gets one that it can: RAS for ``.tag``,
            LPS for the others.
        image: the grid of the points' image, for voxels.
        details: of the points, as far as the format holds them: all columns in a ``.csv``, its own ones in a ``.fcsv``,
            labels and descriptions in a ``.mrk.json``, labels in a ``.tag``.

    Returns:
        The space that was written.

    Raises:
        DataError: voxels without an image.
    """
    suffix = path.suffix.lower()
    writer, spaces = _WRITERS[suffix]
    space = space if space in spaces else spaces[0]
    if space == "voxel" and image is None:
        raise DataError(f"{path}: points in voxels need their image")
    rows = lps_to_ras(points) if space == "lps" else points
    if space == "voxel" and image is not None:
        rows = image.to_voxels(points)
    if suffix in (".npy", ".npz"):
        (np.save if suffix == ".npy" else np.savez)(path, rows)
    else:
        path.write_text(writer(rows, space, details or {}), encoding="utf-8")
    return space


def _lines(rows: Points, separator: str = " ") -> str:
    return "".join(separator.join(f"{value:.10g}" for value in row) + "\n" for row in rows)


def _csv(rows: Points, space: str, details: Details) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    is_ants = space == "lps" and next(iter(details), "") == "t"  # its columns are x, y, z, t
    writer.writerow([*("x,y,z" if is_ants else _COLUMNS[space]).split(","), *details])
    for number, line in enumerate(_lines(rows, ",").splitlines()):
        writer.writerow([*line.split(","), *(texts[number] for texts in details.values())])
    return text.getvalue()


def _text(rows: Points, space: str, _: Details) -> str:
    return f"# x y z, {'voxel' if space == 'voxel' else f'{space.upper()}, mm'}\n{_lines(rows)}"


def _elastix(rows: Points, space: str, _: Details) -> str:
    return f"{'index' if space == 'voxel' else 'point'}\n{len(rows)}\n{_lines(rows)}"


def _fcsv(rows: Points, space: str, details: Details) -> str:
    text = io.StringIO()
    text.write(
        "# Markups fiducial file version = 4.11\n"
        f"# CoordinateSystem = {space.upper()}\n"
        f"# columns = id,x,y,z,{','.join(_FIDUCIAL)}\n"
    )
    writer = csv.writer(text, lineterminator="\n")
    for number, line in enumerate(_lines(rows, ",").splitlines()):
        defaults = {"id": str(number + 1), **_FIDUCIAL, "label": f"F-{number + 1}"}
        known = {name: details[name][number] if name in details else default for name, default in defaults.items()}
        writer.writerow([known.pop("id"), *line.split(","), *known.values()])
    return text.getvalue()


def _markups(rows: Points, space: str, details: Details) -> str:
    points = []
    for number, row in enumerate(rows):
        name, told = (details[key][number] if key in details else "" for key in ("label", "desc"))
        point = {"id": str(number + 1), "label": name or f"F-{number + 1}", "description": told}
        points.append({**point, "position": row.tolist(), "positionStatus": "defined"})
    system = {"type": "Fiducial", "coordinateSystem": space.upper(), "coordinateUnits": "mm", "controlPoints": points}
    schema = f"{_MARKUPS}markups-schema-v1.0.3.json#"
    return json.dumps({"@schema": schema, "markups": [system]}, indent=2) + "\n"


def _tag(rows: Points, _: str, details: Details) -> str:
    names = [name.replace('"', "'") for name in details.get("label", [""] * len(rows))]
    points = "\n".join(f'{row} "{name}"' for row, name in zip(_lines(rows).splitlines(), names, strict=True))
    return f"MNI Tag Point File\nVolumes = 1;\n\nPoints =\n{points};\n"


_WRITERS: dict[str, tuple[Callable[[Points, str, Details], str], Sequence[str]]] = {
    ".csv": (_csv, ("lps", "ras", "voxel")),
    ".txt": (_text, ("lps", "ras", "voxel")),
    ".pts": (_elastix, ("lps", "voxel")),
    ".fcsv": (_fcsv, ("lps", "ras")),
    ".json": (_markups, ("lps", "ras")),
    ".tag": (_tag, ("ras",)),
    ".npy": (_text, ("lps", "ras", "voxel")),
    ".npz": (_text, ("lps", "ras", "voxel")),
}
"""By suffix: what makes the text, and the spaces that the format can hold."""

LANDMARK_SUFFIXES = tuple(_WRITERS)

"""Writing landmarks, in the formats that are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..spatial import Grid, lps_to_ras
from ..spatial.grid import Points

_COLUMNS = {"lps": "L,P,S", "ras": "R,A,S", "voxel": "i,j,k"}
_MARKUPS = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"


def write_landmarks(path: Path, points: NDArray[np.float64], space: str, image: Grid | None = None) -> str:
    """Write points; every text file states its space.

    Args:
        path: by its suffix a ``.csv``, ``.txt``, ``.pts`` (elastix), ``.fcsv`` or ``.mrk.json`` (3D Slicer), ``.tag``
            (MNI), ``.npy`` or ``.npz``.
        points: (N, 3) in mm of the world, RAS.
        space: ``"lps"``, ``"ras"`` or ``"voxel"``; a format that cannot hold it gets one that it can: RAS for ``.tag``,
            LPS for the others.
        image: the grid of the points' image, for voxels.

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
        path.write_text(writer(rows, space), encoding="utf-8")
    return space


def _lines(rows: Points, separator: str = " ") -> str:
    return "".join(separator.join(f"{value:.10g}" for value in row) + "\n" for row in rows)


def _csv(rows: Points, space: str) -> str:
    return f"{_COLUMNS[space]}\n{_lines(rows, ',')}"


def _text(rows: Points, space: str) -> str:
    return f"# x y z, {'voxel' if space == 'voxel' else f'{space.upper()}, mm'}\n{_lines(rows)}"


def _elastix(rows: Points, space: str) -> str:
    return f"{'index' if space == 'voxel' else 'point'}\n{len(rows)}\n{_lines(rows)}"


def _fcsv(rows: Points, space: str) -> str:
    header = (
        "# Markups fiducial file version = 4.11\n"
        f"# CoordinateSystem = {space.upper()}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    )
    numbered = enumerate(_lines(rows, ",").splitlines(), start=1)
    return header + "".join(f"{number},{row},0,0,0,1,1,1,0,F-{number},,\n" for number, row in numbered)


def _markups(rows: Points, space: str) -> str:
    points = [
        {"id": str(number), "label": f"F-{number}", "position": row.tolist(), "positionStatus": "defined"}
        for number, row in enumerate(rows, start=1)
    ]
    system = {"type": "Fiducial", "coordinateSystem": space.upper(), "coordinateUnits": "mm", "controlPoints": points}
    schema = f"{_MARKUPS}markups-schema-v1.0.3.json#"
    return json.dumps({"@schema": schema, "markups": [system]}, indent=2) + "\n"


def _tag(rows: Points, _: str) -> str:
    points = "\n".join(f'{row} ""' for row in _lines(rows).splitlines())
    return f"MNI Tag Point File\nVolumes = 1;\n\nPoints =\n{points};\n"


_WRITERS: dict[str, tuple[Callable[[Points, str], str], Sequence[str]]] = {
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

"""The text formats of landmarks: each reader returns rows of three numbers, and the space that the file states."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .landmark_headers import MILLIMETRES, columns_of, space_in_words

__all__ = ["MILLIMETRES", "VALID", "Read", "read_csv", "read_fcsv", "read_markups", "read_tag", "read_text"]

VALID = "landmarks are N rows of three numbers x, y, z"

Read = tuple[Any, str | None]
"""Rows, and ``"lps"``, ``"ras"``, ``"voxel"``, ``"mm"`` or None; see :class:`usreg.io.landmarks.Landmarks`."""

_SLICER_SPACES = {"lps": "lps", "1": "lps", "ras": "ras", "0": "ras", "ijk": "voxel", "2": "voxel"}
_ELASTIX_SPACES = {"point": "lps", "index": "voxel"}
_TAG_MAGIC = "mni tag point file"


def read_csv(path: Path) -> Read:
    """A table, separated by commas, semicolons or tabs; with semicolons, a comma may be the decimal sign."""
    rows, comments = table_of(path)
    return _table(rows, comments)


def table_of(path: Path) -> tuple[list[list[str]], list[str]]:
    """The rows of a table and its comments."""
    text = _text(path)
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    lines = [line for line in text.splitlines() if line.strip() and line not in comments]
    separator = next((sign for sign in ";\t" if lines and sign in lines[0]), ",")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    if separator == ";":
        rows = [[re.sub(r"^([-+]?\d*),(\d+)$", r"\1.\2", cell) for cell in row] for row in rows]
    return rows, comments


def read_text(path: Path) -> Read:
    """Lines of three numbers, or a point file of elastix."""
    comments, rows = [], []
    for line in _text(path).splitlines():
        content, hash_sign, comment = line.partition("#")
        if cells := re.sub(r"\s+(?=[(\[])", "", content).replace(",", " ").replace(";", " ").split():
            rows.append(cells)
        if hash_sign:
            comments.append(comment)
    if rows and rows[0][0].lower() in _ELASTIX_SPACES and len(rows[0]) == 1:
        return _elastix(rows)
    return _table(rows, comments)


def read_fcsv(path: Path) -> Read:
    """A fiducial file of 3D Slicer."""
    names, rows, header = fiducials_of(path)
    if not {"x", "y", "z"} <= set(names):
        raise DataError(f"its columns are {', '.join(names)}; x, y and z are needed")
    return _picked(rows, [names.index(axis) for axis in "xyz"]), _slicer_space(header.get("CoordinateSystem"))


def fiducials_of(path: Path) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """The names of the columns of a fiducial file, its rows, and what its comments set."""
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    header = dict(re.findall(r"^#\s*(\w+)\s*=\s*(.+)$", "\n".join(lines), flags=re.MULTILINE))
    names = [name.strip() for name in header.get("columns", "id,x,y,z").split(",")]
    return names, list(csv.reader(line for line in lines if not line.startswith("#"))), header


def read_markups(path: Path) -> Read:
    """A markups file of 3D Slicer (.mrk.json)."""
    markups = markups_of(path)
    points = markups["controlPoints"]
    return [point.get("position") for point in points], _slicer_space(markups.get("coordinateSystem"))


def markups_of(path: Path) -> dict[str, Any]:
    """The one list of points of a markups file, checked."""
    content = json.loads(_text(path))
    lists = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(lists, list) or not all(isinstance(one, dict) for one in lists):
        raise DataError("is no markups file of 3D Slicer: it has no list 'markups'")
    filled = [one for one in lists if one.get("controlPoints")]
    if len(filled) != 1:
        raise DataError(f"holds {len(filled)} lists of points; exactly one is needed")
    unit = filled[0].get("coordinateUnits", "mm")
    if unit != "mm" and not (isinstance(unit, list) and "mm" in unit):
        raise DataError(f"its coordinateUnits are {unit!r}; mm is needed")
    points = filled[0]["controlPoints"]
    if unset := [number for number, point in enumerate(points) if point.get("positionStatus", "defined") != "defined"]:
        raise DataError(f"point {unset[0]} has no position; landmarks are paired one by one, so each needs one")
    markups: dict[str, Any] = filled[0]
    return markups


def read_tag(path: Path) -> Read:
    """A tag file of MNI, of one volume, or, as ``FILE.tag#1``, of one of two."""
    lines, volumes = tags_of(path)
    rows = [re.sub(r'"[^"]*"', "", line).split() for line in lines]
    first = 3 * (_volume(path, volumes) - 1)
    return _picked(rows, [first, first + 1, first + 2]), "ras"


def tags_of(path: Path) -> tuple[list[str], int]:
    """The lines of the points of a tag file, and the number of its volumes."""
    text = _text(without_volume(path))
    if not text.lstrip().lower().startswith(_TAG_MAGIC):
        raise DataError("is no tag file of MNI: its first line must be 'MNI Tag Point File'")
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "#")))
    volumes = re.search(r"volumes\s*=\s*(\d+)\s*;", text, flags=re.IGNORECASE)
    listed = re.search(r"points\s*=(.*?);?\s*\Z", text, flags=re.IGNORECASE | re.DOTALL)
    if volumes is None or volumes[1] not in ("1", "2") or listed is None:
        raise DataError("its header is not understood: 'Volumes = 1;' or 'Volumes = 2;', then 'Points =', are needed")
    return [line for line in listed[1].splitlines() if re.sub(r'"[^"]*"', "", line).strip()], int(volumes[1])


def without_volume(path: Path) -> Path:
    """The file of a path such as ``FILE.tag#2``, which names one of the volumes of a tag file."""
    name, _, volume = path.name.rpartition("#")
    return path.with_name(name) if name.lower().endswith(".tag") and volume in ("1", "2") else path


def _volume(path: Path, volumes: int) -> int:
    chosen = int(path.name[-1]) if without_volume(path) != path else None
    if volumes == 2 and chosen is None:
        raise DataError(f"holds the points of two volumes; name one of them as {path.name}#1 or {path.name}#2")
    if chosen is not None and chosen > volumes:
        raise DataError("holds the points of one volume; #2 names none")
    return chosen or 1


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")  # spreadsheets start their files with a byte-order mark


def _table(rows: Sequence[Sequence[str]], comments: Sequence[str]) -> Read:
    """Rows under a header, or without one; a header that is not understood is an error."""
    stated = space_in_words("\n".join(comments))
    if not rows or all(map(_is_number, rows[0])):
        return rows, stated
    columns, space = columns_of(rows[0])
    if None not in (space, stated) and space != stated and MILLIMETRES not in (space, stated):
        raise DataError(f"its header, {', '.join(rows[0])}, says {space}, and its comment {stated}")
    return _picked(rows[1:], columns, first=2), stated if space in (None, MILLIMETRES) and stated else space


def _picked(rows: Sequence[Sequence[str]], columns: Sequence[int], first: int = 1) -> list[list[str]]:
    if short := [number for number, row in enumerate(rows, start=first) if len(row) <= max(columns)]:
        raise DataError(f"row {short[0]} is shorter than its header says; {VALID}")
    return [[row[column] for column in columns] for row in rows]


def _elastix(rows: Sequence[Sequence[str]]) -> Read:
    points = rows[2:]
    if len(rows) < 2 or len(rows[1]) != 1 or rows[1][0] != str(len(points)):
        raise DataError(
            f"is a point file of elastix whose second line must be the number of its points, {len(points)}, "
            f"not {' '.join(rows[1]) if len(rows) > 1 else 'nothing'}"
        )
    return points, _ELASTIX_SPACES[rows[0][0].lower()]


def _slicer_space(system: Any) -> str | None:
    if system is None:
        return None
    if (name := str(system).strip().lower()) not in _SLICER_SPACES:
        raise DataError(f"its coordinate system is {system!r}; LPS, RAS or IJK is needed")
    return _SLICER_SPACES[name]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

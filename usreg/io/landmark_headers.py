"""What the names of columns and the comments of a landmark file say: which columns are x, y, z, and in which space."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import DataError

MILLIMETRES = "mm"
"""A file that says mm and not in which directions."""

_TRIPLES = {"xyz": None, "ijk": "voxel", "ras": "ras", "lps": "lps"}
"""Names of three columns, and the space that they state."""

_UNITS = {
    "": None,
    "mm": MILLIMETRES,
    "world": MILLIMETRES,
    "ras": "ras",
    "lps": "lps",
    **dict.fromkeys(("voxel", "voxels", "vox", "vx", "px", "pixel", "index", "idx"), "voxel"),
}
"""What may follow the name of an axis, and the space that it states."""

_COLUMN = re.compile(r"(?:(?:pos|coord|point)[ _.-]?)?([xyzijkraslp])[ _./-]*[(\[]?([a-z]*)[)\]]?")
_WORDS = re.compile(r"(?<![a-z])(lps|ras|voxels?|ijk|mm)(?![a-z])")
_OTHER_UNITS = re.compile(r"(?<![a-z])(cm|um|µm|microns?)(?![a-z])")


def columns_of(header: Sequence[str]) -> tuple[list[int], str | None]:
    """Where the columns x, y, z are, and the space that their names state.

    Raises:
        DataError: no three columns are named so, or several sets of three.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for number, cell in enumerate(header):
        match = _COLUMN.fullmatch(cell.strip().lower())
        if match and match[2] in _UNITS:
            for triple in (t for t in _TRIPLES if match[1] in t):
                found.setdefault((triple, match[2]), {})[match[1]] = number
    whole = {names: places for names, places in found.items() if len(places) == 3}
    if len(whole) != 1:
        what = "names no columns of points" if not whole else "names several sets of columns of points"
        raise DataError(
            f"its header, {', '.join(header)}, {what}; name three columns x,y,z (in landmarks_space), x_mm,y_mm,z_mm, "
            f"R,A,S or L,P,S (mm), or i,j,k (voxels), or leave the header out"
        )
    ((triple, unit), places), *_ = whole.items()
    return [places[axis] for axis in triple], _joined(header, {_TRIPLES[triple], _UNITS[unit], _of_ants(header)})


def space_in_words(text: str) -> str | None:
    """The space that a comment states: that of the words lps, ras, mm, voxel and ijk in it.

    Raises:
        DataError: the words contradict each other, or name another unit.
    """
    if other := _OTHER_UNITS.search(text.lower()):
        raise DataError(f"its comment, {text.strip()!r}, names the unit {other[0]}; points must be in mm or voxels")
    words = {"voxel" if word[0] in "vi" else word for word in _WORDS.findall(text.lower())}
    return _joined([text.strip()], words)


def _joined(header: Sequence[str], stated: set[str | None]) -> str | None:
    """The one space of several statements; mm goes with lps and with ras."""
    spaces = {space for space in stated if space is not None}
    if spaces & {"lps", "ras"}:
        spaces.discard(MILLIMETRES)
    if len(spaces) > 1:
        raise DataError(f"its header, {', '.join(header)}, contradicts itself: {' and '.join(sorted(spaces))}")
    return next(iter(spaces), None)


def _of_ants(header: Sequence[str]) -> str | None:
    """LPS for the columns x, y, z, t that ANTs reads and writes."""
    return "lps" if [cell.strip().lower() for cell in header[:4]] == ["x", "y", "z", "t"] else None

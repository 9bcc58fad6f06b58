"""What a landmark file says of its points beside where they are: names, descriptions and further columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .landmark_formats import fiducials_of, markups_of, table_of, tags_of, without_volume
from .landmark_headers import columns_of

Details = Mapping[str, Sequence[str]]
"""By the name of a column, a text for each point. Names are in ``label``, descriptions in ``desc``."""

_KNOWN = {"name": "label", "description": "desc"}
"""What columns are also called."""

_MARKUPS = {"label": "label", "description": "desc"}


def read_details(path: Path) -> Details:
    """The details of a landmark file that :func:`usreg.io.read_landmarks` can read; empty where it has none.

    They are the further columns of a ``.csv`` with a header and of a ``.fcsv``, labels and descriptions of a
    ``.mrk.json``, and the texts of a ``.tag``.
    """
    file = without_volume(path)
    suffix = file.suffix.lower()
    if suffix == ".csv":
        rows, _ = table_of(file)
        if not rows or all(re.fullmatch(r"[-+.\deE]+", cell) for cell in rows[0]):
            return {}
        return _columns(rows[0], rows[1:], columns_of(rows[0])[0])
    if suffix == ".fcsv":
        names, rows, _ = fiducials_of(file)
        return _columns(names, rows, [names.index(axis) for axis in "xyz"])
    if suffix == ".json":
        points = markups_of(file)["controlPoints"]
        found = {ours: [str(point.get(theirs, "")) for point in points] for theirs, ours in _MARKUPS.items()}
        return {name: texts for name, texts in found.items() if any(texts)}
    if suffix == ".tag":
        texts = [" ".join(re.findall(r'"([^"]*)"', line)) for line in tags_of(file)[0]]
        return {"label": texts} if any(texts) else {}
    return {}


def _columns(names: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int]) -> Details:
    """All columns but those of the places; a short row has empty cells."""
    found: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        if number not in places:
            key = _KNOWN.get(name.strip().lower(), name.strip())
            key = key.lower() if key.lower() in ("label", "desc") else key
            found[key or f"column {number + 1}"] = [row[number] if number < len(row) else "" for row in rows]
    return found

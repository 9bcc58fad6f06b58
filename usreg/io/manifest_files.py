"""The file of a manifest, as lists of cases by name: JSON, CSV or YAML, in any usual encoding."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError

SPLIT_NAMES = {"training": "train", "validation": "val", "testing": "test"}
"""Other names of the lists, as other programs have them."""

EXAMPLE = '{"train": [{"moving": "a.nii.gz", "fixed": "b.nii.gz"}, ...], "val": [...]}'

_SPLIT = "split"  # the column of a CSV that names the list of a row
_MARKS = (  # the longer one first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_lists(path: Path) -> dict[str, Any]:
    """The content of a manifest, its lists under the names ``train``, ``val`` and ``test``.

    - ``.csv``, ``.tsv``: a row per case, under a header line of the keys; a column ``split`` names the list, ``train``
      where there is none. Separated by commas, semicolons or tabs. An empty cell is a missing key
    - ``.yaml``, ``.yml``: a mapping from names to lists of cases
    - every other name: the same in JSON

    Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Raises:
        DataError: no such file, not of its format, no mapping, or a list under two of its names.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}; json_file must be the path of a manifest: {EXAMPLE}")
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        content: Any = _from_csv(path, text)
    elif suffix in (".yaml", ".yml"):
        content = _from_yaml(path, text)
    else:
        content = _from_json(path, text)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; a manifest is an object with lists of cases")
    return _with_usual_names(path, content)


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in {encoding.upper()} ({error}); save it as UTF-8") from error


def _from_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        first = text.lstrip().partition("\n")[0]
        hint = "; name a manifest in CSV .csv" if "," in first and not first.startswith(("{", "[")) else ""
        raise DataError(f"{path}: is not a JSON file ({error}){hint}") from error


def _from_yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is not a YAML file ({' '.join(str(error).split())})") from error


def _from_csv(path: Path, text: str) -> dict[str, list[dict[str, Any]]]:
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)  # the first of them where there is none
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))]
    keys = [cell.strip() for cell in rows[0]] if rows else []
    if not {"moving", "fixed"} <= set(keys):
        raise DataError(
            f"{path}: its first line is {header!r}; it must name the columns, among them moving and fixed: "
            "moving,fixed,moving_label,fixed_label,split"
        )
    lists: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) > len(keys):
            raise DataError(f"{path}: row {number} has {len(row)} cells and the header {len(keys)}")
        case = {key: _cell(cell.strip()) for key, cell in zip(keys, row, strict=False) if key and cell.strip()}
        lists.setdefault(str(case.pop(_SPLIT, "train")), []).append(case)
    return lists


def _cell(text: str) -> Any:
    """A cell's text, or the points that it lists."""
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _with_usual_names(path: Path, content: Mapping[Any, Any]) -> dict[str, Any]:
    lists: dict[str, Any] = {}
    for given, value in content.items():
        name = SPLIT_NAMES.get(str(given), str(given))
        if name in lists:
            raise DataError(f"{path}: has the list '{name}' twice, also as '{given}'; keep one of them")
        lists[name] = value
    return lists

"""Reading landmarks: points as voxel indices on the axes of their image file's array."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_VALID = "landmarks are N rows of three numbers: voxel indices (x, y, z) on the axes of the image file's array"
_SUFFIXES = ".npy, .npz, .txt, .csv"


def read_landmarks(source: Path | Sequence[Any]) -> NDArray[np.float64]:
    """Read landmarks from a list or a file.

    - a list of ``[x, y, z]``
    - ``.npy``, or ``.npz`` with a single array, (N, 3)
    - ``.txt``: three numbers a line, separated by white space or commas; ``#`` starts a comment
    - ``.csv``: three columns, or, under a header line with ``x``, ``y`` and ``z`` (any case), those among others

    Args:
        source: the list, or the file's path. Files are read without pickle, so that none can run code.

    Returns:
        (N, 3) voxel indices, fractions included, on the image file's array axes x, y, z.

    Raises:
        DataError: no such file, another kind of file, or not N rows of three finite numbers.
    """
    where = f"{source}: " if isinstance(source, Path) else ""
    try:
        points = np.asarray(_read_file(source) if isinstance(source, Path) else source, dtype=np.float64)
    except DataError:
        raise
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{where}cannot be read as numbers ({error}); {_VALID}") from error
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        what = f"an array of shape {points.shape}" if np.isfinite(points).all() else "NaN or infinite numbers"
        raise DataError(f"{where}holds {what}; {_VALID}")
    return points


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {_VALID}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if len(arrays.files) != 1:
                raise DataError(f"{path}: holds the arrays {arrays.files}; exactly one is needed")
            return arrays[arrays.files[0]]
    if suffix == ".txt":
        lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text().splitlines()]
        return [line for line in lines if line]
    if suffix == ".csv":
        return _read_csv(path)
    raise DataError(f"{path}: not a kind of landmark file; valid are {_SUFFIXES}, or a list in the manifest")


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets start their files with a byte-order mark
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    header = [cell.lower() for cell in rows[0]] if rows else []
    if not {"x", "y", "z"} <= set(header):
        return rows[1:] if header and not _is_number(header[0]) else rows
    columns = [header.index(axis) for axis in "xyz"]
    if short := [number for number, row in enumerate(rows, start=1) if len(row) <= max(columns)]:
        raise DataError(f"{path}: row {short[0]} is shorter than its header; {_VALID}")
    return [[row[column] for column in columns] for row in rows[1:]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

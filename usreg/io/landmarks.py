"""Reading landmarks: points, and the space that their file says they are in."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..spatial import Grid, lps_to_ras
from . import landmark_formats as formats
from .landmark_formats import MILLIMETRES, VALID, Read

SPACES = ("lps", "ras", "voxel")
"""Millimetres of ITK's world, millimetres of NIfTI's, and zero-based voxel indices x, y, z of the file's array."""

DEFAULT_SPACE = "lps"
"""That of landmarks which say nothing about it, unless the config does."""

_READERS: dict[str, Callable[[Path], Read]] = {
    ".csv": formats.read_csv,
    ".txt": formats.read_text,
    ".pts": formats.read_text,
    ".fcsv": formats.read_fcsv,
    ".json": formats.read_markups,
    ".tag": formats.read_tag,
}
_SUFFIXES = ".npy, .npz, .txt, .csv, .fcsv, .mrk.json, .tag or .pts"


@dataclass(frozen=True)
class Landmarks:
    """Points as a file or a list gives them.

    Attributes:
        points: (N, 3) in the order x, y, z.
        space: ``"lps"``, ``"ras"`` or ``"voxel"`` where the file says so, ``"mm"`` where it says millimetres but not in
            which directions, None where it says nothing.
        where: the file with a colon, for messages; empty for a list.
    """

    points: NDArray[np.float64]
    space: str | None = None
    where: str = ""

    def settled_space(self, configured: str | None) -> str:
        """The space that the file states, else the configured one, else ``"lps"``.

        Raises:
            DataError: the file and the config say different things.
        """
        agree = self.space in (None, configured) or (self.space == MILLIMETRES and configured in ("lps", "ras"))
        if configured is not None and not agree:
            raise DataError(
                f"{self.where}the file says that its points are {_in_words(self.space)}, and landmarks_space is "
                f"'{configured}'; leave landmarks_space out to believe the files that state their space"
            )
        if self.space in SPACES:
            return str(self.space)
        return configured or DEFAULT_SPACE

    def to_world(self, image: Grid, configured: str | None = None) -> NDArray[np.float64]:
        """The points (N, 3) in mm of the world, RAS.

        Args:
            image: the grid of the landmarks' image, axes x, y, z of the file's array.
            configured: the config's ``landmarks_space``, None where it is not set.

        Raises:
            DataError: see :meth:`settled_space`.
        """
        space = self.settled_space(configured)
        if space == "voxel":
            return image.to_world(self.points)
        return lps_to_ras(self.points) if space == "lps" else self.points


def check_landmarks_space(space: str | None) -> str | None:
    """Return the space in lower case, or raise a ValueError that names the valid ones; None stays None."""
    if space is not None and space.lower() not in SPACES:
        raise ValueError(f"landmarks_space must be one of {', '.join(SPACES)}, not {space!r}")
    return None if space is None else space.lower()


def read_landmarks(source: Path | Sequence[Any]) -> Landmarks:
    """Read landmarks from a list or a file.

    - a list of ``[x, y, z]``
    - ``.npy``, or ``.npz`` with a single array, (N, 3)
    - ``.txt``: three numbers a line, separated by white space or commas, perhaps below the names of the columns; ``#``
      starts a comment. A comment that says lps, ras, mm or voxel states the space
    - ``.csv``: three columns, or columns that a header line names: ``x, y, z``, ``x_mm, y_mm, z_mm``, ``R, A, S``,
      ``L, P, S``, ``i, j, k`` and the like. The columns ``x, y, z, t`` of ANTs state LPS
    - point files of elastix (``.txt``, ``.pts``): ``point`` states LPS, ``index`` voxels
    - ``.fcsv`` and ``.mrk.json`` of 3D Slicer: they state LPS or RAS
    - ``.tag`` of MNI: RAS. Of a file with the points of two volumes, ``FILE.tag#1`` or ``FILE.tag#2`` is one's

    Args:
        source: the list, or the file's path. Files are read without pickle, so that none can run code.

    Raises:
        DataError: no such file, another kind of file, a header that is not understood, or not N rows of three finite
            numbers.
    """
    if not isinstance(source, Path):
        return Landmarks(_checked("", source))
    where = f"{source}: "
    try:
        rows, space = _read_file(source)
    except DataError as error:
        raise DataError(f"{where}{error}") from error
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{where}cannot be read as numbers ({error}); {VALID}") from error
    return Landmarks(_checked(where, rows), space, where)


def _read_file(path: Path) -> Read:
    file = formats.without_volume(path)
    if not file.is_file():
        raise DataError(f"no such file; {VALID}")
    suffix = file.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _read_array(file), None
    if suffix not in _READERS:
        raise DataError(f"not a kind of landmark file; valid are {_SUFFIXES}, or a list in the manifest")
    return _READERS[suffix](path)


def _read_array(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    with np.load(path, allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise DataError(f"holds the arrays {arrays.files}; exactly one is needed")
        return arrays[arrays.files[0]]


def _checked(where: str, rows: Any) -> NDArray[np.float64]:
    try:
        points = np.asarray(rows, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}cannot be read as numbers ({error}); {VALID}") from error
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        what = f"an array of shape {points.shape}" if np.isfinite(points).all() else "NaN or infinite numbers"
        raise DataError(f"{where}holds {what}; {VALID}")
    return points


def _in_words(space: str | None) -> str:
    return {"voxel": "voxel indices", MILLIMETRES: "in mm"}.get(str(space), f"in mm, {str(space).upper()}")

"""The text at the beginning of MetaImage and NRRD files: what ITK does not check or does not pass on."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .formats import METAIMAGE, WAY_OUT, Kind

_TEXT = 65536  # bytes in which such a header ends
_CHUNK = 1 << 20
_LINES = re.MULTILINE | re.IGNORECASE
_WORLDS = rb"((left|right)[- ](anterior|posterior)[- ]superior|RAS|LAS|LPS)"
_WITH_TIME = {  # NRRD's worlds that ITK takes for LPS: what turns its answer, in RAS, right
    rb"(right[- ]anterior[- ]superior[- ]time|RAST)": (-1.0, -1.0, 1.0),
    rb"(left[- ]anterior[- ]superior[- ]time|LAST)": (1.0, -1.0, 1.0),
}
_UNITS = {  # mm
    "m": 1000.0,
    "meter": 1000.0,
    "cm": 10.0,
    "centimeter": 10.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "um": 1e-3,
    "\u00b5m": 1e-3,
    "\u03bcm": 1e-3,
    "micron": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "nanometer": 1e-6,
}
_NO_LENGTHS = ("", "?", "s", "ms", "sec", "second", "seconds")


@dataclass(frozen=True)
class TextHeader:
    """The header of a file, and where its voxels are.

    Attributes:
        path: the file.
        text: the header.
        data: the file that holds the voxels; None where there are several.
        start: the byte at which they begin; None where that is not known.
        compressed: whether they are a stream of zlib or gzip.
        oriented: whether the header says which way the axes run.
    """

    path: Path
    text: bytes
    data: Path | None
    start: int | None
    compressed: bool
    oriented: bool

    @classmethod
    def read(cls, path: Path, kind: Kind) -> TextHeader:
        """Read the header of a file.

        Raises:
            DataError: the voxels are in a file of their own, which is not there. ITK says then that the header is not.
        """
        with path.open("rb") as file:
            head = file.read(_TEXT)
        if kind is METAIMAGE:
            named = re.search(rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]+)\r?\n?", head, re.MULTILINE)
            end = named.end() if named else None
            compressed = _has(rb"CompressedData[ \t]*=[ \t]*True", head)
            oriented = _has(rb"(TransformMatrix|Rotation|Orientation)[ \t]*=", head[:end])
        else:
            blank = re.search(rb"\r?\n\r?\n", head)
            end = blank.end() if blank else None
            named = re.search(rb"^data ?file:[ \t]*([^\r\n]+)", head[:end], _LINES)
            compressed = _has(rb"encoding:[ \t]*gz", head[:end])
            if _has(rb"(line|byte) ?skip:", head[:end]):
                compressed = False  # where the stream begins is not known, so that it cannot be checked here
            oriented = _has(rb"space:[ \t]*" + _WORLDS, head[:end]) and _has(rb"space directions:", head[:end])
        name = named.group(1).decode(errors="replace").strip() if named else "LOCAL"
        if name.upper() == "LOCAL":
            return cls(path, head[:end], path, end, compressed, oriented)
        if name.startswith("LIST") or "%" in name:
            return cls(path, head[:end], None, None, compressed, oriented)
        data = path.parent / name
        if not data.is_file():
            raise DataError(
                f"{path}: cannot be read: its voxels are in {name}, which is not there; put it beside the file"
            )
        return cls(path, head[:end], data, 0, compressed, oriented)

    def to_ras_mm(self) -> tuple[NDArray[np.float64], tuple[str, ...]]:
        """What ITK leaves out about the world: a matrix (4, 4) to put before its affine, and doubts.

        ITK passes on the numbers of a header as mm, whatever unit they have, and takes some worlds for another one.

        Raises:
            DataError: the axes have different units of length.
        """
        turns = [turn for world, turn in _WITH_TIME.items() if _has(rb"space:[ \t]*" + world, self.text)]
        units = self._units()
        lengths = {_UNITS[unit] for unit in units if unit in _UNITS}
        if len(lengths) > 1:
            raise DataError(f"{self.path}: its axes have different units of length, {', '.join(units)}; give them one")
        unknown = [unit for unit in units if unit not in _UNITS]
        doubts = (f"its unit of length '{unknown[0]}' is not known: mm is taken",) if unknown and not lengths else ()
        scale = lengths.pop() if lengths else 1.0
        return np.diag([*(scale * np.array(turns[0] if turns else (1.0, 1.0, 1.0))), 1.0]), doubts

    def _units(self) -> list[str]:
        """The units of length that the header names, in lower case and in the singular."""
        found = re.search(rb"^(?:DistanceUnits[ \t]*=|(?:space )?units:)([^\r\n]*)", self.text, _LINES)
        words = found.group(1).decode(errors="replace").lower() if found else ""
        quoted = re.findall(r'"([^"]*)"', words) if '"' in words else words.split()
        return [unit if unit in _UNITS else unit.removesuffix("s") for unit in quoted if unit not in _NO_LENGTHS]

    def check_compressed(self) -> None:
        """Decompress to the end, where the checksum is: ITK takes what it gets, be it wrong or half.

        Raises:
            DataError: the stream is cut short or corrupt.
        """
        if not self.compressed or self.data is None or self.start is None:
            return
        stream = zlib.decompressobj(wbits=47)  # of zlib or of gzip, as the stream says
        problem = "it ends too early"
        try:
            with self.data.open("rb") as file:
                file.seek(self.start)
                while not stream.eof and (chunk := file.read(_CHUNK)):
                    stream.decompress(chunk)
        except zlib.error as error:
            problem = str(error)
        if not stream.eof:
            what = f"the voxels cannot be read, the file is cut short or corrupt ({problem})"
            raise DataError(f"{self.data}: {what}; {WAY_OUT}")


def _has(pattern: bytes, text: bytes) -> bool:
    """Whether a line of the text begins with the pattern."""
    return re.search(rb"^" + pattern, text, _LINES) is not None

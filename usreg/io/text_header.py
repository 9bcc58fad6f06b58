"""The text at the beginning of MetaImage and NRRD files: what ITK does not check or does not pass on."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .formats import METAIMAGE, WAY_OUT, Kind

_TEXT = 65536  # bytes in which such a header ends
_CHUNK = 1 << 20
_WORLDS = rb"((left|right)[- ](anterior|posterior)[- ]superior|RAS|LAS|LPS)"


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
            named = re.search(rb"^data ?file:[ \t]*([^\r\n]+)", head[:end], re.MULTILINE | re.IGNORECASE)
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
    return re.search(rb"^" + pattern, text, re.MULTILINE | re.IGNORECASE) is not None

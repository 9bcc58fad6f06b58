"""Prepared samples on disk: an entry holds one case, for one state of its files, of the options and of the code."""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..io.manifest import Case
from .labels import LabelMap
from .utils import Sample

logger = logging.getLogger(__name__)

_PARTS_OF_THE_CODE = ("datasets", "io", "spatial")
"""Packages of usreg that turn files into samples: an entry of other code is another entry."""

_ABANDONED = 3600.0  # seconds after which a half-written file is of a process that is gone
_NEW = ".new-"
_HEADER = 65536  # bytes, beyond the text header of any file
_DETACHED = re.compile(
    rb"^(ElementDataFile[ \t]*=[ \t]*(?!LOCAL|[ \t])|data ?file[ \t]*:)", re.MULTILINE | re.IGNORECASE
)
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Prepared:
    """What reading a case gives.

    Attributes:
        sample: tensors and label maps by key.
        remarks: warnings about its voxels, which a reader of the entry needs too.
    """

    sample: Sample
    remarks: Sequence[str]


class DiskCache:
    """Prepared samples in a folder, which any number of processes and runs may share.

    The name of an entry is a digest of everything that it depends on: the case as the manifest has it; path, size and
    times of each of its files; the options; usreg's code. So a file, an option or a version that changes asks for
    another entry, and nothing is ever served from an old one. Entries are written under another name and then renamed,
    and hold a digest of themselves: a process that is killed leaves no half of one, and a damaged one is missing.

    Nothing is deleted but what killed processes left. The folder may be emptied at any time.

    Args:
        folder: made where it is missing.
        options: everything beside the files that samples depend on; its ``repr`` must tell all values apart.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, folder: Path, options: object) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cache_dir {folder} cannot be made: {error.strerror or error}") from error
        self.folder = folder
        self._options = repr(options)
        self._told = False
        self._remove_abandoned()

    def get_or(self, case: Case, load: Callable[[Case], Prepared]) -> Prepared:
        """The case's entry; where there is none, what ``load`` returns, which becomes the entry."""
        path = self._path(case)
        prepared = _read(path)
        if prepared is None:
            prepared = load(case)
            if self._path(case) == path:  # else a file changed while it was read
                self._write(path, prepared)
        return prepared

    def _path(self, case: Case) -> Path:
        digest = hashlib.sha256()
        files = [(key, str(path), _states(path)) for key, path in sorted(case.files.items())]
        facts = (case.where, case.name, case.modality, sorted(case.metadata.items()), sorted(case.points.items()))
        for part in (_code(), self._options, files, facts):
            digest.update(repr(part).encode())
            digest.update(b"\0")
        return self.folder / f"{digest.hexdigest()}.pt"

    def _write(self, path: Path, prepared: Prepared) -> None:
        content = _packed(prepared)
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=_NEW, delete=False) as file:
                temporary = Path(file.name)
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # others who share the folder may read it
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            if not self._told:
                self._told = True
                logger.warning(
                    "cannot write to cache_dir %s: %s; what is not in it is prepared from its files each time",
                    *(self.folder, error.strerror or error),
                )

    def _remove_abandoned(self) -> None:
        for file in self.folder.glob(f"{_NEW}*"):
            try:
                if time.time() - file.stat().st_mtime > _ABANDONED:
                    file.unlink()
            except OSError:  # another process was quicker, or may do it
                continue


def _packed(prepared: Prepared) -> bytes:
    plain: dict[str, Any] = {}
    for key, value in prepared.sample.items():
        is_map = isinstance(value, LabelMap)
        plain[key] = {"indices": value.indices.clone(), "channels": value.channels} if is_map else value.clone()
    buffer = io.BytesIO()
    torch.save({"sample": plain, "remarks": list(prepared.remarks)}, buffer)
    return buffer.getvalue()


def _read(path: Path) -> Prepared | None:
    """An entry; None where there is none, or where it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, packed = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    found = torch.load(io.BytesIO(packed), weights_only=True)
    sample = {key: LabelMap(**value) if isinstance(value, dict) else value for key, value in found["sample"].items()}
    return Prepared(sample, found["remarks"])


def _states(path: Path) -> list[tuple[Any, ...]]:
    """Name, size and times of everything that a path of a manifest stands for; a copy may keep the time of writing."""
    found = []
    for file in _files(path):
        try:
            state = file.stat()
            found.append((str(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns))
        except OSError:
            found.append((str(file), -1, -1, -1))
    return found


def _files(path: Path) -> Iterator[Path]:
    """The files behind a path: those of a folder, both of a pair, all beside a header whose voxels lie elsewhere."""
    if not path.exists() and "#" in path.name:  # FILE.tag#1
        path = path.with_name(path.name.rpartition("#")[0])
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
        return
    yield path
    if path.name.lower().removesuffix(".gz").endswith((".hdr", ".img")):
        stem = path.name.partition(".")[0]
        yield from sorted(path.parent.glob(f"{stem}.*"))
    elif path.suffix.lower() in (".mhd", ".mha", ".nhdr", ".nrrd") and path.is_file():
        with path.open("rb") as file:
            if _DETACHED.search(file.read(_HEADER)):
                yield from sorted(other for other in path.parent.iterdir() if other.is_file())


@functools.cache
def _code() -> str:
    """A digest of the code that makes samples of files."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(__file__).parent.parent
    for part in _PARTS_OF_THE_CODE:
        for file in sorted((package / part).glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()

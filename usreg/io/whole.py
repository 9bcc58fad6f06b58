"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UsageError


def writable_folder(out: Path, contents: Iterable[str]) -> Path:
    """The folder, made.

    Args:
        out: the folder.
        contents: names of the results, none of which may be there: nothing is overwritten.

    Raises:
        UsageError: it cannot be made or written to, or holds results.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to the folder {out}: {error.strerror or error}; choose another one by --out"
        ) from error
    if taken := sorted(name for name in contents if (out / name).exists()):
        raise UsageError(f"{out} already holds {', '.join(taken)}: name another folder by --out, or empty this one")
    return out


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name to write a file under; at the end of the block the file gets the name ``path``.

    After an error there is neither.

    Raises:
        UsageError: the file cannot be written: no space is left, or the folder is gone.
    """
    temporary = path.with_name(f".new-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; free some space, or choose another folder. No half of a "
            "file was left"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text.

    Raises:
        UsageError: see :func:`whole`.
    """
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

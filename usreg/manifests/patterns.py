"""Files by the part of their names that a pattern leaves open."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ..errors import DataError

_WILD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")


def has_wildcard(pattern: str) -> bool:
    """Whether the pattern stands for more than one file."""
    return _WILD.search(pattern) is not None


def find(pattern: str) -> dict[str, Path]:
    """The files, or folders, that a pattern matches, by what its wildcards stand for.

    Parts that repeat count once, so that ``sub-*/sub-*_T1.nii.gz`` gives ``01`` for ``sub-01/sub-01_T1.nii.gz``;
    different parts are joined by ``_``.

    Args:
        pattern: of a shell: ``*`` and ``?`` within a name, ``[abc]``, ``**`` for any folders. Without one of these, it
            is a path, whose key is the empty text.

    Raises:
        DataError: nothing matches, or two files have the same varying part.
    """
    if not has_wildcard(pattern):
        if not Path(pattern).exists():
            raise DataError(f"{pattern}: no such file")
        return {"": Path(pattern)}
    expression = re.compile(_expression(_plain(pattern)))
    found: dict[str, Path] = {}
    for name in sorted(glob.glob(pattern, recursive=True)):
        match = expression.fullmatch(_plain(name))
        if match is None:
            continue
        parts = dict.fromkeys(part.strip("/") for part in match.groups() if part)
        key = "_".join(parts)
        if key in found:
            raise DataError(f"'{pattern}' has {found[key]} and {name} for '{key}'; give a narrower pattern")
        found[key] = Path(name)
    if not found:
        raise DataError(f"'{pattern}' matches no file (looked from {Path.cwd()}); is it right, and in quotes?")
    return found


def _plain(path: str) -> str:
    return path.replace(os.sep, "/").rstrip("/")


def _expression(pattern: str) -> str:
    """A regular expression with one group per wildcard."""
    translated = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    pieces = _WILD.split(pattern)  # every second one is a wildcard
    return "".join(
        (translated.get(piece) or f"({piece.replace('[!', '[^')})") if index % 2 else re.escape(piece)
        for index, piece in enumerate(pieces)
    )

"""Reading the manifest of ``custom_dataset``: which files belong to which case."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError
from ..registry import did_you_mean
from .manifest_files import EXAMPLE, read_lists
from .manifest_keys import check_keys

IMAGES = ("moving", "fixed")
LABELS = ("moving_label", "fixed_label")
MASKS = ("moving_mask", "fixed_mask")
LANDMARKS = ("moving_landmarks", "fixed_landmarks")
OPTIONAL = (*LABELS, *MASKS, *LANDMARKS)

_PAIRED = (LABELS, LANDMARKS)
_KNOWN = (*IMAGES, *OPTIONAL)
_LISTED = 10  # faulty cases that an error lists
_VARIABLE = re.compile(r"\$(?:\{\w+\}|\w+)")

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One pair of the manifest.

    Attributes:
        where: place in the manifest for messages, such as ``"train[3]"``.
        name: the case's ``case`` or ``subject_id`` from the manifest, else ``where``.
        files: absolute paths by key: images, labels, masks and landmark files.
        points: landmarks written as a list into the manifest, by key.
        modality: its modality, None where the manifest gives none.
        metadata: every other key and the modality, as strings.
    """

    where: str
    name: str
    files: Mapping[str, Path]
    points: Mapping[str, list[Any]]
    modality: str | None
    metadata: Mapping[str, str]

    def has(self, key: str) -> bool:
        """Whether the manifest gives this key of the case."""
        return key in self.files or key in self.points

    def landmarks(self, key: str) -> Path | list[Any]:
        """The file or the list of the landmarks under ``key``."""
        return self.files[key] if key in self.files else self.points[key]


class NoCasesError(DataError):
    """A manifest without a list, or with an empty one: there is nothing to validate on, which may be meant."""


def read_manifest(json_file: Path, split: str) -> list[Case]:
    """Read the cases of one list of a manifest.

    Args:
        json_file: the manifest: JSON, CSV or YAML (:func:`usreg.io.manifest_files.read_lists`). Relative paths in it
            are relative to its folder; ``~`` and variables of the environment (``$DATA/a.nii.gz``, ``${DATA}``) are
            filled in.
        split: the name of the list: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        NoCasesError: no such list, or an empty one.
        DataError: no such file, not of its format, a list whose name is misspelt, a case without one of its images or
            with a label or landmarks for only one image, a misspelt key, a value of a wrong type, a variable that is
            not set, or a pair listed in two splits. The text lists all faulty cases.
    """
    content = read_lists(json_file)
    entries = content.get(split)
    if not isinstance(entries, list):
        hint = did_you_mean(split, [name for name in content if name not in ("train", "val", "test")])
        kind = DataError if hint or split in content else NoCasesError
        raise kind(f"{json_file}: has no list '{split}', only {sorted(content)}.{hint} A manifest is {EXAMPLE}")
    if not entries:
        raise NoCasesError(f"{json_file}: the list '{split}' is empty; it needs at least one case")
    numbered = [(f"{split}[{index}]", entry) for index, entry in enumerate(entries)]
    cases = each_case(json_file, numbered, lambda item: read_case(json_file.parent, *item))
    _check_splits(json_file, split, cases, content)
    return cases


def each_case(json_file: Path, items: Iterable[S], action: Callable[[S], T]) -> list[T]:
    """Do something with every case, and raise one DataError that lists what was wrong with all of them."""
    results, problems = [], []
    for item in items:
        try:
            results.append(action(item))
        except DataError as error:
            problems.append(str(error))
    if problems:
        listed = problems[:_LISTED]
        if len(problems) > len(listed):
            listed.append(f"... and {len(problems) - len(listed)} more cases")
        raise DataError("\n".join([f"{json_file}: {len(problems)} case(s) cannot be used:", *listed]))
    return results


def read_case(folder: Path, where: str, entry: Any) -> Case:
    """One entry of a manifest's list.

    Args:
        folder: that of the manifest.
        where: the entry's place, for messages.
        entry: as the manifest has it.

    Raises:
        DataError: what :func:`read_manifest` says of a case.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is {entry!r}; a case is an object such as {{'moving': PATH, 'fixed': PATH}}")
    given = {key: value for key, value in entry.items() if value is not None}
    _check_pairs(where, given)
    check_keys(where, given, _KNOWN)
    points = {key: given[key] for key in LANDMARKS if isinstance(given.get(key), list)}
    files = {key: _path(folder, where, key, given[key]) for key in _KNOWN if key in given and key not in points}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    metadata = {key: value for key, value in metadata.items() if key not in _KNOWN}
    name = metadata.get("case", metadata.get("subject_id", where))
    return Case(where, name, files, points, metadata.get("modality"), metadata)


def _check_pairs(where: str, given: Mapping[str, Any]) -> None:
    others = [key for key in given if key not in _KNOWN]
    for key in IMAGES:
        if key not in given:
            raise DataError(f"{where}: '{key}' is missing; a case needs both images.{did_you_mean(key, others)}")
    for pair in _PAIRED:
        there = [key for key in pair if key in given]
        if len(there) == 1:
            lacking = next(key for key in pair if key not in given)
            raise DataError(
                f"{where}: '{there[0]}' has no pair; add '{lacking}' or leave out both.{did_you_mean(lacking, others)}"
            )


def _path(folder: Path, where: str, key: str, value: Any) -> Path:
    if not isinstance(value, str) or not value:
        valid = "a path or a list of [x, y, z]" if key in LANDMARKS else "a path"
        raise DataError(f"{where}.{key}: is {value!r}; it must be {valid}")
    try:
        return _resolve(folder, value)
    except DataError as error:
        raise DataError(f"{where}.{key}: {error}") from error


def _resolve(folder: Path, path: str) -> Path:
    """The absolute path, with the variables of the environment filled in, unless a file really has a $ in its name."""
    literal = (folder / Path(path).expanduser()).resolve()
    if "$" not in path or literal.exists():
        return literal
    filled = os.path.expandvars(path)
    if unset := _VARIABLE.search(filled):
        raise DataError(f"{path!r}: the variable {unset.group()} is not set in the environment")
    return (folder / Path(filled).expanduser()).resolve()


def _check_splits(json_file: Path, split: str, cases: list[Case], content: Mapping[str, Any]) -> None:
    """Raise where a pair of this list is also in another one: a validation on it would measure memory."""
    own = {tuple(case.files[key] for key in IMAGES): case.where for case in cases}
    for other, entries in content.items():
        if other == split or not isinstance(entries, list):
            continue
        for index, entry in enumerate(entries):
            paths = [entry.get(key) if isinstance(entry, dict) else None for key in IMAGES]
            pair = tuple(_resolve(json_file.parent, path) for path in paths if isinstance(path, str))
            if pair in own:
                raise DataError(f"{json_file}: {own[pair]} and {other}[{index}] are the same pair; keep it in one list")

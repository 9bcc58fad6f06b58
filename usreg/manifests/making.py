"""A manifest from patterns of files' names."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..io.manifest import IMAGES, LABELS, LANDMARKS, MASKS
from .patterns import find

KEYS = (*IMAGES, *LABELS, *MASKS, *LANDMARKS)

_BOTH = (LABELS, LANDMARKS)  # a case has both of these or none


@dataclass
class Made:
    """What was found.

    Attributes:
        lists: the manifest: cases by list.
        without_partner: files that are in no case, by key.
        notes: what else was left out, in words.
    """

    lists: dict[str, list[dict[str, str]]]
    without_partner: dict[str, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make_manifest(
    patterns: Mapping[str, str],
    out: Path,
    *,
    val: float = 0.0,
    test: float = 0.0,
    seed: int = 42,
    overwrite: bool = False,
) -> Made:
    """Pair files by the part of their names that the patterns leave open, and write a manifest.

    A pattern without a wildcard is one file for all cases, such as an atlas.

    Args:
        patterns: by key of a case: ``moving`` and ``fixed``, and labels, masks and landmarks.
        out: the JSON file to write. Paths below its folder become relative, others absolute.
        val: the share of the cases, 0 to 1, in the list ``val``; at least one case where it is above 0.
        test: the same for the list ``test``.
        seed: of the draw. The same files and the same seed give the same lists.
        overwrite: replace a file that exists.

    Raises:
        DataError: a pattern matches nothing, or no case has both images, or ``out`` exists.
        ValueError: shares that are none, or leave nothing for training.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise ValueError(f"val and test must be shares from 0 to 1 that leave cases for training, not {val} and {test}")
    for pair in _BOTH:
        if len(given := [key for key in pair if key in patterns]) == 1:
            raise DataError(f"'{given[0]}' needs its pair: give {' and '.join(pair)} or neither")
    if out.exists() and not overwrite:
        raise DataError(f"{out}: exists; give another name, or --force to replace it")
    files = {key: find(patterns[key]) for key in KEYS if key in patterns}
    made = Made({})
    names = _names(files, made)
    cases = {name: _case(name, files, made) for name in names}
    _note_partnerless(files, cases, made)
    parts = _split(sorted(cases, key=_natural), val, test, seed)
    folder = out.resolve().parent
    for split, members in parts.items():
        made.lists[split] = [
            {"case": name or "0", **{key: _written(path, folder) for key, path in cases[name].items()}}
            for name in members
        ]
    out.write_text(json.dumps(made.lists, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return made


def _lookup(found: Mapping[str, Path], name: str) -> Path | None:
    """The file of a name; that of a pattern without wildcards is everyone's."""
    return found[""] if set(found) == {""} else found.get(name)


def _names(files: Mapping[str, Mapping[str, Path]], made: Made) -> list[str]:
    """The varying parts for which there are two different images."""
    images = [files[key] for key in IMAGES]
    candidates = dict.fromkeys(name for found in images for name in found)
    if len(candidates) > 1:
        candidates.pop("", None)
    names = []
    for name in candidates:
        moving, fixed = (_lookup(found, name) for found in images)
        if moving is None or fixed is None:
            continue
        if moving.resolve() == fixed.resolve():
            made.notes.append(f"{moving}: is both moving and fixed; left out")
            continue
        names.append(name)
    if not names:
        examples = "; ".join(f"{key}: {', '.join(repr(name) for name in list(files[key])[:3])}" for key in IMAGES)
        raise DataError(
            f"no case has both images. The varying parts of the names are {examples}; they must be the same"
        )
    return names


def _case(name: str, files: Mapping[str, Mapping[str, Path]], made: Made) -> dict[str, Path]:
    case = {key: path for key, found in files.items() if (path := _lookup(found, name)) is not None}
    for pair in _BOTH:
        there = [key for key in pair if key in case]
        if len(there) == 1:
            lacking = next(key for key in pair if key not in case)
            made.notes.append(f"case '{name}': has no {lacking}, so that its {there[0]} is left out")
            del case[there[0]]
        elif not there and any(key in files for key in pair):
            made.notes.append(f"case '{name}': has neither {pair[0]} nor {pair[1]}")
    return case


def _note_partnerless(
    files: Mapping[str, Mapping[str, Path]], cases: Mapping[str, Mapping[str, Path]], made: Made
) -> None:
    used = {path for case in cases.values() for path in case.values()}
    for key, found in files.items():
        if rest := [path for path in found.values() if path not in used]:
            made.without_partner[key] = rest


def _split(names: list[str], val: float, test: float, seed: int) -> dict[str, list[str]]:
    """The names in their order, drawn into lists; lists that are not asked for are not there."""
    drawn = list(names)
    random.Random(seed).shuffle(drawn)
    counts = {split: max(1, round(share * len(names))) for split, share in (("val", val), ("test", test)) if share > 0}
    if sum(counts.values()) >= len(names):
        raise ValueError(f"{len(names)} case(s) are too few to take {counts} out of them; give no val and no test")
    chosen: dict[str, set[str]] = {}
    for split, count in counts.items():
        chosen[split] = {drawn.pop() for _ in range(count)}
    chosen = {"train": set(drawn), **chosen}
    return {split: [name for name in names if name in members] for split, members in chosen.items()}


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts 2 before 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _written(path: Path, folder: Path) -> str:
    absolute = path.resolve()
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else absolute.as_posix()

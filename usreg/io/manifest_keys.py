"""Keys of a case that look like known ones: a misspelt label must not pass for metadata."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..errors import DataError

_KINDS = {
    "label": ("label", "labels", "seg", "segs", "segmentation", "segmentations", "labelmap", "annotation"),
    "mask": ("mask", "masks", "roi"),
    "landmarks": ("landmark", "landmarks", "point", "points", "keypoint", "keypoints", "fiducials"),
}
_OTHER_NAMES = {
    name: f"{side}_{kind}"
    for side in ("moving", "fixed")
    for kind, names in _KINDS.items()
    for word in names
    for name in (f"{side}_{word}", f"{word}_{side}", f"{side}{word}")
}
_NEAR = 0.88  # of difflib: one or two letters
_ENDINGS = ".nii .gz .hdr .img .mgh .mgz .mha .mhd .nrrd .nhdr .mnc .dcm .npy .npz .txt .csv .json .fcsv .tag .pts"


def check_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise a DataError for a key that is not known, looks like one that is missing, and holds a file or points.

    ``moving_labels`` would otherwise be metadata, and the case one without labels.
    """
    names = set(known)
    for key, value in given.items():
        if key in names or not _is_data(value):
            continue
        meant = _meant(key, names)
        if meant is not None and meant not in given:
            raise DataError(
                f"{where}: '{key}' is not a key of a case. Did you mean '{meant}'? Metadata needs a name that is less "
                "like it"
            )


def _is_data(value: Any) -> bool:
    """Whether a value is a path of a volume or of landmarks, or a list of points."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], list)
    return isinstance(value, str) and PurePosixPath(value).suffix.lower() in _ENDINGS.split()


def _meant(key: str, known: Iterable[str]) -> str | None:
    plain = key.strip().lower().replace("-", "_").replace(" ", "_")
    if plain in _OTHER_NAMES:
        return _OTHER_NAMES[plain]
    return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=_NEAR)), None)

"""ANTs: ``ants.registration``; the second argument is its type of transform (SyN, SyNCC)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import ants
from jobs import run_jobs


def read(job: dict[str, str]) -> list[Any]:
    """The two images and the moving label."""
    return [ants.image_read(job[name]) for name in ("fixed", "moving", "moving_label")]


def register(pair: list[Any]) -> dict[str, Any]:
    """Affine and deformable, with ANTs's defaults."""
    return ants.registration(fixed=pair[0], moving=pair[1], type_of_transform=sys.argv[2])


def write(pair: list[Any], found: dict[str, Any], out: Path) -> None:
    """The label by ANTs's own resampling."""
    transforms = found["fwdtransforms"]
    label = ants.apply_transforms(pair[0], pair[2], transforms, interpolator="nearestNeighbor")
    ants.image_write(label, str(out / "warped_label.nii.gz"))
    field = next(path for path in transforms if path.endswith("Warp.nii.gz"))
    shutil.copy(field, out / "field.nii.gz")


if __name__ == "__main__":
    run_jobs(read, register, write)

"""USReg with its packaged default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jobs import run_jobs

from usreg.io import read_volume
from usreg.io.transforms import write_field
from usreg.registration.pair import Registration, Volume, register_pair
from usreg.registration.stages import load_stages
from usreg.spatial import Grid, resample

CONFIG, STAGES = load_stages()


def _volume(path: str) -> Volume:
    image = read_volume(Path(path))
    size = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    return Volume(image.as_tensor().float(), Grid(size, np.asarray(image.affine, dtype=np.float64)))


def read(job: dict[str, str]) -> tuple[Volume, Volume, Volume]:
    """The two images and the moving label."""
    return _volume(job["fixed"]), _volume(job["moving"]), _volume(job["moving_label"])


def register(pair: tuple[Volume, Volume, Volume]) -> Registration:
    """Forward and inverse field included."""
    return register_pair(pair[0], pair[1], STAGES, quantiles=CONFIG.quantiles)


def write(pair: tuple[Volume, Volume, Volume], found: Registration, out: Path) -> None:
    """The label by our own resampling."""
    fixed, _, label = pair
    where: dict[str, Any] = {"mode": "nearest", "padding_mode": "zeros"}
    warped = resample(label.voxels, label.grid, fixed.grid, found.transform, **where)
    nib.save(nib.Nifti1Image(warped[0].numpy().astype(np.float32), fixed.grid.affine), out / "warped_label.nii.gz")
    assert found.field is not None
    write_field(out / "field.nii.gz", found.field)


if __name__ == "__main__":
    run_jobs(read, register, write)

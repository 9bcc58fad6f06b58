"""ConvexAdam (MIND), with its defaults. It has no affine: the moving image is put on the fixed one's grid first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from convexAdam.convex_adam_MIND import convex_adam_pt
from jobs import run_jobs
from scipy.ndimage import map_coordinates


def _places(fixed: Any, moving: Any, field: np.ndarray | float) -> np.ndarray:
    """(3, D, H, W): voxels of ``moving`` at the voxels of ``fixed`` plus a field."""
    matrix = np.linalg.inv(moving.affine) @ fixed.affine
    points = np.indices(fixed.shape).astype(np.float64) + field
    return np.tensordot(matrix[:3, :3], points, axes=1) + matrix[:3, 3].reshape(3, 1, 1, 1)


def read(job: dict[str, str]) -> dict[str, Any]:
    """The two images on one grid, and the files."""
    files = {name: nib.load(job[name]) for name in ("fixed", "moving", "moving_label")}
    moving = map_coordinates(files["moving"].get_fdata(), _places(files["fixed"], files["moving"], 0.0), order=1)
    return {**files, "images": (files["fixed"].get_fdata().astype(np.float32), moving.astype(np.float32))}


def register(pair: dict[str, Any]) -> np.ndarray:
    """(3, D, H, W) in voxels."""
    field = convex_adam_pt(*pair["images"], dtype=torch.float32, device=torch.device("cpu"))
    return np.moveaxis(np.asarray(field), -1, 0)


def write(pair: dict[str, Any], found: np.ndarray, out: Path) -> None:
    """The label is resampled once, from its own grid."""
    fixed, label = pair["fixed"], pair["moving_label"]
    warped = map_coordinates(label.get_fdata(), _places(fixed, label, found), order=0)
    nib.save(nib.Nifti1Image(warped.astype(np.float32), fixed.affine), out / "warped_label.nii.gz")
    np.save(out / "field.npy", found.astype(np.float32))


if __name__ == "__main__":
    run_jobs(read, register, write)

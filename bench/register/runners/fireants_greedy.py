"""FireANTs on a CPU, without its fused kernels: greedy, with the settings of its documentation.

It begins at the position of the headers. Its affine registration leads away from there on these pairs: with learning
rates of 3e-3 and 3e-4, at scales 4 and 2, the Dice of the brain falls from 0.52 to 0.38 and 0.44. Images of less than
32 voxels along an axis, which it refuses, are continued behind their ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from fireants.io import BatchedImages, Image
from fireants.registration.greedy import GreedyRegistration
from jobs import run_jobs

SMALLEST = 32
"""Voxels along an axis."""


def read(job: dict[str, str]) -> dict[str, Any]:
    """The images as FireANTs has them, and the files."""
    modes = {"fixed": "edge", "moving": "edge", "moving_label": "constant"}
    images = {name: BatchedImages([_load(job, name, mode)]) for name, mode in modes.items()}
    return {**images, "job": job}


def _load(job: dict[str, str], name: str, mode: Any) -> Image:
    """An image of a job, large enough."""
    path = Path(job[name])
    image = nib.load(path)
    missing = [max(0, SMALLEST - size) for size in image.shape]
    if any(missing):
        path = Path(job["out"]) / path.name
        data = np.pad(np.asarray(image.dataobj), [(0, n) for n in missing], mode=mode)
        nib.save(nib.Nifti1Image(data, image.affine), path)
    return Image.load_file(str(path), device="cpu")


def register(pair: dict[str, Any]) -> Any:
    """The registration object, which holds the field."""
    greedy = GreedyRegistration(
        [4, 2, 1], [200, 100, 25], pair["fixed"], pair["moving"], cc_kernel_size=5, optimizer_lr=0.5
    )
    greedy.optimize()
    return greedy


def write(pair: dict[str, Any], found: Any, out: Path) -> None:
    """The label at FireANTs's own coordinates."""
    fixed = nib.load(pair["job"]["fixed"])
    width, height, depth = fixed.shape
    with torch.no_grad():
        places = found.get_warped_coordinates(pair["fixed"], pair["moving_label"])
        warped = F.grid_sample(pair["moving_label"]().float(), places, mode="nearest", align_corners=True)[0, 0]
        field = found.warp.get_warp().detach()[0].numpy()  # (z, y, x, 3) in x, y, z of [-1, 1]
    nib.save(
        nib.Nifti1Image(warped.numpy().T[:width, :height, :depth].astype(np.float32), fixed.affine),
        out / "warped_label.nii.gz",
    )
    half = (np.array(field.shape[2::-1]) - 1) / 2
    voxels = np.moveaxis(field, -1, 0).transpose(0, 3, 2, 1) * half.reshape(3, 1, 1, 1)
    np.save(out / "field.npy", voxels[:, :width, :height, :depth].astype(np.float32))


if __name__ == "__main__":
    run_jobs(read, register, write)

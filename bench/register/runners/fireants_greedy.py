"""FireANTs on a CPU, without its fused kernels: affine, then greedy, with the settings of its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from fireants.io import BatchedImages, Image
from fireants.registration.affine import AffineRegistration
from fireants.registration.greedy import GreedyRegistration
from jobs import run_jobs


def read(job: dict[str, str]) -> dict[str, Any]:
    """The images as FireANTs has them, and the files."""
    images = {name: BatchedImages([Image.load_file(job[name], device="cpu")]) for name in ("fixed", "moving")}
    return {**images, "label": BatchedImages([Image.load_file(job["moving_label"], device="cpu")]), "job": job}


def register(pair: dict[str, Any]) -> Any:
    """The registration object, which holds affine and field."""
    images = pair["fixed"], pair["moving"]
    affine = AffineRegistration([4, 2, 1], [200, 100, 50], *images, optimizer_lr=3e-3, cc_kernel_size=5)
    affine.optimize()
    matrix = affine.get_affine_matrix().detach()
    greedy = GreedyRegistration(
        [4, 2, 1], [200, 100, 25], *images, cc_kernel_size=5, optimizer_lr=0.5, init_affine=matrix
    )
    greedy.optimize()
    return greedy


def write(pair: dict[str, Any], found: Any, out: Path) -> None:
    """The label at FireANTs's own coordinates."""
    with torch.no_grad():
        places = found.get_warped_coordinates(pair["fixed"], pair["label"])
        warped = F.grid_sample(pair["label"]().float(), places, mode="nearest", align_corners=True)[0, 0]
        field = found.warp.get_warp().detach()[0].numpy()  # (z, y, x, 3) in x, y, z of [-1, 1]
    fixed = nib.load(pair["job"]["fixed"])
    nib.save(nib.Nifti1Image(warped.numpy().T.astype(np.float32), fixed.affine), out / "warped_label.nii.gz")
    half = (np.array(fixed.shape) - 1) / 2
    np.save(
        out / "field.npy",
        (np.moveaxis(field, -1, 0).transpose(0, 3, 2, 1) * half.reshape(3, 1, 1, 1)).astype(np.float32),
    )


if __name__ == "__main__":
    run_jobs(read, register, write)

"""Greedy (PICSL): affine, then deformable, with local normalised cross-correlation, as its documentation shows it."""

from __future__ import annotations

import io
import os
from pathlib import Path

from jobs import run_jobs
from picsl_greedy import Greedy3D

THREADS = os.environ["OMP_NUM_THREADS"]
METRIC = "-m NCC 2x2x2"
"""Windows of five voxels."""


def read(job: dict[str, str]) -> dict[str, str]:
    """Greedy reads the files itself: a second of a brain's time."""
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    return job


def _run(command: str) -> None:
    Greedy3D().execute(f"-d 3 -threads {THREADS} {command}", out=io.StringIO())


def register(job: dict[str, str]) -> None:
    """Files in, files out."""
    images, out = f"-i {job['fixed']} {job['moving']}", job["out"]
    _run(f"-a {images} {METRIC} -n 100x50x10 -ia-image-centers -o {out}/affine.mat")
    _run(f"{images} {METRIC} -n 100x50x10 -it {out}/affine.mat -o {out}/field.nii.gz")


def write(job: dict[str, str], found: None, out: Path) -> None:
    """The label by Greedy's own resampling."""
    label = f"-ri NN -rm {job['moving_label']} {out}/warped_label.nii.gz"
    _run(f"-rf {job['fixed']} {label} -r {out}/field.nii.gz {out}/affine.mat")


if __name__ == "__main__":
    run_jobs(read, register, write)

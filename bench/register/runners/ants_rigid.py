"""ANTs: a rigid registration by Mattes' mutual information from a given start, in ANTs' own environment."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import ants

if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        fixed, moving = (ants.image_read(job[name]) for name in ("fixed", "moving"))
        options = {"mask": ants.image_read(job["mask"])} if "mask" in job else {}
        found = ants.registration(
            *(fixed, moving),
            type_of_transform="Rigid",
            initial_transform=job["start"],
            aff_metric="mattes",
            random_seed=1,
            **options,
        )
        (transform,) = found["fwdtransforms"]
        shutil.copy(transform, job["found"])

"""A registration on a GPU gives what it gives on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from usreg.registration.pair import Volume, register_pair
from usreg.registration.stages import load_stages
from usreg.spatial import Grid
from usreg_kernels import gaussian_smooth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU (torch.cuda.is_available() is False)"),
]

TOLERANCE = 1e-3
"""Voxels, on average: how far the two fields may lie apart."""


def test_a_gpu_gives_the_field_of_a_cpu() -> None:
    grid = Grid((40, 44, 48), np.eye(4))
    noise = [torch.rand(1, 1, 40, 44, 48, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    moving = gaussian_smooth(noise[0], 2.0)[0]
    fixed = moving.roll(1, dims=2) + 0.1 * gaussian_smooth(noise[1], 2.0)[0]
    _, stages = load_stages()
    fields = [register_pair(Volume(fixed, grid), Volume(moving, grid), stages, device=d).ddf for d in ("cpu", "cuda")]
    assert fields[0] is not None
    assert fields[1] is not None
    assert (fields[0] - fields[1]).norm(dim=1).mean() < TOLERANCE

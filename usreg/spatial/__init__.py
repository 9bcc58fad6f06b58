"""Where voxels lie: grids, transforms between points of the world, and resampling. The world is RAS, in mm."""

from __future__ import annotations

from .grid import Grid, lps_to_ras
from .resample import resample
from .sizes import whole_size
from .transforms import Affine, Chain, DisplacementField, InverseField, Transform
from .vectors import vector_lengths

__all__ = [
    "Affine",
    "Chain",
    "DisplacementField",
    "Grid",
    "InverseField",
    "Transform",
    "lps_to_ras",
    "resample",
    "vector_lengths",
    "whole_size",
]

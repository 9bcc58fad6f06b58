"""Datasets: importing this package registers the built-in ones; :func:`build_dataset` makes one from its section."""

from __future__ import annotations

from . import custom, deepreg_synthetic, synthetic
from .utils import DATASET_REGISTRY, Sample, build_dataset, collate, grid_of, register_dataset

DATASET_REGISTRY.mark_builtins()

__all__ = [
    "DATASET_REGISTRY",
    "Sample",
    "build_dataset",
    "collate",
    "custom",
    "deepreg_synthetic",
    "grid_of",
    "register_dataset",
    "synthetic",
]

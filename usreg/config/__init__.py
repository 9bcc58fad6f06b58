"""The configuration of a run: its keys (``schema``), their checks, and how a YAML file becomes one (``loading``)."""

from __future__ import annotations

from .loading import config_of, load_config, save_config
from .schema import AugmentationConfig, Config, OptimizerConfig, TensorBoardConfig, TrainingConfig, WandbConfig

__all__ = [
    "AugmentationConfig",
    "Config",
    "OptimizerConfig",
    "TensorBoardConfig",
    "TrainingConfig",
    "WandbConfig",
    "config_of",
    "load_config",
    "save_config",
]

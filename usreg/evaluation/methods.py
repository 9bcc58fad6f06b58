"""What is evaluated: networks of checkpoints, and registration without a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ..config import Config, config_of, load_config
from ..config.checks import available_devices
from ..datasets import grid_of
from ..errors import UsageError
from ..metrics.label_volumes import structures
from ..models import build_model
from ..models.utils import takes
from ..models.warp import warp
from ..registration.inputs.given import Pair, find_start, prepare_given
from ..registration.pair import Volume
from ..registration.stages import load_stages
from ..spatial import Grid
from ..spatial.grid import Points
from ..training.checkpoints import find_checkpoint, load_checkpoint, load_weights
from ..training.trial import checked_prediction

logger = logging.getLogger(__name__)

Predict: TypeAlias = Callable[[dict[str, Any]], tuple[torch.Tensor, torch.Tensor]]
"""From a batch to the warped image (B, C, D, H, W) and the field (B, 3, D, H, W) in voxels, z, y, x."""


@dataclass(frozen=True)
class Method:
    """One way to register the cases.

    Attributes:
        name: for tables and folders.
        source: the checkpoint, or the config of the registration, for messages.
        config: says which cases, and how they are prepared.
        predict: registers a batch that is on the device.
    """

    name: str
    source: str
    config: Config
    predict: Predict


def method_of_checkpoint(
    run: Path, name: str, config_file: Path | None, overrides: Sequence[str], device: torch.device | None = None
) -> Method:
    """The network of a checkpoint.

    Args:
        run: a checkpoint, or a run's folder.
        name: of the method.
        config_file: a config in place of the one in the checkpoint.
        overrides: ``key=value``.
        device: for the network; the config's where it is missing.

    Raises:
        UsageError: no checkpoint, a damaged one, one of another model than the config's, or a config that is not valid.
    """
    path = find_checkpoint(run)
    content = load_checkpoint(path)
    if config_file is not None:
        config = load_config(config_file, overrides)
        known = content["config"].get("model", {})
        for key in ("image_channels", "spatial_dims"):
            if key in known and takes(config.model, key):
                config.model.setdefault(key, known[key])  # training took it from the data
    else:
        keys, given = dict(content["config"]), keys_of(overrides)
        if keys.get("device") not in (None, *available_devices()) and "device" not in given:
            logger.warning("%s was trained on the device %s, which is not here", path, keys["device"])
            keys["device"] = None
        config = config_of(keys, path, overrides)
    network = build_model(config.model, image_size=tuple(config.image_size))
    load_weights(network, content, path, "give a config with the same keys, or leave --config out")
    network.eval()

    def predict(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        network.to(batch["fixed"].device)
        return checked_prediction(network(batch["moving"], batch["fixed"]), batch["fixed"].shape)

    return Method(name, str(path), config, predict)


def keys_of(overrides: Sequence[str]) -> set[str]:
    """The keys that overrides set."""
    return {override.partition("=")[0] for override in overrides}


def method_of_registration(file: Path | None, name: str, config: Config) -> Method:
    """Registration without a network, of the same samples: both images lie on the fixed one's grid, as for a network.

    Start, scaling and time are those of the config. Masks, labels and landmarks of a sample are given to it.

    Args:
        file: the config of :mod:`usreg.register`; None for the packaged default.
        name: of the method.
        config: which cases.

    Raises:
        ConfigError: the file is not valid.
    """
    settings, stages = load_stages(file)

    def predict(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        fields = []
        for number, fixed in enumerate(batch["fixed"]):
            grid, device = sample_grid(batch, number), str(fixed.device)
            try:
                pair = _pair(batch, number, grid)
                start = find_start(pair, settings, device=device)
                with torch.enable_grad():
                    found = prepare_given(pair, settings, stages, start.transform, device).run()
            except UsageError as error:
                raise type(error)(f"case {batch.get('case', [number])[number]}: {error}") from error
            voxels = np.indices(grid.size).reshape(3, -1).T
            there = grid.to_voxels(found.transform(grid.to_world(voxels))) - voxels
            fields.append(torch.from_numpy(there.T.reshape(3, *grid.size)))
        ddf = torch.stack(fields).to(batch["fixed"])
        return warp(batch["moving"], ddf), ddf

    return Method(name, str(file or "the packaged default"), config, predict)


def _pair(batch: dict[str, Any], number: int, grid: Grid) -> Pair:
    """A sample with its masks, its landmarks, and its labels where the two have a structure in common."""

    def volume(key: str) -> Volume | None:
        return Volume(batch[key][number].cpu().float(), grid) if key in batch else None

    labels = volume("fixed_label"), volume("moving_label")
    known = [set() if label is None else set(structures(label.voxels)) for label in labels]
    if not known[0] & known[1]:
        labels = None, None
    points = _points(batch, "fixed_landmarks", number, grid), _points(batch, "moving_landmarks", number, grid)
    fixed, moving = volume("fixed"), volume("moving")
    assert fixed is not None
    assert moving is not None
    return Pair(fixed, moving, volume("fixed_mask"), volume("moving_mask"), *labels, *points)


def _points(batch: dict[str, Any], key: str, number: int, grid: Grid) -> Points | None:
    """(N, 3) mm; rows of NaN fill up the batch."""
    if key not in batch:
        return None
    points = batch[key][number].cpu().double().numpy()
    points = points[np.isfinite(points).all(axis=1)]
    return grid.to_world(points) if len(points) else None


def sample_grid(batch: dict[str, Any], number: int, side: str = "fixed") -> Grid:
    """The grid of a sample, axes z, y, x; voxels of 1 mm where the dataset does not know it."""
    known = grid_of(batch, number, side)
    if known is not None:
        return known
    depth, height, width = batch[side].shape[2:]
    return Grid((depth, height, width), np.eye(4)[[2, 1, 0, 3]])

"""The prediction of a trained network as the start of a registration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...config.plugins import import_plugins
from ...datasets.custom_options import check_orientation, check_range, check_spacing
from ...datasets.sample_grids import GridRule, foreground_box, foreground_of, image_on
from ...errors import ConfigError, DataError, UsageError
from ...models import build_model
from ...spatial import Affine, Chain, Grid, resample, whole_size
from ...training.checkpoints import find_checkpoint, load_checkpoint, load_weights
from ..inputs.intensities import Scaling
from ..inputs.preparing import Volume
from .starts import field_in_mm

logger = logging.getLogger(__name__)

QUANTILES, WINDOW = (0.01, 0.99), (-1000.0, 1000.0)
"""What ``custom_dataset`` takes where its section does not say."""


@dataclass(frozen=True)
class Network:
    """A trained network, and how its training prepared images.

    Attributes:
        path: the checkpoint.
        model: the network, in evaluation mode.
        image_size: (D, H, W) voxels of its images.
        channels: of an image.
        dataset: the section of the training set, for the preparation of the images.
    """

    path: Path
    model: nn.Module
    image_size: tuple[int, int, int]
    channels: int
    dataset: Mapping[str, Any]


def load_network(checkpoint: Path, device: str = "cpu") -> Network:
    """Read a checkpoint and build its network by the config inside.

    Args:
        checkpoint: a file, or a run's folder: its best checkpoint, else its ``last.pt``.
        device: of the network.

    Raises:
        UsageError: there is none; it is no checkpoint of usreg; its config is of something else, or names a model that
            is not known here; the weights are another model's.
    """
    path = find_checkpoint(checkpoint)
    content = load_checkpoint(path)
    config = content["config"]
    section, size = (config.get(key) if isinstance(config, Mapping) else None for key in ("model", "image_size"))
    if not isinstance(section, Mapping) or not isinstance(size, list | tuple) or len(size) not in (2, 3):
        raise ConfigError(
            f"{path}: the config inside has no model and image_size; it is not of a network that python -m usreg.train "
            "trained"
        )
    plugins = config.get("plugins") or []
    try:
        import_plugins(plugins, [Path.cwd(), path.resolve().parent], f"in the config of {path}")
        model = build_model(section, image_size=tuple(size))
        load_weights(model, content, path)
    except UsageError as error:
        raise ConfigError(f"{path}: its network cannot be built: {error}") from error
    channels = section.get("image_channels", 1)
    depth, height, width = whole_size(size)
    return Network(path, model.eval().to(device), (depth, height, width), channels, config.get("train_dataset") or {})


@torch.no_grad()
def predict(
    network: Network, fixed: Volume, moving: Volume, is_ct: Mapping[str, bool], fixed_label: Volume | None = None
) -> Chain:
    """The network's displacement for a pair.

    The images are prepared as ``custom_dataset`` prepares samples, by the section of the training set: each stretched
    to ``image_size`` by itself or, with ``align_shared_grid``, both on one grid around the foreground of the reference.

    Args:
        network: see :func:`load_network`.
        fixed, moving: the images, without NaN.
        is_ct: of ``"fixed"`` and ``"moving"``: whether its intensities are scaled by the ``ct_window`` of the training.
        fixed_label: of a network that was trained around the foreground of the fixed label.

    Returns:
        A field on the fixed image's grid and an affine, from the fixed image's world to the moving one's.

    Raises:
        DataError: the images do not have the network's channels, or are slices where it takes volumes, or the other way
            round.
        ConfigError: the network cannot take them, or does not return a field.
    """
    rule = _rule(network)
    thin = [length == 1 for length in network.image_size]
    kind = f"slices, image_size {list(network.image_size)}," if any(thin) else "volumes"
    for name, volume in (("fixed", fixed), ("moving", moving)):
        size = volume.grid.reoriented(rule.orientation[::-1]).size
        if len(volume.voxels) != network.channels or [length == 1 for length in size] != thin:
            number = "one channel" if network.channels == 1 else f"{network.channels} channels"
            raise DataError(
                f"{network.path} takes {kind} of {number}; the {name} image has {len(volume.voxels)} channels and "
                f"{' x '.join(map(str, size))} voxels (z, y, x)"
            )
    grids = _grids(network, rule, fixed, moving, fixed_label)
    sides = {"fixed": fixed, "moving": moving}
    device = next((p.device for p in network.model.parameters()), torch.device("cpu"))
    images = {
        name: _prepared(network, name, volume, grids[name], is_ct.get(name, False))[None].to(device)
        for name, volume in sides.items()
    }
    try:
        prediction = network.model(images["moving"], images["fixed"])
    except ValueError as error:
        raise ConfigError(f"{network.path}: the network cannot take these images: {error}") from error
    ddf = prediction[1] if isinstance(prediction, tuple | list) and len(prediction) == 2 else None
    if not isinstance(ddf, torch.Tensor) or tuple(ddf.shape) != (1, 3, *network.image_size):
        raise ConfigError(f"{network.path}: the network must return (warped, ddf), ddf of (1, 3, D, H, W)")
    if not bool(ddf.isfinite().all()):
        raise DataError(f"{network.path}: the network's field for these images has NaN or infinite numbers")
    field = field_in_mm(ddf.float().cpu(), grids["fixed"])
    on_fixed = resample(field.displacement.float(), field.grid, fixed.grid)
    placed = Affine(grids["moving"].affine @ torch.linalg.inv(torch.tensor(grids["fixed"].affine)).numpy())
    return Chain([type(field)(fixed.grid, on_fixed), placed])


def _rule(network: Network) -> GridRule:
    """How the network's grid follows from the grid of an image."""
    section = network.dataset
    try:
        return GridRule(
            network.image_size,
            check_orientation(section.get("orientation", "RAS")),
            check_spacing(section.get("spacing")),
        )
    except ValueError as error:
        raise ConfigError(f"{network.path}: the config inside cannot be used: {error}") from error


def _grids(
    network: Network, rule: GridRule, fixed: Volume, moving: Volume, fixed_label: Volume | None
) -> dict[str, Grid]:
    """The grids on which the network sees the images, axes z, y, x."""
    section = network.dataset
    if not section.get("align_shared_grid"):
        return {"fixed": rule.on(fixed.grid), "moving": rule.on(moving.grid)}
    reference = section.get("align_reference", "fixed_label")
    volumes = {"fixed": fixed, "moving": moving, "fixed_label": fixed_label}
    volume = volumes.get(reference)
    if volume is None:
        logger.warning(
            "%s was trained on a grid around the foreground of %s, which is not given: the whole fixed image is taken",
            *(network.path, reference),
        )
        shared = rule.on(fixed.grid)
        return {"fixed": shared, "moving": shared}
    foreground = foreground_of(volume.voxels, image=reference in ("fixed", "moving"))
    if not foreground.any():
        raise DataError(f"{reference} is empty; {network.path} was trained on a grid around its foreground")
    image = moving.grid if reference == "moving" else fixed.grid
    shared = rule.on(foreground_box(foreground, volume.grid, section.get("align_margin_mm", 6.0), image))
    return {"fixed": shared, "moving": shared}


def _prepared(network: Network, name: str, volume: Volume, grid: Grid, is_ct: bool) -> torch.Tensor:
    """(C, D, H, W) as the training had it."""
    section = network.dataset
    image = image_on(volume.voxels, volume.grid, grid, pad=not section.get("align_shared_grid"))
    if not section.get("normalize_intensity", True):
        return image
    window = check_range("ct_window", section.get("ct_window", WINDOW), -float("inf"), float("inf"))
    quantiles = check_range("quantile_range", section.get("quantile_range", QUANTILES), 0.0, 1.0)
    is_ct = is_ct or bool(section.get("default_is_ct"))
    return Scaling(quantiles, window if is_ct else None)(name, image)

"""The model registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from ..registry import Registry
from ..spatial import whole_size

F = TypeVar("F", bound=Callable[..., nn.Module])

MODEL_REGISTRY: Registry[nn.Module] = Registry("model")
"""Factories by name: each takes the keys of the config's ``model`` section and, where it names them, ``image_size``,
``image_channels`` and ``spatial_dims``."""


def register_model(name: str) -> Callable[[F], F]:
    """Decorator that registers a model factory under ``name``; see :meth:`usreg.registry.Registry.register`."""
    return MODEL_REGISTRY.register(name)


def takes(cfg: Mapping[str, Any], key: str) -> bool:
    """Whether the factory of a config section has a parameter ``key``, such as ``image_channels``."""
    name, _ = MODEL_REGISTRY.arguments(cfg)
    return key in MODEL_REGISTRY.accepted(name).parameters


def data_keys(cfg: Mapping[str, Any], image_size: Sequence[int], image_channels: int) -> dict[str, int]:
    """What the data says about a config section, for the keys that its factory has and the section does not set.

    Args:
        cfg: the section.
        image_size: (D, H, W) in voxels.
        image_channels: C, of an image.

    Returns:
        ``image_channels`` where there are several, and ``spatial_dims`` 2 for slices. Checkpoints of volumes, and older
        ones, have neither.
    """
    found = {"image_channels": image_channels} if image_channels != 1 else {}
    found |= {"spatial_dims": 2} if 1 in image_size else {}
    return {key: value for key, value in found.items() if key not in cfg and takes(cfg, key)}


def build_model(cfg: Mapping[str, Any], image_size: Sequence[int], image_channels: int = 1) -> nn.Module:
    """Build the model of a config section: ``name``, and the factory's keys.

    Args:
        cfg: the section.
        image_size: (D, H, W) in voxels, for the factories that ask for it; (H, W) is (1, H, W) of a network for slices.
        image_channels: C, of an image, for the factories that ask for it and sections that do not set it.

    Returns:
        A module that maps (moving, fixed), each (B, C, D, H, W), to (warped, ddf): warped (B, C, D, H, W) is the moving
        image on the fixed grid, ddf (B, 3, D, H, W) the displacement in voxels, channel order z, y, x, from a voxel of
        the fixed image to its counterpart in the moving one: ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ConfigError: an unknown name, a key or value that the factory refuses, a size that the network cannot take.
    """
    provided: dict[str, Any] = {"image_size": whole_size(image_size)}
    if takes(cfg, "image_channels"):
        provided["image_channels"] = image_channels
    if len(image_size) == 2 and takes(cfg, "spatial_dims"):
        provided["spatial_dims"] = 2
    return MODEL_REGISTRY.build(cfg, **provided)

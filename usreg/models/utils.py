"""The model registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from ..registry import Registry

F = TypeVar("F", bound=Callable[..., nn.Module])

MODEL_REGISTRY: Registry[nn.Module] = Registry("model")
"""Factories by name: each takes the keys of the config's ``model`` section and, where it names them, ``image_size`` and
``image_channels``."""


def register_model(name: str) -> Callable[[F], F]:
    """Decorator that registers a model factory under ``name``; see :meth:`usreg.registry.Registry.register`."""
    return MODEL_REGISTRY.register(name)


def takes_image_channels(cfg: Mapping[str, Any]) -> bool:
    """Whether the factory of a config section has a parameter ``image_channels``."""
    name, _ = MODEL_REGISTRY.arguments(cfg)
    return "image_channels" in MODEL_REGISTRY.accepted(name).parameters


def build_model(cfg: Mapping[str, Any], image_size: Sequence[int], image_channels: int = 1) -> nn.Module:
    """Build the model of a config section: ``name``, and the factory's keys.

    Args:
        cfg: the section.
        image_size: (D, H, W) in voxels, for the factories that ask for it.
        image_channels: C, of an image, for the factories that ask for it and sections that do not set it.

    Returns:
        A module that maps (moving, fixed), each (B, C, D, H, W), to (warped, ddf): warped (B, C, D, H, W) is the moving
        image on the fixed grid, ddf (B, 3, D, H, W) the displacement in voxels, channel order z, y, x, from a voxel of
        the fixed image to its counterpart in the moving one: ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ConfigError: an unknown name, a key or value that the factory refuses, a size that the network cannot take.
    """
    provided: dict[str, Any] = {"image_size": tuple(image_size)}
    if takes_image_channels(cfg):
        provided["image_channels"] = image_channels
    return MODEL_REGISTRY.build(cfg, **provided)

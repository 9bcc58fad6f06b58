"""The model registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from ..registry import Registry

F = TypeVar("F", bound=Callable[..., nn.Module])

MODEL_REGISTRY: Registry[nn.Module] = Registry("model")
"""Factories by name: each takes the keys of the config's ``model`` section and, if it names it, ``image_size``."""


def register_model(name: str) -> Callable[[F], F]:
    """Decorator that registers a model factory under ``name``; see :meth:`usreg.registry.Registry.register`."""
    return MODEL_REGISTRY.register(name)


def build_model(cfg: Mapping[str, Any], image_size: Sequence[int]) -> nn.Module:
    """Build the model of a config section: ``name``, and the factory's keys.

    Args:
        cfg: the section.
        image_size: (D, H, W) in voxels, for the factories that ask for it.

    Returns:
        A module that maps (moving, fixed), each (B, 1, D, H, W), to (warped, ddf): warped (B, 1, D, H, W) is the moving
        image on the fixed grid, ddf (B, 3, D, H, W) the displacement in voxels, channel order z, y, x, from a voxel of
        the fixed image to its counterpart in the moving one: ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ConfigError: an unknown name, a key or value that the factory refuses, a size that the network cannot take.
    """
    return MODEL_REGISTRY.build(cfg, image_size=tuple(image_size))

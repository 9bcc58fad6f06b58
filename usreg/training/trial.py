"""One pass before training through model and loss, so that parts that do not fit together are found before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import Dataset

from ..datasets import collate
from ..errors import ConfigError, DataError, UsageError
from ..io.header import one_line
from ..models import build_model
from .loss_call import LossCall

_MULTIPLES = (8, 16, 32, 64)
"""What sizes are rounded up to in search of one that a model takes: many networks halve their input once per level."""


@torch.no_grad()
def try_out(
    section: Mapping[str, Any],
    network: nn.Module,
    loss_call: LossCall,
    datasets: Sequence[Dataset[Any]],
    device: torch.device,
) -> None:
    """One forward pass for a sample of each dataset.

    Args:
        section: the config's ``model`` section, which ``network`` was built from.
        network: on the device.
        loss_call: the loss.
        datasets: of which the first sample is taken.
        device: of the network.

    Raises:
        DataError: the images of a sample are no pair of volumes of one shape.
        ConfigError: the model or the loss cannot use a sample, or returns something else than it must.
    """
    network.eval()
    for dataset in datasets:
        sample = dataset[0]
        case = f"{type(dataset).__name__}, case {sample.get('case', 0)}"
        _check_images(sample, case)
        batch = send_to_device(collate([sample]), device)
        try:
            warped, ddf = checked_prediction(network(batch["moving"], batch["fixed"]), batch["fixed"].shape)
        except Exception as error:
            size = tuple(sample["fixed"].shape[1:])
            if not _takes(network, size, device):  # else the size is not the cause
                _explain_size(section, size, error, device)
            if isinstance(error, ValueError):
                raise ConfigError(f"model '{section['name']}' cannot use {case}: {error}") from error
            raise
        try:
            loss = loss_call(warped, ddf, batch)
        except ValueError as error:
            raise ConfigError(f"the loss cannot use {case}: {error}") from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            given = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ConfigError(f"the loss must return one number to minimise, not {given}; is its reduction 'none'?")


def build_for_size(section: Mapping[str, Any], size: Sequence[int], device: torch.device) -> nn.Module:
    """The model of a config section.

    Raises:
        ConfigError: the factory refuses a key or a value, or fails for a reason that another size does not have.
    """
    try:
        return build_model(section, image_size=size)
    except UsageError:
        raise
    except Exception as error:
        _explain_size(section, size, error, device)
        raise


@torch.no_grad()
def _explain_size(section: Mapping[str, Any], size: Sequence[int], error: Exception, device: torch.device) -> None:
    """Raise a ConfigError if a model that fails at a size takes another one; otherwise its error is a bug of its own.

    Args:
        section: the config's ``model`` section.
        size: (D, H, W) at which the model failed.
        error: how.
        device: where to try other sizes.
    """
    for other in _larger(size):
        try:
            takes = _takes(build_model(section, image_size=other).to(device).eval(), other, device)
        except Exception:  # whatever a model raises that cannot be built for a size
            takes = False
        if takes:
            raise ConfigError(
                f"model '{section['name']}' cannot use image_size {list(size)}: {type(error).__name__}: "
                f"{one_line(error)}. It takes image_size {list(other)}; set that, or choose a model that pads"
            ) from error


def _larger(size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sizes that are multiples of a power of 2, the nearest first, and one with equal axes."""
    sizes = [tuple(-(-length // multiple) * multiple for length in size) for multiple in _MULTIPLES]
    sizes.append((max(sizes[-2]),) * len(size))
    yield from (other for other in dict.fromkeys(sizes) if other != tuple(size))


def _takes(network: nn.Module, size: Sequence[int], device: torch.device) -> bool:
    """Whether a network takes a pair of empty images of a size."""
    image = torch.zeros(1, 1, *size, device=device)
    try:
        checked_prediction(network(image, image), image.shape)
    except Exception:  # whatever a model raises
        return False
    return True


def _check_images(sample: Mapping[str, Any], case: str) -> None:
    for key in ("moving", "fixed"):
        shape = tuple(sample[key].shape) if key in sample else None
        if shape is None or len(shape) != 4 or shape[0] != 1:
            raise DataError(f"{case}: '{key}' must have the shape (1, D, H, W), not {shape}")
    if sample["moving"].shape != sample["fixed"].shape:
        raise DataError(
            f"{case}: moving {tuple(sample['moving'].shape)} and fixed {tuple(sample['fixed'].shape)} must have "
            "one shape; the dataset resizes both to its image_size"
        )


def checked_prediction(prediction: Any, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model returned, if it is (warped, ddf) for images of this shape."""
    wanted = (tuple(shape), (shape[0], 3, *shape[2:]))
    parts = prediction if isinstance(prediction, tuple | list) else [prediction]
    shapes = tuple(tuple(p.shape) if isinstance(p, torch.Tensor) else type(p).__name__ for p in parts)
    if shapes != wanted:
        raise ConfigError(f"the model must return (warped, ddf) of the shapes {wanted}, not {shapes}")
    return prediction[0], prediction[1]

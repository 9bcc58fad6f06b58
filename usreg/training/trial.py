"""One pass before training through model and loss, so that parts that do not fit together are found before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import Dataset

from ..datasets import collate
from ..datasets.sample_checks import check_shapes, conformed
from ..errors import ConfigError, UsageError
from ..io.header import one_line
from ..losses.call import LossCall
from ..metrics import evaluate_metrics, identity_inputs, model_inputs
from ..models import build_model
from ..models.utils import takes

_MULTIPLES = (8, 16, 32, 64)
"""What sizes are rounded up to in search of one that a model takes: many networks halve their input once per level."""


def image_channels_of(dataset: Dataset[Any], image_size: Sequence[int]) -> int:
    """The channels of an image of a dataset, by its first sample.

    Raises:
        DataError: the sample is not what a dataset must return, or its axes are in another order than ``image_size``.
    """
    sample = conformed(dataset[0])
    case = f"{type(dataset).__name__}, case {sample.get('case', 0)}"
    check_shapes(sample, case, image_size)
    return len(sample["fixed"])


@torch.no_grad()
def try_out(
    section: Mapping[str, Any],
    network: nn.Module,
    loss_call: LossCall,
    datasets: Sequence[Dataset[Any]],
    batch_size: int,
    device: torch.device,
    needed: Sequence[str] = (),
) -> None:
    """One forward pass with a whole batch of each dataset, and for the last one the metrics.

    What the loss keeps in buffers is put back afterwards.

    Args:
        section: the config's ``model`` section, which ``network`` was built from.
        network: on the device.
        loss_call: the loss.
        datasets: for training, and for validation where there is one; the first samples of each are taken.
        batch_size: the number of samples.
        device: of the network.
        needed: metrics that the validation set must allow, as ``training.best`` names them.

    Raises:
        DataError: a sample is not what a dataset must return, or its images are no pair of volumes of one shape.
        ConfigError: the model or the loss cannot use a batch, or model, loss or a metric returns something else than it
            must.
    """
    network.eval()
    loss = loss_call.loss
    kept = {name: value.clone() for name, value in loss.state_dict().items()} if isinstance(loss, nn.Module) else {}
    if isinstance(loss, nn.Module):
        loss.eval()
    for number, dataset in enumerate(datasets):
        samples = [conformed(dataset[i], i) for i in range(min(batch_size, len(cast(Sized, dataset))))]
        case = f"{type(dataset).__name__}, case {samples[0].get('case', 0)}"
        for sample in samples:
            check_shapes(sample, f"{type(dataset).__name__}, case {sample.get('case', 0)}")
        batch = send_to_device(collate(samples), device)
        try:
            warped, ddf = checked_prediction(network(batch["moving"], batch["fixed"]), batch["fixed"].shape)
        except Exception as error:
            channels, *size = samples[0]["fixed"].shape
            if not _takes(network, size, device, channels):  # else the size is not the cause
                _explain_channels(section, network, size, channels, error, device)
                _explain_size(section, size, error, device, channels)
            if isinstance(error, ValueError):
                raise ConfigError(f"model '{section['name']}' cannot use {case}: {error}") from error
            raise
        try:
            _check_loss(loss_call.with_terms(warped, ddf, batch))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"the loss cannot use {case}: {error}") from error
        if number == len(datasets) - 1 and len(datasets) > 1:
            for inputs in (model_inputs(batch, warped, ddf), identity_inputs(batch)):
                _check_needed(needed, evaluate_metrics(inputs), case)
    if isinstance(loss, nn.Module):
        loss.load_state_dict(kept)


def _check_needed(needed: Sequence[str], values: Mapping[str, torch.Tensor | None], case: str) -> None:
    """Raise ConfigError where the inputs of a metric that decides are missing."""
    for name in needed:
        if name in values and values[name] is None:
            present = ", ".join(["val_loss", *(other for other, value in values.items() if value is not None)])
            raise ConfigError(f"training.best: '{name}' needs what {case} does not have; there are {present}")


def _check_loss(result: tuple[Any, Mapping[str, torch.Tensor]]) -> None:
    """Raise ConfigError unless a loss gave one number, and one for each of its terms."""
    for name, value in {"": result[0], **result[1]}.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            continue
        given = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        if name:
            raise ConfigError(f"the loss must return one number for its term '{name}', not {given}: take its mean")
        raise ConfigError(
            f"the loss must return one number to minimise, not {given}; is its reduction 'none', or a mean over the "
            "samples missing? A loss of several terms returns a dictionary of numbers, whose entry 'loss' is the total"
        )


def build_for_size(
    section: Mapping[str, Any], size: Sequence[int], device: torch.device, channels: int = 1
) -> nn.Module:
    """The model of a config section, for images of a size and a number of channels.

    Raises:
        ConfigError: the factory refuses a key or a value, or fails for a reason that another size does not have.
    """
    try:
        return build_model(section, image_size=size, image_channels=channels)
    except UsageError:
        raise
    except Exception as error:
        _explain_size(section, size, error, device, channels)
        raise


def _explain_channels(
    section: Mapping[str, Any],
    network: nn.Module,
    size: Sequence[int],
    channels: int,
    error: Exception,
    device: torch.device,
) -> None:
    """Raise a ConfigError if a network that fails takes images of one channel, and these have several."""
    if channels != 1 and not takes(section, "image_channels") and _takes(network, size, device, 1):
        raise ConfigError(
            f"model '{section['name']}' takes images of one channel, and these have {channels}: "
            f"{type(error).__name__}: {one_line(error)}. A factory with a parameter 'image_channels' gets their "
            "number; or let the dataset return one channel"
        ) from error


@torch.no_grad()
def _explain_size(
    section: Mapping[str, Any], size: Sequence[int], error: Exception, device: torch.device, channels: int
) -> None:
    """Raise a ConfigError if a model that fails at a size takes another one; otherwise its error is a bug of its own.

    Args:
        section: the config's ``model`` section.
        size: (D, H, W) at which the model failed.
        error: how.
        device: where to try other sizes.
        channels: of an image.
    """
    for other in _larger(size):
        try:
            network = build_model(section, image_size=other, image_channels=channels).to(device).eval()
            takes = _takes(network, other, device, channels)
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


def _takes(network: nn.Module, size: Sequence[int], device: torch.device, channels: int) -> bool:
    """Whether a network takes a pair of empty images of a size and a number of channels."""
    image = torch.zeros(1, channels, *size, device=device)
    try:
        checked_prediction(network(image, image), image.shape)
    except Exception:  # whatever a model raises
        return False
    return True


def checked_prediction(prediction: Any, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model returned, if it is (warped, ddf) for images of this shape."""
    wanted = (tuple(shape), (shape[0], 3, *shape[2:]))
    parts = prediction if isinstance(prediction, tuple | list) else [prediction]
    shapes = tuple(tuple(p.shape) if isinstance(p, torch.Tensor) else type(p).__name__ for p in parts)
    if shapes != wanted:
        raise ConfigError(f"the model must return (warped, ddf) of the shapes {wanted}, not {shapes}")
    return prediction[0], prediction[1]

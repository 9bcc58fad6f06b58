"""The dataset registry, building a dataset from its config section, and the collate function of the data loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset

from ..errors import DataError
from ..registry import Registry
from ..spatial import Grid, whole_size
from .sample_checks import conformed

Sample: TypeAlias = dict[str, Any]
"""One case: ``moving``, ``fixed`` (1, D, H, W) float32 on one grid, and what else the dataset knows. Optional keys:

- ``dvf`` (3, D, H, W): pull-back displacement in voxels, channels z, y, x; warps ``moving`` onto ``fixed``
- ``moving_label``, ``fixed_label`` (L, D, H, W) in [0, 1]: one structure per channel, all zero = absent; L may differ
  from case to case
- ``moving_label_lost`` (L,) bool: structures that the moving image has, and that ``moving_label`` lost by resampling
- ``moving_mask``, ``fixed_mask`` (1, D, H, W), 0 or 1
- ``moving_points``, ``fixed_points`` (N, 3): corresponding points in voxels z, y, x of the sample's grid
- ``affine``, ``moving_affine`` (4, 4): from voxels z, y, x of the fixed and of the moving image to mm in the world, RAS
- ``spacing``, ``moving_spacing`` (3,): mm per voxel z, y, x of the fixed and of the moving image
- ``case`` str, ``metadata`` dict of str
"""

SPLITS = ("train", "val", "test")

_PER_STRUCTURE = ("moving_label", "fixed_label", "moving_label_lost")
_RAGGED = ("moving_points", "fixed_points")

DATASET_REGISTRY: Registry[Dataset[Sample]] = Registry("dataset")
register_dataset = DATASET_REGISTRY.register


def build_dataset(cfg: Mapping[str, Any], *, split: str, image_size: Sequence[int]) -> Dataset[Sample]:
    """Build the dataset that a config section describes.

    Args:
        cfg: the section ``train_dataset`` or ``val_dataset``: ``name`` and that dataset's keys.
        split: ``"train"``, ``"val"`` or ``"test"``; no two splits share a sample.
        image_size: (D, H, W) in voxels, for a section without an ``image_size`` of its own.

    Raises:
        ConfigError: the name is unknown, or a key or value is not valid.
        DataError: the data are missing, unreadable or inconsistent.
    """
    return DATASET_REGISTRY.build(cfg, split=split, image_size=tuple(image_size))


def check_split(split: str) -> str:
    """Return ``split``, or raise a ValueError that names the valid ones."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    return split


def check_image_size(image_size: Sequence[int]) -> tuple[int, int, int]:
    """Return (D, H, W) as a tuple of ints, or raise a ValueError.

    Three whole numbers of at least 2 voxels; one of them may be 1, for slices, and two numbers (H, W) are (1, H, W).
    """
    size = whole_size(image_size)
    whole = len(size) == 3 and all(isinstance(n, int) and not isinstance(n, bool) for n in size)
    if not whole or min(size) < 1 or size.count(1) > 1:
        raise ValueError(
            "image_size must be three whole numbers [D, H, W], each 2 or more, or one of them 1 for slices, not "
            f"{list(image_size)}"
        )
    return size[0], size[1], size[2]


def wrap_index(index: int, length: int) -> int:
    """``index`` as a number in [0, length), negative ones counting from the end, or an IndexError."""
    if not -length <= index < length:
        raise IndexError(f"sample {index} of a dataset of {length}")
    return index % length


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Join samples into a batch.

    Tensors are stacked to (B, ...). Labels are first padded with all-zero channels, which count as absent everywhere,
    to the largest number of channels in the batch, the same for moving and fixed. Points (their number differs from
    case to case), strings and whatever else is no tensor become lists of length B.

    Arrays of NumPy become tensors; images, fields, labels and masks become float32.

    Raises:
        DataError: the samples' keys or image shapes differ, or a sample is not what a dataset must return
            (:func:`usreg.datasets.sample_checks.conformed`); the text names the cases.
    """
    samples = [conformed(sample, position) for position, sample in enumerate(samples)]
    _check_keys(samples)
    keys = list(samples[0])
    channels = max((len(s[key]) for s in samples for key in _PER_STRUCTURE if key in s), default=0)
    batch: dict[str, Any] = {}
    for key in keys:
        values = [sample[key] for sample in samples]
        if key in _PER_STRUCTURE:
            values = [_pad_channels(label, channels) for label in values]
        stackable = key not in _RAGGED and all(isinstance(value, torch.Tensor) for value in values)
        batch[key] = _stack(key, values, samples) if stackable else values
    return batch


def grid_of(batch: Mapping[str, Any], number: int, side: str = "fixed") -> Grid | None:
    """Where the voxels of one sample of a batch are in the world, None where the dataset does not know.

    Args:
        batch: a collated batch.
        number: which of its samples.
        side: ``"fixed"``, whose grid is that of warped images and fields, or ``"moving"``.
    """
    affine = batch.get("affine" if side == "fixed" else "moving_affine")
    if affine is None:
        return None
    depth, height, width = batch[side].shape[2:]
    return Grid((depth, height, width), affine[number].detach().cpu().numpy())


def _check_keys(samples: Sequence[Sample]) -> None:
    first = samples[0]
    for position, sample in enumerate(samples):
        if different := sorted(set(first) ^ set(sample)):
            raise DataError(
                f"the samples of a batch must have the same keys: {', '.join(different)} is in only one of case "
                f"{_case(first, 0)} and case {_case(sample, position)}; give it to every case or to none"
            )


def _pad_channels(label: torch.Tensor, channels: int) -> torch.Tensor:
    """(L, ...) -> (channels, ...), the new channels all zero."""
    return torch.cat([label, label.new_zeros(channels - len(label), *label.shape[1:])])


def _stack(key: str, values: list[torch.Tensor], samples: Sequence[Sample]) -> torch.Tensor:
    shapes = [tuple(value.shape) for value in values]
    if len(set(shapes)) > 1:
        cases = ", ".join(f"{_case(s, i)}: {shape}" for i, (s, shape) in enumerate(zip(samples, shapes, strict=True)))
        raise DataError(f"'{key}' must have one shape in all samples of a batch; its shapes are {cases}")
    return torch.stack(values)


def _case(sample: Sample, position: int) -> str:
    return repr(sample.get("case", f"number {position} of the batch"))

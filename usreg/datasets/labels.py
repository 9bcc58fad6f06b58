"""Labels of files: integer maps, masks, and one structure per channel; from the file's voxels to those of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..errors import DataError
from ..io.manifest import Case
from ..spatial import Grid
from .case_files import CaseFiles, at
from .sample_grids import overlay_on

MOST_STRUCTURES = 256
"""That a map may number without ``labels``: one-hot channels of more would fill the memory, mostly with nothing."""

_NEAR = 1e-3  # to a whole number, or to [0, 1]
_MASK = 255  # the usual foreground of a mask in 8 bits
_INSIDE = 0.5
_LISTED = 12
_COUNTED = 2**20  # values up to here are counted in a table, which is quicker than sorting them


@dataclass(frozen=True)
class LabelMap:
    """Structures of a sample as one small integer per voxel; as channels only while a batch is made of them.

    Attributes:
        indices: (D, H, W): 0, or the number of a channel, counted from 1.
        channels: how many there are.
    """

    indices: torch.Tensor
    channels: int

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.indices.nbytes

    def one_hot(self) -> torch.Tensor:
        """(L, D, H, W) float32, 0 or 1."""
        numbers = torch.arange(1, self.channels + 1, dtype=self.indices.dtype).reshape(-1, 1, 1, 1)
        return (self.indices == numbers).float()


SampleLabel: TypeAlias = "torch.Tensor | LabelMap"
"""(L, D, H, W) in [0, 1], or the same as a map."""


@dataclass(frozen=True)
class _File:
    """The structures of a label file.

    Attributes:
        values: (C, X, Y, Z): float32 in [0, 1], one structure per channel, or, of a map, (1, X, Y, Z) int32.
        sizes: voxels of each structure in the file, by its number: its value in a map, its channel from 1 on otherwise.
        is_map: whether the values number the structures.
    """

    values: torch.Tensor
    grid: Grid
    sizes: Mapping[int, int]
    is_map: bool

    @property
    def is_mask(self) -> bool:
        """Whether it is a map with one structure and the value that masks have."""
        return self.is_map and set(self.sizes) in (set(), {1}, {_MASK})

    @property
    def as_mask(self) -> _File:
        """The one structure of a map as a channel."""
        return _File((self.values > 0).float(), self.grid, {1: sum(self.sizes.values())}, False)


@dataclass(frozen=True)
class CaseLabels:
    """Both labels of a case on the grids of its sample, with as many channels.

    Attributes:
        by_key: ``"moving_label"`` and ``"fixed_label"``.
        lost: by the same keys, (L,) bool: which structures are in the file and have no voxel in the sample.
        warnings: about structures that have no voxel in the sample.
    """

    by_key: Mapping[str, SampleLabel]
    lost: Mapping[str, torch.Tensor]
    warnings: Sequence[str]


def load_labels(files: CaseFiles, grids: Mapping[str, Grid], labels: Sequence[int] | None, nearest: bool) -> CaseLabels:
    """Both labels of a case on the grids of its sample, with as many channels.

    Args:
        grids: of the sample, by ``"moving"`` and ``"fixed"``.
        labels: the values of maps that become channels, in this order; None: 1, 2, ... up to the largest value.
        nearest: also structures that have a channel of their own get the value of the nearest voxel; maps always do.

    Raises:
        DataError: a file cannot be read, its values are no labels, or the two do not fit together.
    """
    read = {f"{side}_label": _read(files, f"{side}_label", labels) for side in grids}
    if labels is None and all(file.is_mask or not file.is_map for file in read.values()):
        read = {key: file.as_mask if file.is_map else file for key, file in read.items()}
    names = _names(files.case, read, labels)
    found: dict[str, SampleLabel] = {}
    lost: dict[str, torch.Tensor] = {}
    warnings = []
    for key, file in read.items():
        grid = grids[key.partition("_")[0]]
        if file.is_map:
            found[key], sizes = _map_on(file, grid, names)
        else:
            channels = overlay_on(file.values, file.grid, grid, nearest).clamp(0, 1)
            found[key] = channels
            sizes = dict(zip(names, (channels > _INSIDE).flatten(1).sum(1).tolist(), strict=True))
        if file.sizes and file.sizes.keys().isdisjoint(names):
            warnings.append(
                f"{files.case.where}.{key}: holds none of the labels {names}, only {sorted(file.sizes)[:_LISTED]}"
            )
        gone = {name: file.sizes[name] for name in names if file.sizes.get(name) and not sizes[name]}
        lost[key] = torch.tensor([name in gone for name in names])
        if gone:
            warnings.append(_of_lost(files.case, key, gone, grid))
    return CaseLabels(found, lost, warnings)


def load_mask(files: CaseFiles, key: str, grid: Grid, nearest: bool) -> torch.Tensor:
    """A mask on the sample's grid, (1, D, H, W), 0 or 1: 1 where the file has a number above 0, or a share above 0.5.

    Raises:
        DataError: the file cannot be read, or its values are no mask.
    """
    volume, source = files.volume(key)
    with at(files.case, key):
        if float(volume.max()) > 1 + _NEAR:
            _check_map(files, key, volume)
            volume = (volume > 0).float()
        else:
            _check_shares(files, key, volume)
    return (overlay_on(volume, source, grid, nearest) > _INSIDE).float()


def _read(files: CaseFiles, key: str, labels: Sequence[int] | None) -> _File:
    volume, grid = files.volume(key)
    with at(files.case, key):
        if len(volume) > 1:
            if float(volume.max()) == _MASK and bool(((volume == 0) | (volume == _MASK)).all()):
                volume = volume / _MASK
            _check_shares(files, key, volume)
        elif not _is_whole(volume) and labels is None and float(volume.max()) <= 1 + _NEAR:
            _check_shares(files, key, volume)
        else:
            _check_map(files, key, volume)
            values = volume.round().to(torch.int32)
            return _File(values, grid, _sizes(values), True)
    inside = (volume > _INSIDE).flatten(1).sum(1).tolist()
    return _File(volume, grid, dict(enumerate(inside, start=1)), False)


def _sizes(values: torch.Tensor) -> dict[int, int]:
    """How many voxels have each of the values above 0."""
    if int(values.max()) < _COUNTED:
        counts = torch.bincount(values.flatten())
        numbers = counts.nonzero().flatten()
        counts = counts[numbers]
    else:
        numbers, counts = values.unique(return_counts=True)
    return {number: count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True) if number > 0}


def _is_whole(volume: torch.Tensor) -> bool:
    return bool(((volume - volume.round()).abs() <= _NEAR).all())


def _check_shares(files: CaseFiles, key: str, volume: torch.Tensor) -> None:
    low, high = float(volume.min()), float(volume.max())
    if low < -_NEAR or high > 1 + _NEAR:
        raise _no_label(files, key, low, high)


def _check_map(files: CaseFiles, key: str, volume: torch.Tensor) -> None:
    low, high = float(volume.min()), float(volume.max())
    if low < -_NEAR or len(volume) > 1 or not _is_whole(volume):
        raise _no_label(files, key, low, high)


def _no_label(files: CaseFiles, key: str, low: float, high: float) -> DataError:
    return DataError(
        f"{files.case.files[key]}: its values go from {low:g} to {high:g}; valid are whole numbers from 0 on in a 3-D "
        "file (a map of structures, or a mask of 0 and 255), or 0 to 1 with one structure per channel (fourth array "
        "axis)"
    )


def _names(case: Case, read: Mapping[str, _File], labels: Sequence[int] | None) -> list[int]:
    """The numbers of the structures, one per channel of both labels."""
    channels = {key: len(file.values) for key, file in read.items() if not file.is_map}
    numbered = {key: max(file.sizes, default=0) for key, file in read.items() if file.is_map}
    if labels is not None:
        if wrong := {key: count for key, count in channels.items() if count != len(labels)}:
            raise DataError(f"{case.where}: {_counts(wrong)} channels; labels names {len(labels)} structures")
        return list(labels)
    if len(set(channels.values())) > 1 or any(most > min(channels.values()) for most in numbered.values() if channels):
        raise DataError(
            f"{case.where}: {_counts(channels | numbered)} channels; they are paired one by one, so both need the same "
            "number"
        )
    masks = [key for key, file in read.items() if file.is_mask and _MASK in file.sizes]
    most = max([*channels.values(), *(count for key, count in numbered.items() if key not in masks)])
    if masks:
        raise DataError(
            f"{case.where}: '{masks[0]}' is a mask of 0 and {_MASK}, and the other label numbers {most} structures; "
            "give both as masks or both as maps"
        )
    if most > MOST_STRUCTURES:
        values = sorted({name for file in read.values() for name in file.sizes})
        raise DataError(
            f"{case.where}: the labels have values up to {most}; name those that become channels, as in labels: "
            f"{values[:_LISTED]}{' ...' if len(values) > _LISTED else ''}"
        )
    return list(range(1, most + 1))


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"'{key}' has {number}" for key, number in numbers.items())


def _map_on(file: _File, grid: Grid, names: Sequence[int]) -> tuple[LabelMap, dict[int, int]]:
    """A map on the sample's grid, and the voxels of each structure there."""
    values = overlay_on(file.values.float(), file.grid, grid, nearest=True)[0].round().to(torch.int64)
    channels = torch.zeros(max(int(values.max()), *names) + 1, dtype=torch.int16)
    channels[list(names)] = torch.arange(1, len(names) + 1, dtype=torch.int16)
    indices = channels[values]
    sizes = torch.bincount(indices.flatten().long(), minlength=len(names) + 1)[1:].tolist()
    small = indices.to(torch.uint8) if len(names) < MOST_STRUCTURES else indices
    return LabelMap(small, len(names)), dict(zip(names, sizes, strict=True))


def _of_lost(case: Case, key: str, gone: Mapping[int, int], grid: Grid) -> str:
    listed = [f"{name} ({size} voxels in the file)" for name, size in gone.items()]
    more = f" and {len(gone) - _LISTED} more" if len(gone) > _LISTED else ""
    counts = "Dice 0 where the fixed label has it" if key == "moving_label" else "absent"
    return (
        f"{case.where}.{key}: no voxel of the sample of {list(grid.size)} is in structure {', '.join(listed[:_LISTED])}"
        f"{more}: smaller than its voxels, or outside its box. It counts as {counts}; a larger image_size keeps it"
    )

"""The volumes of one case, each read once and with the grid that its header says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.data.meta_tensor import MetaTensor

from ..errors import DataError
from ..io.images import VolumeHeader, read_header, read_volume
from ..io.manifest import Case
from ..spatial import Grid

SIDES = ("moving", "fixed")
VOLUMES = tuple(f"{side}{kind}" for side in SIDES for kind in ("", "_label", "_mask"))
"""The keys of a case that name volumes."""


@contextmanager
def at(case: Case, key: str) -> Iterator[None]:
    """Put the case and the key of the manifest in front of an error's text."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{case.where}.{key}: {error}") from error


def header_grid(header: VolumeHeader) -> Grid:
    """The grid of a file's voxels, axes x, y, z of its array."""
    return Grid(header.shape, header.affine)


class CaseFiles:
    """Reads the volumes of a case, each once.

    Args:
        case: of the manifest.
        keep: the key of a volume that is asked for more than once.
    """

    def __init__(self, case: Case, keep: str | None = None) -> None:
        self.case = case
        self._keep = keep
        self._kept: tuple[torch.Tensor, Grid] | None = None

    def grid(self, key: str) -> Grid:
        """The grid of the volume under this key, from the file's header."""
        with at(self.case, key):
            return header_grid(read_header(self.case.files[key]))

    def volume(self, key: str) -> tuple[torch.Tensor, Grid]:
        """The voxels (C, X, Y, Z) float32 of the volume under this key, and their grid.

        Raises:
            DataError: the file cannot be read.
        """
        if key == self._keep and self._kept is not None:
            return self._kept
        with at(self.case, key):
            volume: MetaTensor = read_volume(self.case.files[key])
        size = (volume.shape[1], volume.shape[2], volume.shape[3])
        read = volume.as_tensor(), Grid(size, volume.affine.numpy())
        if key == self._keep:
            self._kept = read
        return read

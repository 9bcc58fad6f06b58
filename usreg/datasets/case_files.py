"""The volumes of one case, each read once and with the grid that its header says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import DataError
from ..io.header import VolumeHeader
from ..io.manifest import Case
from ..spatial import Grid
from .reading import Reading

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
        reading: what is believed of headers, and what NaN means.
        keep: the key of a volume that is asked for more than once.
    """

    def __init__(self, case: Case, reading: Reading, keep: str | None = None) -> None:
        self.case = case
        self._reading = reading
        self._keep = keep
        self._valid: dict[str, torch.Tensor] = {}
        self._kept: tuple[torch.Tensor, Grid] | None = None

    def grid(self, key: str) -> Grid:
        """The grid of the volume under this key, from the file's header."""
        with at(self.case, key):
            return header_grid(self._reading.header_of(self.case, key))

    def volume(self, key: str) -> tuple[torch.Tensor, Grid]:
        """The voxels (C, X, Y, Z) float32 of the volume under this key, and their grid.

        Raises:
            DataError: the file cannot be read.
        """
        if key == self._keep and self._kept is not None:
            return self._kept
        with at(self.case, key):
            volume, valid = self._reading.volume_of(self.case, key)
        if valid is not None:
            self._valid[key] = valid.as_tensor()
        size = (volume.shape[1], volume.shape[2], volume.shape[3])
        read = volume.as_tensor(), Grid(size, volume.affine.numpy())
        if key == self._keep:
            self._kept = read
        return read

    def valid(self, key: str) -> torch.Tensor | None:
        """Where a volume that was read had numbers and not NaN: (1, X, Y, Z), 0 or 1; None where it had them all."""
        return self._valid.get(key)

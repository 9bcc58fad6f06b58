"""How ``custom_dataset`` reads a case's files: which header counts, what NaN means, which headers are doubtful."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from monai.data.meta_tensor import MetaTensor

from ..errors import DataError
from ..io.header import VolumeHeader
from ..io.images import read_header, read_volume
from ..io.manifest import IMAGES, LABELS, MASKS, Case
from ..io.nifti_world import HeaderChoice, check_choice

logger = logging.getLogger(__name__)

NanRule = Literal["error", "fill", "mask"]
NAN_RULES: tuple[NanRule, ...] = ("error", "fill", "mask")

_LISTED = 10  # doubts that a warning lists


@dataclass(frozen=True)
class Reading:
    """The keys ``header`` and ``nan`` of ``custom_dataset``.

    Attributes:
        header: which form of a NIfTI header counts where it has two that differ, or says that neither is set.
        nan: what NaN in a volume is: an error; background (the lowest value of an image, 0 of a label or mask); or
            background that the image's mask leaves out.
    """

    header: HeaderChoice | None = None
    nan: NanRule = "error"

    def __post_init__(self) -> None:
        check_choice(self.header)
        if self.nan not in NAN_RULES:
            raise ValueError(f"nan must be {', '.join(NAN_RULES[:-1])} or {NAN_RULES[-1]}, not {self.nan!r}")

    def header_of(self, case: Case, key: str) -> VolumeHeader:
        """The header of a volume of the case."""
        return read_header(case.files[key], self.header)

    def volume_of(self, case: Case, key: str) -> tuple[MetaTensor, MetaTensor | None]:
        """A volume (C, X, Y, Z) of the case without NaN, and where it had none: (1, X, Y, Z), 0 or 1; None for all.

        Raises:
            DataError: the file cannot be read, all voxels are NaN, or some are and ``nan`` is ``"error"``.
        """
        return self.read(case.files[key], image=key in IMAGES)

    def read(self, path: Path, image: bool) -> tuple[MetaTensor, MetaTensor | None]:
        """As :meth:`volume_of`, for a path; ``image`` says whether background is the lowest value or 0."""
        volume = read_volume(path, self.header, allow_nan=self.nan != "error")
        missing = volume.as_tensor().isnan()
        if not missing.any():
            return volume, None
        if missing.all() or (image and missing.flatten(1).all(dim=1).any()):
            what = "voxels" if missing.all() else "voxels of a channel"
            raise DataError(f"{path}: all {what} are NaN; there is nothing to register")
        numbers = volume.as_tensor()
        background = numbers.masked_fill(missing, torch.inf).amin((1, 2, 3), keepdim=True) if image else 0.0
        valid = (~missing).all(dim=0, keepdim=True).to(numbers.dtype)
        filled = torch.where(missing, background, numbers)
        return MetaTensor(filled, affine=volume.affine), MetaTensor(valid, affine=volume.affine)

    def check(self, case: Case) -> None:
        """Raise a DataError where the headers of the two images say that they cannot be registered.

        Where only one image says which way its axes run, the other one may be its mirror image, which no registration
        undoes.
        """
        headers = {key: self.header_of(case, key) for key in IMAGES}
        if len({header.oriented for header in headers.values()}) == 2:
            guessed = next(key for key in IMAGES if not headers[key].oriented)
            raise DataError(
                f"{case.where}.{guessed}: {case.files[guessed]}: {headers[guessed].doubts[0]}. The other image of the "
                "case says it, so that a wrong guess would mirror one against the other"
            )

    def note_doubts(self, cases: Iterable[Case]) -> None:
        """Warn, once for all cases, of headers that may be wrong."""
        lines, seen = [], set()
        for case in cases:
            for key in (*IMAGES, *LABELS, *MASKS):
                path = case.files.get(key)
                if path is None or path in seen:
                    continue
                seen.add(path)
                lines += [f"{case.where}.{key}: {path}: {doubt}" for doubt in self.header_of(case, key).doubts]
        if lines:
            more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
            logger.warning("\n".join([f"{len(lines)} doubt(s) about headers:", *lines[:_LISTED], *more]))


def valid_on_grid(valid: torch.Tensor) -> torch.Tensor:
    """Where the sample owes nothing to a voxel that was NaN, from the mask of those brought to the sample's grid."""
    return (valid > 1 - 1e-3).to(valid.dtype)

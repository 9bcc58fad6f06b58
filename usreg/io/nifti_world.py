"""The world that a NIfTI header states: sform or qform, the unit, and what is doubtful about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

HeaderChoice = Literal["sform", "qform"]
CHOICES: tuple[HeaderChoice, ...] = ("sform", "qform")

_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's codes of units; 0 is unknown, and mm by custom
_UNIT_BITS = 7  # of xyzt_units; the others are the unit of time
_APART = 0.1  # voxels between the two forms' corners that rounding to float32 does not explain
_STRETCHED = 0.01  # part of a voxel size
_NO_DIRECTIONS = (
    "its header does not say which way its axes run (sform_code and qform_code are 0), so that left and right are a "
    "guess (LAS); write the directions into the file, or set header to sform or qform if that one is right"
)


@dataclass(frozen=True)
class World:
    """What a header says about the world.

    Attributes:
        affine: (4, 4), from array indices to mm.
        oriented: whether the header says which way the axes run.
        doubts: what may be wrong, as sentences.
    """

    affine: NDArray[np.float64]
    oriented: bool = True
    doubts: tuple[str, ...] = ()


def check_choice(choice: HeaderChoice | None) -> HeaderChoice | None:
    """Return the choice, or raise a ValueError: ``"sform"``, ``"qform"`` or None."""
    if choice is not None and choice not in CHOICES:
        raise ValueError(f"header must be {' or '.join(CHOICES)}, not {choice!r}")
    return choice


def nifti_world(header: Any, choice: HeaderChoice | None = None) -> World:
    """The world of a NIfTI header of nibabel.

    Args:
        header: of nibabel.
        choice: which form to take where both are set and differ, or where neither is; without a choice the sform
            where its code is above 0, else the qform, as nibabel does.

    Raises:
        DataError: the unit is not one of NIfTI's, or the qform is no rotation.
    """
    unit = int(header["xyzt_units"]) & _UNIT_BITS
    if unit not in _MM:
        raise DataError(f"its unit of length has the code {unit}; valid are metre (1), millimetre (2) and micron (3)")
    coded = [name for name in CHOICES if int(header[f"{name}_code"]) > 0]
    doubts: list[str] = []
    oriented = True
    if coded:
        affine = _form(header, choice if choice in coded else coded[0])
        if len(coded) == 2 and choice is None:
            doubts += _disagreement(header, affine)
    elif choice is not None:
        affine = _form(header, choice)
    else:
        affine, oriented = header.get_base_affine(), False
        doubts.append(_NO_DIRECTIONS)
    doubts += _stretched(header, affine)
    affine = np.diag([_MM[unit]] * 3 + [1.0]) @ affine
    return World(affine, oriented, tuple(doubts))


def _form(header: Any, name: HeaderChoice) -> NDArray[np.float64]:
    """The affine of one form, in the header's unit."""
    try:
        affine = getattr(header, f"get_{name}")(coded=False)
    except ValueError as error:  # the numbers of the qform are no rotation
        raise DataError(f"its {name} is not valid ({error}); write it again, or set header to the other one") from error
    return np.asarray(affine, dtype=np.float64)


def _disagreement(header: Any, sform: NDArray[np.float64]) -> list[str]:
    try:
        qform = _form(header, "qform")
    except DataError as error:
        return [f"{error}; the sform is taken"]
    ends = (*header.get_data_shape()[:3], 1)
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * ends
    apart = float(np.linalg.norm(corners @ (sform - qform)[:3].T, axis=1).max())
    voxel = np.linalg.norm(sform[:3, :3], axis=0).min()
    if apart <= _APART * voxel:
        return []
    return [
        f"its sform and its qform put its corners up to {apart / max(voxel, 1e-30):.3g} voxels apart; the sform is "
        "taken; set header to sform or qform to say which is right"
    ]


def _stretched(header: Any, affine: NDArray[np.float64]) -> list[str]:
    stated = np.abs(np.asarray(header.get_zooms()[:3], dtype=np.float64))
    found = np.linalg.norm(affine[:3, :3], axis=0)
    if len(stated) < 3 or np.abs(stated - found).max() <= _STRETCHED * found.max() or not stated.all():
        return []
    return [
        f"its voxel sizes are {_listed(stated)} by pixdim and {_listed(found)} by its affine; the affine is taken "
        "here, pixdim by ITK"
    ]


def _listed(numbers: NDArray[np.float64]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)

"""Writing volumes: NIfTI through nibabel, formats of ITK through SimpleITK."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..spatial import Grid
from .formats import suffix_of
from .itk_files import import_simpleitk
from .itk_transforms import set_itk_grid
from .whole import whole

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
VOLUME_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES

_FOUR = 4
_MM = 2  # NIfTI's code of the unit
_UNITS_OF_TIME = 0b111000


@dataclass(frozen=True)
class Series:
    """How a NIfTI file keeps its channels.

    Attributes:
        vectors: along the fifth axis, with an intent, rather than along the fourth.
        intent: NIfTI's code, such as 1007 for vectors.
        step: of the fourth axis, such as the seconds between two volumes.
        unit: of it, NIfTI's code.
    """

    vectors: bool = False
    intent: int = 0
    step: float = 1.0
    unit: int = 0


def series_of(path: Path) -> Series:
    """How a file keeps its channels; the default for formats of ITK."""
    if path.is_dir() or suffix_of(path) not in NIFTI_SUFFIXES:
        return Series()
    header: Any = nib.load(path).header
    zooms = header.get_zooms()
    return Series(
        vectors=len(zooms) > _FOUR,
        intent=int(header["intent_code"]),
        step=float(zooms[3]) if len(zooms) == _FOUR else 1.0,
        unit=int(header["xyzt_units"]) & _UNITS_OF_TIME,
    )


def check_output(path: Path, suffixes: Collection[str], inputs: Collection[Path] = ()) -> None:
    """Raise UsageError where a file cannot be written; its folder is made.

    Args:
        path: the file.
        suffixes: what its name may end in.
        inputs: files that are read, and must not be overwritten.
    """
    if suffix_of(path) not in suffixes and path.suffix.lower() not in suffixes:
        raise UsageError(f"cannot write {path}: its name must end in one of {', '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    if path.exists() and any(path.samefile(other) for other in inputs if other.exists()):
        raise UsageError(f"cannot write {path}: it is one of the files to read; name another one")
    if suffix_of(path) in ITK_SUFFIXES:
        import_simpleitk(path, "this format")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def write_volume(path: Path, voxels: NDArray[Any], grid: Grid, series: Series | None = None) -> None:
    """Write voxels in their own type.

    Args:
        path: of one of :data:`VOLUME_SUFFIXES`; see :func:`check_output`.
        voxels: (C, X, Y, Z); several channels become a fourth axis of NIfTI, or components of ITK's formats.
        grid: of the axes x, y, z.
        series: how NIfTI keeps the channels.

    Raises:
        UsageError: the disk is full, or the file cannot be written for another reason.
    """
    voxels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    if suffix_of(path) not in ITK_SUFFIXES:
        with whole(path) as temporary:
            _write_nifti(temporary, voxels, grid, series or Series())
        return
    try:
        _write_with_itk(path, voxels, grid)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def _write_nifti(path: Path, voxels: NDArray[Any], grid: Grid, series: Series) -> None:
    several = len(voxels) > 1
    array = np.moveaxis(voxels, 0, -1) if several else voxels[0]
    if several and series.vectors:
        array = array[:, :, :, None, :]
    image = nib.Nifti1Image(array, grid.affine, dtype=voxels.dtype)
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    header: Any = image.header
    header.set_xyzt_units(_MM)
    if several:
        header["xyzt_units"] = _MM | series.unit
        if series.vectors:
            header["intent_code"] = series.intent
        else:
            header.set_zooms((*header.get_zooms()[:3], series.step))
    nib.save(image, path)


def _write_with_itk(path: Path, voxels: NDArray[Any], grid: Grid) -> None:
    sitk = import_simpleitk(path, "this format")
    array = np.ascontiguousarray(voxels.transpose(3, 2, 1, 0))
    image = sitk.GetImageFromArray(array, isVector=True) if len(voxels) > 1 else sitk.GetImageFromArray(array[..., 0])
    set_itk_grid(image, grid)
    sitk.WriteImage(image, str(path), useCompression=True)

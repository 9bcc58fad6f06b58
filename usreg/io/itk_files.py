"""Volumes that SimpleITK reads: MetaImage, NRRD, MINC 2 and DICOM. Its world is LPS; what leaves this module is RAS."""

from __future__ import annotations

import functools
import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .formats import DICOM, METAIMAGE, MINC2, NRRD, WAY_OUT, Kind
from .header import VolumeFile, VolumeHeader, make_header
from .text_header import TextHeader

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_file(path: Path, kind: Kind) -> VolumeFile:
    """Read the header of a file.

    Raises:
        DataError: SimpleITK is not installed, the file cannot be read, its voxels are no real numbers, or its shape or
            affine cannot be used.
    """
    sitk = import_simpleitk(path, kind.name)
    text = TextHeader.read(path, kind) if kind in (METAIMAGE, NRRD) else None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(kind.itk)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(
            f"{path}: cannot be read as {kind.name}, its header is cut short or corrupt ({reason(error)}); {WAY_OUT}"
        ) from error
    check_real(path, sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    shape = tuple(reader.GetSize())
    if reader.GetNumberOfComponents() > 1:
        shape += (reader.GetNumberOfComponents(),)
    affine = world_affine(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())
    if kind is MINC2 and not _turns_minc(sitk):
        affine = _LPS_TO_RAS @ affine  # MINC's world is RAS already, and came through unchanged
    doubts: tuple[str, ...] = ()
    if text is not None:
        correction, doubts = text.to_ras_mm()
        affine = correction @ affine
    oriented = text.oriented if text is not None else kind is not DICOM or states_directions(reader)
    header = make_header(path, shape, affine, oriented, doubts if oriented else (no_directions(kind), *doubts))

    def voxels(dtype: type[np.generic] | None) -> NDArray[Any]:
        if text is not None:
            text.check_compressed()
        return read_voxels(path, reader, sitk, header, dtype)

    return VolumeFile(header, voxels)


def import_simpleitk(path: Path, name: str) -> Any:
    """The module SimpleITK, or a DataError that says how to get it."""
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError(
            f"{path}: {name} is read by SimpleITK, which is not installed; install it with: "
            f'pip install "usreg[formats]", or convert the file to NIfTI'
        ) from error
    return SimpleITK


def world_affine(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]) -> NDArray[np.float64]:
    """The affine (4, 4) to RAS mm of ITK's description of a grid, of its first three axes where it has four."""
    axes = len(spacing)
    affine = np.eye(4)
    if axes >= 3:
        directions = np.reshape(direction, (axes, axes))[:3, :3]
        affine[:3, :3] = directions * np.asarray(spacing)[:3]
        affine[:3, 3] = origin[:3]
    return _LPS_TO_RAS @ affine


def states_directions(reader: Any) -> bool:
    """Whether a DICOM file says where its slices lie: by an orientation or, with many frames, a frame of reference."""
    return any(reader.HasMetaDataKey(tag) for tag in ("0020|0037", "0020|0052"))


def no_directions(kind: Kind) -> str:
    """The doubt about a file that does not say which way its axes run."""
    return (
        f"its {kind.name} header does not say which way its axes run, so that left and right are a guess (LPS); write "
        "the directions into the file"
    )


def read_voxels(
    path: Path, reader: Any, sitk: Any, header: VolumeHeader, dtype: type[np.generic] | None
) -> NDArray[Any]:
    """The voxels (C, X, Y, Z) of what a reader of SimpleITK reads, of a type or of that of the file."""
    try:
        image = reader.Execute()
    except RuntimeError as error:
        what = f"the voxels cannot be read, the file is cut short or corrupt ({reason(error)})"
        raise DataError(f"{path}: {what}; {WAY_OUT}") from error
    array = sitk.GetArrayViewFromImage(image)  # (z, y, x), with a last axis of components or a first one of a fourth
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None] if array.ndim == 3 else np.moveaxis(array, 0, -1)
    return np.array(array.reshape(*header.shape[::-1], header.channels).transpose(3, 2, 1, 0), dtype, order="C")


def check_real(path: Path, pixel_type: str) -> None:
    """Raise a DataError where voxels are complex."""
    if "complex" in pixel_type:
        raise DataError(f"{path}: its voxels are of type {pixel_type}; real numbers are needed")


def reason(error: Exception) -> str:
    """What an error of ITK says, without source files, addresses and the guess that the file does not exist."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception thrown", "Reason:"))]
    text = " ".join(re.sub(r"^(ITK|itk::|sitk::)\s?ERROR: (\w+\(0x[0-9a-f]+\): )?", "", line) for line in lines)
    return " ".join(text.split()).rstrip(".") or str(error)


@functools.cache
def _turns_minc(sitk: Any) -> bool:
    """Whether this SimpleITK turns MINC's world, RAS, into its own, as a switch of its compilation says.

    Asked of a file that it writes: there, the directions of an image along the axes of LPS are turned or they are not.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mnc"
        sitk.WriteImage(sitk.Image(2, 2, 2, sitk.sitkFloat32), str(path), imageIO=MINC2.itk)
        return struct.pack("<3d", -1.0, 0.0, 0.0) in path.read_bytes()

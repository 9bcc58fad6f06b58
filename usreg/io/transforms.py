"""Files of transforms, as ITK and ANTs write them: affines (``.mat``, ``.tfm``, ``.txt``), fields (``.nii.gz`` and
images of vectors in ITK's formats) and, through SimpleITK, composites (``.h5``).

Files hold ITK's world, LPS in mm; here the world is RAS. A field's file has the voxels of NIfTI (X, Y, Z, 1, 3) with
the intent "vector", and maps a point x of the fixed image to ``x + field(x)`` in the moving image. Images are pulled
through it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.io
import torch

from ..errors import DataError, UsageError
from ..spatial import Affine, Chain, DisplacementField, Grid, Transform
from .formats import suffix_of
from .images import read_stored
from .itk_transforms import FLIP, read_with_itk, write_with_itk

VECTOR_INTENT = 1007
AFFINE_SUFFIXES = (".mat", ".tfm", ".txt")
FIELD_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")
COMPOSITE_SUFFIXES = (".h5", ".hdf5")

_NIFTI = FIELD_SUFFIXES[:2]
_TEXT_HEADER = "#Insight Transform File V1.0"
_LINEAR = ("AffineTransform", "MatrixOffsetTransformBase", "Euler3DTransform", "TranslationTransform")
_NIFTYREG = b"NREG_TRANS"


def read_transform(path: Path) -> Transform:
    """An affine, a displacement field or a chain of them, by the name of its file.

    Affines of other kinds than ``AffineTransform``, ``Euler3DTransform`` and ``TranslationTransform``, files of several
    transforms and ``.h5`` are read by SimpleITK.

    Raises:
        UsageError: the file is missing, or is no transform that is known here.
    """
    if not path.is_file():
        raise UsageError(f"there is no transform file {path}")
    suffix = suffix_of(path)
    try:
        if suffix in AFFINE_SUFFIXES:
            return _read_mat(path) if suffix == ".mat" else _read_text(path)
        if suffix in COMPOSITE_SUFFIXES:
            return read_with_itk(path)
        if suffix in FIELD_SUFFIXES:
            return _read_field(path)
    except ValueError as error:  # of a matrix that cannot be inverted
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: {error}") from error
    raise UsageError(
        f"{path} is no transform that can be read: affines are {', '.join(AFFINE_SUFFIXES)}, displacement fields "
        f"{', '.join(FIELD_SUFFIXES)}, composites of ITK {', '.join(COMPOSITE_SUFFIXES)}"
    )


def write_affine(path: Path, affine: Affine) -> None:
    """Write an affine as ITK does: ``.mat`` (binary, as ANTs writes it), or ``.tfm`` or ``.txt`` (text)."""
    matrix = FLIP @ affine.matrix @ FLIP
    parameters = np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]])
    if path.suffix == ".mat":
        content = {"AffineTransform_double_3_3": parameters[:, None], "fixed": np.zeros((3, 1))}
        scipy.io.savemat(path, content, format="4")
        return
    lines = [
        _TEXT_HEADER,
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        "Parameters: " + " ".join(repr(float(value)) for value in parameters),
        "FixedParameters: 0 0 0",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_field(path: Path, field: DisplacementField) -> None:
    """Write a field as ITK and ANTs read it, float32, on its own grid."""
    grid, lps = _as_nifti(field)
    image = nib.Nifti1Image(lps[:, :, :, None, :].astype(np.float32), grid.affine)
    image.header.set_intent(VECTOR_INTENT)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    nib.save(image, path)


def _as_nifti(field: DisplacementField) -> tuple[Grid, np.ndarray[Any, Any]]:
    """The field's grid, and its vectors (X, Y, Z, 3) in LPS."""
    vectors = field.displacement.numpy() * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    return field.grid, np.moveaxis(vectors, 0, -1)


def write_composite(path: Path, chain: Chain) -> None:
    """Write a chain of affines and fields as one file of ITK, ``.h5``, through SimpleITK.

    Raises:
        UsageError: SimpleITK is not installed, or the chain holds something else.
    """
    write_with_itk(path, chain.transforms)


def _read_field(path: Path) -> DisplacementField:
    if suffix_of(path) in _NIFTI:
        _check_vectors(path)
    try:
        voxels, grid = read_stored(path)
    except DataError as error:
        raise UsageError(f"{path} is no displacement field that can be read: {error}") from error
    if len(voxels) != 3:
        raise UsageError(f"{path} has {len(voxels)} channels; a displacement field has 3, x, y and z in mm")
    vectors = np.asarray(voxels, dtype=np.float64) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    if bad := int(vectors.size - np.isfinite(vectors).sum()):
        raise UsageError(f"{path}: {bad} of {vectors.size} numbers of the field are NaN or infinite; write it again")
    return DisplacementField(grid, torch.from_numpy(vectors))


def _check_vectors(path: Path) -> None:
    """Raise UsageError for a NIfTI file that is no image of vectors: an image given by mistake is one."""
    try:
        header: Any = nib.load(path).header
    except Exception as error:
        raise UsageError(f"{path} is no NIfTI file that can be read: {error}") from error
    shape = header.get_data_shape()
    if len(shape) != 5 or shape[3:] != (1, 3):
        raise UsageError(
            f"{path} has shape {tuple(shape)}; a displacement field has (X, Y, Z, 1, 3), as ITK and ANTs write it"
        )
    if bytes(header["intent_name"]).startswith(_NIFTYREG):
        raise UsageError(
            f"{path} is a transform of NiftyReg, which holds other numbers than a field of ITK; convert it"
        )


def _read_mat(path: Path) -> Transform:
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:
        if _is_plain_matrix(path):
            raise UsageError(
                f"{path} is a matrix of plain numbers, as FSL writes it: it does not say where its images lie. Convert "
                "it to ITK's format, for instance with c3d_affine_tool"
            ) from error
        raise UsageError(f"{path} is no MATLAB file that can be read: {error}") from error
    kinds = [name for name in content if "_double_" in name or "_float_" in name]
    if not kinds or "fixed" not in content:
        held = sorted(name for name in content if not name.startswith("__"))
        raise UsageError(f"{path} holds {held}; an affine of ITK is one of {', '.join(_LINEAR)}, and fixed")
    names = [name for name in kinds if name.startswith(_LINEAR)]
    if len(kinds) > 1 or not names:
        return read_with_itk(path)
    return _affine(path, names[0], content[names[0]].ravel(), content["fixed"].ravel())


def _is_plain_matrix(path: Path) -> bool:
    """Whether a file is four lines of four numbers."""
    try:
        rows = [[float(cell) for cell in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except ValueError:
        return False
    return [len(row) for row in rows] == [4, 4, 4, 4]


def _read_text(path: Path) -> Transform:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith("#Insight Transform File"):
        raise UsageError(f"{path} is no transform of ITK: its first line is not {_TEXT_HEADER!r}")
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name == "Transform" and "Transform" in found:
            return read_with_itk(path)
        if value:
            found[name] = value.strip()
    missing = [name for name in ("Transform", "Parameters", "FixedParameters") if name not in found]
    if missing:
        raise UsageError(f"{path} has no line {missing[0]!r}")
    if not found["Transform"].startswith(_LINEAR):
        return read_with_itk(path)
    numbers = [np.array([float(v) for v in found[name].split()]) for name in ("Parameters", "FixedParameters")]
    return _affine(path, found["Transform"], *numbers)


def _affine(path: Path, kind: str, parameters: np.ndarray[Any, Any], fixed: np.ndarray[Any, Any]) -> Affine:
    """From ITK's parameters: a matrix and a translation about a centre."""
    matrix = np.eye(4)
    if kind.startswith("TranslationTransform") and parameters.size == 3:
        matrix[:3, 3] = parameters
    elif kind.startswith("Euler3DTransform") and parameters.size == 6 and fixed.size >= 3:
        zyx = bool(fixed[3]) if fixed.size > 3 else False
        matrix[:3, :3] = _euler(parameters[:3], zyx)
        matrix[:3, 3] = parameters[3:] + fixed[:3] - matrix[:3, :3] @ fixed[:3]
    elif kind.startswith(_LINEAR[:2]) and parameters.size == 12 and fixed.size == 3:
        matrix[:3, :3] = parameters[:9].reshape(3, 3)
        matrix[:3, 3] = parameters[9:] + fixed - matrix[:3, :3] @ fixed
    else:
        raise UsageError(
            f"{path} holds a {kind} with {parameters.size} parameters; {', '.join(_LINEAR)} in three dimensions "
            "can be read"
        )
    return Affine(FLIP @ matrix @ FLIP)


def _euler(angles: np.ndarray[Any, Any], zyx: bool) -> np.ndarray[Any, Any]:
    """ITK's rotation by angles about x, y and z: Z X Y, or Z Y X."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x if zyx else about_z @ about_x @ about_y

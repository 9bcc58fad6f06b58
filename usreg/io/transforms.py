"""Files of transforms, as ITK and ANTs write them: affines (``.mat``, ``.tfm``, ``.txt``) and fields (``.nii.gz``).

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

from ..errors import UsageError
from ..spatial import Affine, Chain, DisplacementField, Grid, Transform
from .itk_files import import_simpleitk

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS to LPS, and back."""

VECTOR_INTENT = 1007
AFFINE_SUFFIXES = (".mat", ".tfm", ".txt")
FIELD_SUFFIXES = (".nii", ".nii.gz")

_TEXT_HEADER = "#Insight Transform File V1.0"
_LINEAR = ("AffineTransform", "MatrixOffsetTransformBase", "Euler3DTransform", "TranslationTransform")


def read_transform(path: Path) -> Transform:
    """An affine or a displacement field, by the name of its file.

    Raises:
        UsageError: the file is missing, or is no transform that is known here.
    """
    if not path.is_file():
        raise UsageError(f"there is no transform file {path}")
    if path.suffix in AFFINE_SUFFIXES:
        return _read_mat(path) if path.suffix == ".mat" else _read_text(path)
    if path.name.endswith(FIELD_SUFFIXES):
        return _read_field(path)
    raise UsageError(
        f"{path} is no transform that can be read: affines are {', '.join(AFFINE_SUFFIXES)}, fields {FIELD_SUFFIXES}"
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


def write_composite(path: Path, chain: Chain) -> None:
    """Write a chain of affines and fields as one file of ITK, ``.h5``, through SimpleITK.

    Raises:
        UsageError: SimpleITK is not installed.
    """
    sitk = import_simpleitk(path, "a composite transform")
    parts: list[Any] = []
    for transform in reversed(chain.transforms):  # ITK's last transform meets a point first
        if isinstance(transform, Affine):
            matrix = FLIP @ transform.matrix @ FLIP
            parts.append(sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist()))
        elif isinstance(transform, DisplacementField):
            grid, vectors = _as_nifti(transform)
            image = sitk.GetImageFromArray(np.ascontiguousarray(vectors.transpose(2, 1, 0, 3)), isVector=True)
            axes = (FLIP @ grid.affine)[:3]
            image.SetSpacing(grid.spacing.tolist())
            image.SetOrigin(axes[:, 3].tolist())
            image.SetDirection((axes[:, :3] / grid.spacing).ravel().tolist())
            parts.append(sitk.DisplacementFieldTransform(image))
    sitk.WriteTransform(sitk.CompositeTransform(parts), str(path))


def _as_nifti(field: DisplacementField) -> tuple[Grid, np.ndarray[Any, Any]]:
    """The field's grid, and its vectors (X, Y, Z, 3) in LPS."""
    vectors = field.displacement.numpy() * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    return field.grid, np.moveaxis(vectors, 0, -1)


def _read_field(path: Path) -> DisplacementField:
    try:
        image: Any = nib.load(path)
        values = np.asarray(image.dataobj, dtype=np.float64)
    except Exception as error:
        raise UsageError(f"{path} is no NIfTI file that can be read: {error}") from error
    if values.ndim != 5 or values.shape[3:] != (1, 3):
        raise UsageError(
            f"{path} has shape {values.shape}; a displacement field has (X, Y, Z, 1, 3), as ITK and ANTs write it"
        )
    grid = Grid(values.shape[:3], image.affine)
    vectors = np.moveaxis(values[:, :, :, 0], -1, 0) * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    return DisplacementField(grid, torch.from_numpy(np.ascontiguousarray(vectors)))


def _read_mat(path: Path) -> Affine:
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:
        raise UsageError(f"{path} is no MATLAB file that can be read: {error}") from error
    names = [name for name in content if name.startswith(_LINEAR)]
    if len(names) != 1 or "fixed" not in content:
        raise UsageError(f"{path} holds {sorted(content)}; an affine of ITK is one of {', '.join(_LINEAR)}, and fixed")
    return _affine(path, names[0], content[names[0]].ravel(), content["fixed"].ravel())


def _read_text(path: Path) -> Affine:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith("#Insight Transform File"):
        raise UsageError(f"{path} is no transform of ITK: its first line is not {_TEXT_HEADER!r}")
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name == "Transform" and "Transform" in found:
            raise UsageError(f"{path} holds several transforms; give each a file of its own")
        if value:
            found[name] = value.strip()
    missing = [name for name in ("Transform", "Parameters", "FixedParameters") if name not in found]
    if missing:
        raise UsageError(f"{path} has no line {missing[0]!r}")
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

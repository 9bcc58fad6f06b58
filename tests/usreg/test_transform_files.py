"""Files of transforms: what SimpleITK reads of ours, and what we read of SimpleITK's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from usreg.errors import UsageError
from usreg.io.transforms import read_transform, write_affine, write_field
from usreg.spatial import Affine, DisplacementField, Grid, lps_to_ras

sitk = pytest.importorskip("SimpleITK")

OBLIQUE = np.array([[-1.1, 0.2, 0.1, 30.0], [0.15, 0.9, -0.3, -20.0], [0.0, 0.25, 2.0, 5.0], [0, 0, 0, 1.0]])
POINTS = np.array([[3.0, -4.0, 5.0], [10.5, 2.25, -7.0], [0.0, 0.0, 0.0]])


def orthogonal_grid() -> Grid:
    """ITK's images have no shear: a rotation with a flipped axis, and three spacings."""
    turn = np.linalg.qr(OBLIQUE[:3, :3])[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 1.5, 2.0])
    affine[:3, 3] = (-6.0, 4.0, -9.0)
    return Grid((9, 8, 7), affine)


def smooth_field(grid: Grid) -> DisplacementField:
    generator = torch.Generator().manual_seed(0)
    coarse = 4 * torch.rand(1, 3, 3, 3, 3, generator=generator, dtype=torch.float64) - 2
    fine = torch.nn.functional.interpolate(coarse, size=grid.size, mode="trilinear", align_corners=True)
    return DisplacementField(grid, fine[0])


def mapped_by_itk(transform: object, points: np.ndarray) -> np.ndarray:
    lps = [transform.TransformPoint(tuple(map(float, point))) for point in lps_to_ras(points)]  # type: ignore[attr-defined]
    return lps_to_ras(lps)


@pytest.mark.parametrize("suffix", [".mat", ".tfm", ".txt"])
def test_an_affine_comes_back_and_itk_reads_it(tmp_path: Path, suffix: str) -> None:
    affine, path = Affine(OBLIQUE), tmp_path / f"affine{suffix}"
    write_affine(path, affine)
    np.testing.assert_allclose(read_transform(path)(POINTS), affine(POINTS), atol=1e-9)
    np.testing.assert_allclose(mapped_by_itk(sitk.ReadTransform(str(path)), POINTS), affine(POINTS), atol=1e-9)


def itk_transforms() -> list[object]:
    centre = (5.0, -3.0, 2.0)
    affine = sitk.AffineTransform(OBLIQUE[:3, :3].ravel().tolist(), (1.0, 2.0, 3.0), centre)
    euler = sitk.Euler3DTransform(centre, 0.3, -0.2, 0.5, (4.0, 5.0, 6.0))
    other_order = sitk.Euler3DTransform(centre, 0.3, -0.2, 0.5, (4.0, 5.0, 6.0))
    other_order.SetComputeZYX(True)
    return [affine, euler, other_order, sitk.TranslationTransform(3, (1.0, -2.0, 3.0))]


@pytest.mark.parametrize("suffix", [".mat", ".tfm"])
@pytest.mark.parametrize("number", range(4))
def test_itks_linear_transforms(tmp_path: Path, number: int, suffix: str) -> None:
    transform, path = itk_transforms()[number], tmp_path / f"transform{suffix}"
    sitk.WriteTransform(transform, str(path))
    np.testing.assert_allclose(read_transform(path)(POINTS), mapped_by_itk(transform, POINTS), atol=1e-6)


def test_a_field_comes_back_and_itk_reads_it(tmp_path: Path) -> None:
    grid, path = orthogonal_grid(), tmp_path / "field.nii.gz"
    field = smooth_field(grid)
    write_field(path, field)
    points = grid.to_world(np.random.default_rng(0).uniform(0.5, 5.5, (20, 3)))
    np.testing.assert_allclose(read_transform(path)(points), field(points), atol=1e-5)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    np.testing.assert_allclose(mapped_by_itk(transform, points), field(points), atol=1e-4)


def test_what_is_no_transform_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no transform file"):
        read_transform(tmp_path / "missing.mat")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(UsageError, match="its first line is not"):
        read_transform(text)
    with pytest.raises(UsageError, match="affines are"):
        read_transform(Path(__file__))
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkFloat32), str(tmp_path / "image.nii.gz"))
    with pytest.raises(UsageError, match=r"\(X, Y, Z, 1, 3\)"):
        read_transform(tmp_path / "image.nii.gz")
    (tmp_path / "broken.mat").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no MATLAB file"):
        read_transform(tmp_path / "broken.mat")

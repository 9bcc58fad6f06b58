"""Grids, transforms and resampling, against analytic cases and against SimpleITK."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from usreg.spatial import Affine, Chain, DisplacementField, Grid, lps_to_ras, resample

SIZE = (7, 6, 5)
ORIENTATIONS = [
    "".join(pair[turn] for pair, turn in zip(axes, turns, strict=True))
    for axes in permutations(("LR", "PA", "IS"))
    for turns in product((0, 1), repeat=3)
]
OBLIQUE = np.array([[0.9, 0.3, -0.1, 3], [-0.25, 1.8, 0.4, -4], [0.2, -0.3, 0.7, 5], [0, 0, 0, 1]])  # sheared too


def grid(affine: np.ndarray = OBLIQUE, size: tuple[int, int, int] = SIZE) -> Grid:
    return Grid(size, affine)


def noise(size: tuple[int, int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((1, *size)))


def rotation(angle: float, axis: int) -> np.ndarray:
    matrix, (i, j) = np.eye(4), [k for k in range(3) if k != axis]
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def itk_image(volume: torch.Tensor, where: Grid) -> sitk.Image:
    """As ITK holds a volume (1, X, Y, Z): its array is z, y, x, its world LPS. The grid must not be sheared."""
    image = sitk.GetImageFromArray(volume[0].numpy().transpose(2, 1, 0))
    image.SetSpacing(where.spacing.tolist())
    image.SetOrigin(lps_to_ras(where.affine[:3, 3]).tolist())
    image.SetDirection((np.diag([-1, -1, 1]) @ where.affine[:3, :3] / where.spacing).flatten().tolist())
    return image


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_reorientation_moves_no_voxel_in_the_world(orientation: str) -> None:
    source = grid()
    turned = source.reoriented(orientation)
    assert turned.orientation == orientation
    np.testing.assert_allclose(sorted(map(tuple, turned.corners)), sorted(map(tuple, source.corners)), atol=1e-9)
    volume = noise()
    there = resample(volume, source, turned)
    assert there.shape[1:] == turned.size
    assert torch.equal(there.flatten().sort().values, volume.flatten().sort().values)
    assert torch.equal(resample(there, turned, source), volume)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resampling_agrees_with_simpleitk(mode: str, mirrored: bool) -> None:
    """Oblique, anisotropic grids, one of negative determinant, of different sizes, through an affine."""
    turn = rotation(0.3, 0) @ rotation(-0.2, 1) @ rotation(0.4, 2)
    source = grid(turn @ np.diag([0.7, 1.1, 2.0, 1]) + [[0, 0, 0, -2], [0, 0, 0, 1], [0, 0, 0, 3], [0, 0, 0, 0]])
    flip = np.diag([-1.0 if mirrored else 1.0, 1, 1, 1])
    target = grid(flip @ rotation(-0.25, 2) @ np.diag([0.9, 0.8, 1.3, 1]), (9, 8, 6))
    target = Grid(target.size, target.affine + [[0, 0, 0, m] for m in (*(source.centre - target.centre), 0)])
    transform = Affine(
        rotation(0.1, 1) @ np.array([[1.05, 0.1, 0, 1], [0, 0.95, 0, 0.5], [0, 0.05, 1, -1], [0, 0, 0, 1]])
    )
    volume = noise()
    lps = np.diag([-1.0, -1, 1, 1])
    matrix = lps @ transform.matrix @ lps
    itk_transform = sitk.AffineTransform(3)
    itk_transform.SetMatrix(matrix[:3, :3].flatten().tolist())
    itk_transform.SetTranslation(matrix[:3, 3].tolist())
    like = itk_image(noise(target.size), target)
    kind = sitk.sitkLinear if mode == "bilinear" else sitk.sitkNearestNeighbor
    expected = sitk.Resample(itk_image(volume, source), like, itk_transform, kind, -1.0)
    wanted = torch.from_numpy(sitk.GetArrayFromImage(expected).transpose(2, 1, 0).copy())
    found = resample(volume, source, target, transform, mode=mode)[0]  # type: ignore[arg-type]
    inside = wanted != -1
    assert 20 < inside.sum() < inside.numel()
    # ITK's buffer ends half a voxel beyond the outermost centres, and goes on with the edge there, as border does.
    assert (found - wanted)[inside].abs().max() < 1e-9
    zeros = resample(volume, source, target, transform, mode=mode, padding_mode="zeros")[0]  # type: ignore[arg-type]
    assert (zeros - wanted.where(inside, 0 * wanted)).abs().max() < 1e-9


def test_a_sheared_grid_is_resampled_where_it_lies() -> None:
    """A volume that holds a linear function of the world holds it on any other grid."""
    source, target = grid(OBLIQUE, (20, 20, 20)), grid(np.diag([0.5, 0.4, 0.3, 1]), (6, 5, 4))
    middle = source.centre - target.centre
    target = Grid(target.size, target.affine + [[0, 0, 0, m] for m in (*middle, 0)])
    ramp = source.to_world(np.indices(source.size).reshape(3, -1).T) @ (0.2, -0.5, 0.3)
    found = resample(torch.from_numpy(ramp.reshape(1, *source.size)), source, target)
    expected = target.to_world(np.indices(target.size).reshape(3, -1).T) @ (0.2, -0.5, 0.3)
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=1e-9)


def test_points_go_to_the_world_and_back() -> None:
    points = np.random.default_rng(1).normal(size=(9, 3))
    np.testing.assert_allclose(grid().to_voxels(grid().to_world(points)), points, atol=1e-12)
    np.testing.assert_allclose(lps_to_ras(lps_to_ras(points)), points)
    image = itk_image(noise(), grid(rotation(0.4, 2) @ np.diag([2.0, 1, 3, 1])))
    place = image.TransformContinuousIndexToPhysicalPoint([1.5, 2.0, 0.25])
    there = grid(rotation(0.4, 2) @ np.diag([2.0, 1, 3, 1])).to_world([[1.5, 2.0, 0.25]])
    np.testing.assert_allclose(lps_to_ras([place]), there, atol=1e-9)


def test_resized_cropped_and_spaced_grids_stay_where_they_are() -> None:
    source = grid()
    np.testing.assert_allclose(source.resized((14, 3, 5)).corners, source.corners, atol=1e-9)
    part = source.cropped((1, -2, 0), (4, 8, 5))
    assert part.size == (3, 10, 5)
    np.testing.assert_allclose(part.to_world([[0, 2, 0]]), source.to_world([[1, 0, 0]]))
    spaced = source.with_spacing((1, 2, 3), (8, 9, 10))
    np.testing.assert_allclose(spaced.spacing, (1, 2, 3))
    np.testing.assert_allclose(spaced.centre, source.centre)


def test_overlap_of_boxes() -> None:
    box = grid(np.eye(4), (10, 10, 10))
    assert box.overlap(box) == 1
    assert box.overlap(box.cropped((5, 0, 0), (15, 10, 10))) == pytest.approx(0.5)
    assert box.overlap(box.cropped((30, 0, 0), (40, 10, 10))) == 0
    assert box.overlap(box.cropped((-5, -5, -5), (20, 20, 20))) == 1


def test_a_chain_of_transforms_resamples_once_and_has_an_inverse() -> None:
    source = grid(np.diag([1.0, 1.2, 0.8, 1]), (24, 20, 28))
    generator = np.random.default_rng(2)
    waves = np.stack([np.sin(np.indices(source.size).sum(0) / 6 + phase) for phase in generator.normal(size=3)])
    field = DisplacementField(source, torch.from_numpy(0.8 * waves))
    affine = Affine(rotation(0.05, 0) @ np.diag([1.02, 0.98, 1, 1]))
    chain = Chain([affine, field])
    points = source.centre + generator.uniform(-4, 4, (30, 3))
    np.testing.assert_allclose(chain(points), field(affine(points)))
    np.testing.assert_allclose(chain.inverse()(chain(points)), points, atol=2e-3)
    ramp = source.to_world(np.indices(source.size).reshape(3, -1).T) @ (1.0, 2.0, -1.0)
    found = resample(torch.from_numpy(ramp.reshape(1, *source.size)), source, source, chain)
    inner = source.cropped((5, 5, 5), (19, 15, 23))
    expected = chain(inner.to_world(np.indices(inner.size).reshape(3, -1).T)) @ (1.0, 2.0, -1.0)
    np.testing.assert_allclose(found[0, 5:19, 5:15, 5:23].flatten().numpy(), expected, atol=1e-9)


def test_a_field_in_voxels_becomes_one_in_the_world() -> None:
    fixed, moving = grid(), grid(rotation(0.2, 1) @ np.diag([2.0, 1.0, 1.5, 1]), (9, 9, 9))
    ddf = torch.from_numpy(np.random.default_rng(3).normal(size=(3, *SIZE)))
    field = DisplacementField.from_voxels(ddf, fixed, moving)
    voxel = np.array([[2, 3, 1]])
    expected = moving.to_world(voxel + ddf[:, 2, 3, 1].numpy())
    np.testing.assert_allclose(field(fixed.to_world(voxel)), expected, atol=1e-9)


def test_what_cannot_be_inverted_is_said() -> None:
    with pytest.raises(ValueError, match="invertible"):
        Grid(SIZE, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="cannot be inverted"):
        Affine(np.diag([1.0, 0, 1, 1]))
    with pytest.raises(ValueError, match="last row 0 0 0 1"):
        Affine(np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"\(3, 7, 6, 5\)"):
        DisplacementField(grid(), torch.zeros(3, 5, 6, 7))
    jumps = torch.from_numpy(np.random.default_rng(4).normal(scale=20, size=(3, *SIZE)))
    folded = DisplacementField(grid(), jumps).inverse()
    with pytest.raises(ValueError, match=r"points have no inverse to .* the field folds there"):
        folded(grid().to_world(np.indices(SIZE).reshape(3, -1).T))


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e6])
def test_small_voxels_are_not_singular(size):
    """A determinant is judged by the voxels' own size."""
    turned = np.linalg.qr(np.random.default_rng(0).random((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turned * size * [1, 2, 3]
    assert Grid((2, 2, 2), affine).spacing == pytest.approx([size, 2 * size, 3 * size])
    affine[:3, 2] = affine[:3, 0] + affine[:3, 1]
    with pytest.raises(ValueError, match="invertible"):
        Grid((2, 2, 2), affine)

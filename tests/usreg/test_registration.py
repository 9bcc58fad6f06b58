"""Registration of pairs: known transforms are found, files are what ITK reads, and what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from usreg import register
from usreg.errors import ConfigError, DataError
from usreg.io.transforms import read_transform, write_affine
from usreg.metrics.field import folding_ratio
from usreg.registration import Convergence, make_levels, move_field
from usreg.registration.pair import Volume, register_pair
from usreg.registration.stages import load_stages
from usreg.registration.stages.levels import FEWEST_VOXELS
from usreg.registration.transforms.inverse import invert_both_ways, invert_field, miss_of
from usreg.spatial import Affine, Grid, resample
from usreg_kernels import compose_ddf, gaussian_smooth, jacobian_determinant, warp

QUICK = ["stages[0].iterations=[60,30]", "stages[1].iterations=[40,30,15]"]


def texture(size: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """(1, D, H, W): smooth noise that fades towards the faces, as an organ in air."""
    noise = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, 2.0)[0]
    axes = [torch.linspace(-1, 1, length) for length in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (smooth - smooth.min()) * torch.exp(-2 * (z**2 + y**2 + x**2) ** 2)


def tilted_grid(size: tuple[int, int, int]) -> Grid:
    """Spacing 1 x 1.2 x 0.9, one axis flipped, not centred."""
    affine = np.diag([-1.0, 1.2, 0.9, 1.0])
    affine[:3, 3] = (20.0, -15.0, 7.0)
    return Grid(size, affine)


def known_affine(grid: Grid) -> Affine:
    """A turn of 6 degrees about the grid's centre, and a shift of 2 mm."""
    angle = np.deg2rad(6)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = grid.centre + np.array([1.5, -1.0, 1.0]) - matrix[:3, :3] @ grid.centre
    return Affine(matrix)


def pair_of(affine: Affine) -> tuple[Volume, Volume]:
    """A fixed and a moving image, each on a grid of its own: the fixed one is the moving one through the affine."""
    moving = Volume(texture((36, 34, 40)), tilted_grid((36, 34, 40)))
    grid = Grid((30, 36, 33), np.array([[1.1, 0, 0, -14], [0, 1.0, 0, -13], [0, 0, 1.0, 8], [0, 0, 0, 1.0]]))
    return Volume(resample(moving.voxels, moving.grid, grid, affine, padding_mode="zeros"), grid), moving


@pytest.mark.parametrize("model", ["rigid", "affine"])
def test_a_known_turn_and_shift_are_found(model: str) -> None:
    grid = tilted_grid((36, 34, 40))
    truth = known_affine(grid)
    fixed, moving = pair_of(truth)
    _, stages = load_stages(None, [f"stages=[{{stage: {model}, levels: [4, 2, 1], iterations: [80, 50, 30]}}]"])
    found = register_pair(fixed, moving, stages)
    points = fixed.grid.cropped((7, 9, 8), (23, 27, 25)).corners  # the images fade outside
    missed = np.linalg.norm(found.affine(points) - truth(points), axis=1)
    before = np.linalg.norm(points - truth(points), axis=1)
    assert before.mean() > 2
    assert missed.mean() < 0.3


def test_a_deformation_is_found_without_folds_and_with_an_inverse() -> None:
    grid = tilted_grid((36, 34, 40))
    noise = torch.rand(1, 3, 36, 34, 40, generator=torch.Generator().manual_seed(3)) - 0.5
    truth = 220 * gaussian_smooth(noise, 6.0)
    moving = Volume(texture((36, 34, 40)), grid)
    fixed = Volume(warp(moving.voxels[None], truth)[0], grid)
    _, stages = load_stages(None, ["stages=[{stage: greedy, levels: [4, 2, 1], iterations: [60, 40, 25]}]"])
    found = register_pair(fixed, moving, stages)
    assert found.ddf is not None
    inside = (..., slice(8, -8), slice(8, -8), slice(8, -8))
    assert truth[inside].norm(dim=1).mean() > 1.0
    assert (found.ddf - truth)[inside].norm(dim=1).mean() < 0.35 * truth[inside].norm(dim=1).mean()
    assert folding_ratio(found.ddf).item() == 0
    assert found.inverse_miss is not None
    assert found.inverse_miss < 0.1


def test_an_inverse_undoes_its_field() -> None:
    noise = torch.rand(1, 3, 20, 22, 24, generator=torch.Generator().manual_seed(1)) - 0.5
    ddf = 40 * gaussian_smooth(noise, 4.0)
    inverse, missed = invert_field(ddf)
    assert missed <= 0.01
    assert miss_of(inverse, ddf) < 0.05


def steep_field(size: tuple[int, int, int]) -> torch.Tensor:
    """(1, 3, D, H, W): voxels become up to six times as large, and none folds."""
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) - 0.5
    ddf = torch.zeros_like(noise)
    for _ in range(8):
        ddf = compose_ddf(ddf, 12 * gaussian_smooth(noise, 3.0))
    return ddf


@pytest.mark.parametrize("size", [(24, 22, 26), (66, 64, 68)])
def test_a_steep_field_has_an_inverse(size: tuple[int, int, int]) -> None:
    ddf = steep_field(size)
    determinant = jacobian_determinant(ddf)
    assert determinant.min() > 0
    assert determinant.max() > 3
    inverse, missed = invert_field(ddf)
    assert missed <= 0.02
    assert miss_of(ddf, inverse) == pytest.approx(missed)
    assert miss_of(inverse, ddf) < 0.1
    shared, *both = invert_both_ways(ddf)
    assert both == pytest.approx([miss_of(ddf, shared), miss_of(shared, ddf)])
    assert max(both) < 0.1
    undone = -ddf
    for _ in range(60):
        undone = -warp(ddf, undone)
    assert miss_of(ddf, undone) > 2 * missed  # the iteration without damping


def test_levels_keep_the_box_and_fields_keep_their_length_in_mm() -> None:
    grid = tilted_grid((48, 52, 56))
    coarse = make_levels(texture((48, 52, 56))[None], grid, [2, 1])
    assert [level.grid.size for level in coarse] == [(24, 26, 28), (48, 52, 56)]
    np.testing.assert_allclose(coarse[0].grid.corners, grid.corners, atol=1e-9)
    ddf = torch.ones(1, 3, 24, 26, 28)
    torch.testing.assert_close(move_field(ddf, coarse[0].grid, grid), torch.full((1, 3, 48, 52, 56), 2.0))


def test_the_coarsest_level_keeps_enough_voxels() -> None:
    size = (35, 50, FEWEST_VOXELS - 2)
    coarse = make_levels(texture(size)[None], tilted_grid(size), [8])[0]
    assert coarse.grid.size == (FEWEST_VOXELS, FEWEST_VOXELS, FEWEST_VOXELS - 2)


def test_convergence_looks_at_the_slope() -> None:
    convergence = Convergence(tolerance=0.01, window=4)
    assert not any(convergence.is_reached(-0.1 * i) for i in range(10))
    assert [convergence.is_reached(-0.9) for _ in range(5)][-1]
    assert Convergence(tolerance=0, seconds=0.0).is_reached(1.0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    fixed, moving = pair_of(known_affine(tilted_grid((36, 34, 40))))
    paths = tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"
    for path, volume in zip(paths, (fixed, moving), strict=True):
        nib.save(nib.Nifti1Image(volume.voxels[0].numpy(), volume.grid.affine), path)
        label = (volume.voxels[0] > 0.5 * volume.voxels.max()).numpy().astype(np.uint8) * 3
        nib.save(nib.Nifti1Image(label, volume.grid.affine), path.with_name(f"label_{path.name}"))
    return paths


def test_the_command_writes_what_itk_reads(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    fixed, moving = files
    out = tmp_path / "out"
    labels = [f"--{path.name.partition('.')[0]}-label={path.with_name(f'label_{path.name}')}" for path in files]
    arguments = ["--fixed", str(fixed), "--moving", str(moving), "--out", str(out), *labels, *QUICK]
    assert register.main(arguments) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert report["measures"]["dice"]["after"] > 0.9 > report["measures"]["dice"]["before"]
    assert report["measures"]["ncc"]["after"] > 0.97
    assert report["measures"]["neg_jac_ratio"]["after"] == 0

    affine = sitk.ReadTransform(str(out / "affine.mat"))
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(out / "field.nii.gz"), sitk.sitkVectorFloat64))
    images = [sitk.ReadImage(str(path), sitk.sitkFloat64) for path in files]
    theirs = sitk.Resample(*images[::-1], sitk.CompositeTransform([affine, field]), sitk.sitkLinear, 0.0)
    ours = sitk.ReadImage(str(out / "warped.nii.gz"), sitk.sitkFloat64)
    inside = (slice(4, -4),) * 3
    a, b = (sitk.GetArrayFromImage(image)[inside] for image in (ours, theirs))
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-3

    assert register.main(arguments) == 2
    assert "already holds" in capsys.readouterr().err


def test_an_initial_affine_is_where_it_starts(files: tuple[Path, Path], tmp_path: Path) -> None:
    truth = known_affine(tilted_grid((36, 34, 40)))
    write_affine(tmp_path / "start.tfm", truth)
    settings = ["stages=[{stage: affine, levels: [1], iterations: [0]}]"]
    fixed, moving = map(str, files)
    arguments = ["--fixed", fixed, "--moving", moving, "--out", str(tmp_path / "out"), *settings]
    assert register.main([*arguments, "--initial", str(tmp_path / "start.tfm")]) == 0
    found = read_transform(tmp_path / "out" / "affine.mat")
    assert isinstance(found, Affine)
    np.testing.assert_allclose(found.matrix, truth.matrix, atol=1e-9)


def test_images_that_cannot_be_registered() -> None:
    _, stages = load_stages()
    fixed, moving = pair_of(Affine(np.eye(4)))
    constant = Volume(torch.ones_like(fixed.voxels), fixed.grid)
    with pytest.raises(DataError, match="the fixed image is constant"):
        register_pair(constant, moving, stages)
    broken = Volume(moving.voxels.clone().fill_(torch.nan), moving.grid)
    with pytest.raises(DataError, match="of the moving image are NaN"):
        register_pair(fixed, broken, stages)
    far = moving.grid.affine.copy()
    far[0, 3] += 500
    with pytest.raises(DataError, match=r"do not overlap in the world.*start=centres"):
        register_pair(fixed, Volume(moving.voxels, Grid(moving.grid.size, far)), stages)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("start=middle", "start on the command line is 'middle'; it must be one of headers, centres"),
        ("quantiles=[0.9,0.1]", "must be two numbers from 0 to 1"),
        ("stages=[]", "stages is empty"),
        ("stages=[{stage: spline}]", r"stages\[0\].stage .* is 'spline'; it must be one of translation, rigid"),
        ("stages=[{stage: rigid, sigma_field: 1}]", "sigma_field"),
        ("stages=[{stage: rigid, levels: [2]}]", "1 levels and 2 iterations"),
        ("loss={name: lnc}", "Did you mean 'lncc'"),
        ("stages[1].step=-0.5", r"stages\[1\].step on the command line is -0.5; it must be a number above 0"),
        ("stages[1].sigma_field=-1", r"sigma_field .* is -1.0; it must be a number 0 or more"),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stages(None, [override])


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "nothing.nii.gz")
    assert register.main(["--fixed", missing, "--moving", missing, "--out", str(tmp_path / "out")]) == 2
    assert "nothing.nii.gz: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_are_checked_before_any_work(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed, moving = files
    label = fixed.with_name(f"label_{fixed.name}")
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.full((5, 5, 5), 7, np.uint8), np.eye(4)), other)
    arguments = ["--fixed", str(fixed), "--moving", str(moving), "--out", str(tmp_path / "out")]
    assert register.main([*arguments, "--fixed-label", str(label)]) == 2
    assert "go together" in capsys.readouterr().err
    assert register.main([*arguments, "--fixed-label", str(label), "--moving-label", str(other)]) == 2
    assert "have no structure in common" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

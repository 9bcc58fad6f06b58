"""Applying transforms: as SimpleITK does, on grids of every kind; points, inverses, files; errors that say what is."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from usreg import apply as command
from usreg.errors import DataError, UsageError
from usreg.io import read_landmarks
from usreg.io.landmark_details import read_details
from usreg.io.transforms import write_affine, write_composite, write_field
from usreg.io.writing import write_volume
from usreg.registration.pair import Volume
from usreg.spatial import Affine, Chain, DisplacementField, Grid, lps_to_ras
from usreg.transformation import apply, apply_to_points

TURN = np.linalg.qr(np.array([[1.0, 0.3, -0.2], [-0.25, 1.0, 0.35], [0.2, -0.3, 1.0]]))[0]


def oblique(size: tuple[int, int, int], spacing: tuple[float, float, float], centre: float, flip: int = 1) -> Grid:
    """Turned, anisotropic, around a centre; left-handed where ``flip`` is -1."""
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag(spacing) @ np.diag([flip, 1, 1])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return Grid(size, affine)


MOVING = oblique((20, 17, 14), (0.9, 1.3, 1.8), 1.0, flip=-1)
FIXED = Grid(
    (15, 18, 16), np.array([[0, -1.2, 0, 12.0], [-1.1, 0, 0, 9.0], [0, 0, 1.4, -10.0], [0, 0, 0, 1]])
)  # axes exchanged and turned round
ANGLE = 0.12
AFFINE = Affine(
    np.array([[1.05, -ANGLE, 0.02, 0.8], [ANGLE, 0.97, 0, -0.5], [0, 0.04, 1.02, 1.1], [0, 0, 0, 1]], dtype=float)
)


def smooth_field(grid: Grid, size: float = 1.5, seed: int = 0) -> DisplacementField:
    generator = torch.Generator().manual_seed(seed)
    coarse = size * (2 * torch.rand(1, 3, 4, 4, 4, generator=generator, dtype=torch.float64) - 1)
    fine = torch.nn.functional.interpolate(coarse, size=grid.size, mode="trilinear", align_corners=True)
    return DisplacementField(grid, fine[0].float())


def noise(grid: Grid, dtype: type = np.float32, channels: int = 1) -> np.ndarray:
    values = np.random.default_rng(5).random((channels, *grid.size))
    return values.astype(dtype) if np.issubdtype(dtype, np.floating) else (5 * values).astype(dtype)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A chain of a field, on a grid of its own that covers most of the fixed image, and an affine; images; labels."""
    names = {name: tmp_path / f"{name}.nii.gz" for name in ("moving", "fixed", "label", "field")}
    write_volume(names["moving"], noise(MOVING), MOVING)
    write_volume(names["label"], noise(MOVING, np.uint16), MOVING)
    write_volume(names["fixed"], noise(FIXED), FIXED)
    write_field(names["field"], smooth_field(oblique((12, 13, 11), (1.6, 1.5, 1.9), 0.5)))
    write_affine(tmp_path / "affine.mat", AFFINE)
    return names | {"affine": tmp_path / "affine.mat"}


def itk_chain(files: dict[str, Path]) -> sitk.Transform:
    """ITK's composite: what was added last meets a point first."""
    image = sitk.ReadImage(str(files["field"]), sitk.sitkVectorFloat64)
    return sitk.CompositeTransform([sitk.ReadTransform(str(files["affine"])), sitk.DisplacementFieldTransform(image)])


@pytest.mark.parametrize(
    ("kind", "option", "name"),
    [
        (sitk.sitkLinear, [], "moving"),
        (sitk.sitkNearestNeighbor, ["--nearest"], "label"),
        (sitk.sitkLabelLinear, ["--label"], "label"),
    ],
)
def test_a_chain_of_files_gives_what_simpleitk_does(
    files: dict[str, Path], tmp_path: Path, kind: int, option: list[str], name: str
) -> None:
    """Every voxel, those at the border and outside too."""
    out = tmp_path / "out.nii.gz"
    arguments = ["--transform", str(files["field"]), str(files["affine"]), "--moving", str(files[name])]
    assert command.main([*arguments, "--fixed", str(files["fixed"]), "--out", str(out), "--outside", "7", *option]) == 0
    pixel = sitk.sitkFloat64 if name == "moving" else sitk.sitkUInt16
    theirs = sitk.Resample(
        sitk.ReadImage(str(files[name]), pixel), sitk.ReadImage(str(files["fixed"])), itk_chain(files), kind, 7.0
    )
    expected = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    ours: nib.Nifti1Image = nib.load(out)  # type: ignore[assignment]
    np.testing.assert_allclose(ours.affine, FIXED.affine, atol=1e-5)
    assert 0.1 < (expected == 7).mean() < 0.9
    found = np.asarray(ours.dataobj)
    if name == "moving":
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5)
    else:
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("chain", [["field", "affine"], ["affine"], ["affine", "affine"], ["field"]])
def test_a_field_on_the_fixed_grid_gives_what_simpleitk_does(files: dict[str, Path], chain: list[str]) -> None:
    """Such a chain goes through the kernel as it is, as every output of usreg.register does."""
    write_field(files["field"], smooth_field(FIXED))
    ours = apply([files[name] for name in chain], files["moving"], files["fixed"], outside=7)
    parts = dict(zip(("affine", "field"), (itk_chain(files).GetNthTransform(n) for n in (0, 1)), strict=True))
    theirs = sitk.Resample(
        sitk.ReadImage(str(files["moving"]), sitk.sitkFloat64),
        sitk.ReadImage(str(files["fixed"])),
        sitk.CompositeTransform([parts[name] for name in reversed(chain)]),
        sitk.sitkLinear,
        7.0,
    )
    expected = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    assert 0.05 < (expected == 7).mean() < 0.9
    np.testing.assert_allclose(ours.voxels[0].numpy(), expected, atol=2e-5)


def test_points_go_where_itk_sends_them_and_back(files: dict[str, Path]) -> None:
    points = FIXED.to_world(np.random.default_rng(1).uniform(4, 11, (25, 3)))
    transform = itk_chain(files)
    expected = lps_to_ras([transform.TransformPoint(tuple(point)) for point in lps_to_ras(points)])
    chain = [files["field"], files["affine"]]
    found = apply_to_points(chain, points)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.linalg.norm(found - points, axis=1).min() > 0.1
    np.testing.assert_allclose(apply_to_points(chain, found, inverse=True), points, atol=5e-3)
    backwards = [f"[{files['affine']},1]", f"[{files['field']},1]"]
    np.testing.assert_allclose(apply_to_points(backwards, found), points, atol=5e-3)


def test_points_go_the_opposite_way_of_an_image() -> None:
    """A bright voxel of the moving image shows in the result at the point that is mapped to it."""
    grid = Grid((9, 9, 9), np.eye(4))
    image = torch.zeros(1, 9, 9, 9)
    image[0, 6, 4, 4] = 1
    shift = np.eye(4)
    shift[0, 3] = 2.0
    warped = apply(Affine(shift), Volume(image, grid), grid)
    assert warped.voxels[0, 4, 4, 4] == 1
    assert apply_to_points(Affine(shift), [[4.0, 4, 4]]).tolist() == [[6.0, 4.0, 4.0]]


def test_the_inverse_of_a_field_undoes_it_with_one_interpolation_each() -> None:
    grid = oblique((24, 22, 20), (1.0, 1.2, 0.9), 0.0)
    ramp = grid.to_world(np.indices(grid.size).reshape(3, -1).T) @ (0.3, -0.2, 0.5)
    image = Volume(torch.from_numpy(ramp.reshape(1, *grid.size)), grid)
    field = smooth_field(grid)
    there = apply([field, AFFINE], image, grid)
    back = apply([field, AFFINE], there, grid, inverse=True)
    inside = (0, *(slice(7, -7),) * 3)
    assert (there.voxels - image.voxels)[inside].abs().max() > 0.5
    assert (back.voxels - image.voxels)[inside].abs().max() < 0.06


def test_a_steep_field_is_inverted_where_plain_iteration_would_not_converge() -> None:
    """A gradient of the displacement beyond 1 that does not fold."""
    grid = Grid((41, 5, 5), np.eye(4))
    slope = torch.arange(41, dtype=torch.float64) - 20
    displacement = torch.zeros(3, 41, 5, 5, dtype=torch.float64)
    displacement[0] = (1.8 * slope)[:, None, None]
    points = np.array([[26.5, 2, 2], [13.0, 2, 2], [20.0, 2, 2]])
    found = apply_to_points(DisplacementField(grid, displacement), points, inverse=True)
    np.testing.assert_allclose(found[:, 0], (points[:, 0] - 20) / 2.8 + 20, atol=2e-3)


def test_a_field_that_folds_everywhere_has_no_inverse() -> None:
    grid = Grid((12, 12, 12), np.eye(4))
    jumps = DisplacementField(grid, 6 * torch.rand(3, 12, 12, 12, generator=torch.Generator().manual_seed(0)) - 3)
    image = Volume(torch.rand(1, 12, 12, 12), grid)
    with pytest.raises(DataError, match=r"transform 1: .* have no inverse.*Use the inverse field"):
        apply(jumps, image, grid, inverse=True)


def test_composites_of_itk_are_read_in_its_order(files: dict[str, Path], tmp_path: Path) -> None:
    points = FIXED.to_world(np.random.default_rng(2).uniform(4, 11, (9, 3)))
    expected = apply_to_points([files["field"], files["affine"]], points)
    sitk.WriteTransform(itk_chain(files), str(tmp_path / "theirs.h5"))
    np.testing.assert_allclose(apply_to_points(tmp_path / "theirs.h5", points), expected, atol=1e-4)
    field = smooth_field(oblique((12, 13, 11), (1.6, 1.5, 1.9), 0.5))
    write_composite(tmp_path / "ours.h5", Chain([field, AFFINE]))
    np.testing.assert_allclose(apply_to_points(tmp_path / "ours.h5", points), expected, atol=1e-4)
    ours = sitk.ReadTransform(str(tmp_path / "ours.h5"))
    mapped = lps_to_ras([ours.TransformPoint(tuple(point)) for point in lps_to_ras(points)])
    np.testing.assert_allclose(mapped, expected, atol=1e-4)
    backwards = apply_to_points(f"[{tmp_path / 'theirs.h5'}, 1]", expected)
    np.testing.assert_allclose(backwards, points, atol=5e-3)


@pytest.mark.parametrize("suffix", [".tfm", ".mat"])
def test_every_linear_transform_of_itk_is_read(tmp_path: Path, suffix: str) -> None:
    turn = sitk.VersorRigid3DTransform((0.1, 0.2, 0.05, 0.97), (1.0, 2.0, 3.0), (4.0, -5.0, 6.0))
    several = sitk.CompositeTransform([sitk.TranslationTransform(3, (1.0, 0.0, 2.0)), turn])
    points = np.array([[3.0, -4.0, 5.0], [10.5, 2.25, -7.0]])
    for name, transform in (("versor", turn), ("several", several)):
        if name == "several" and suffix == ".mat":
            continue  # ITK's binary format holds one transform
        path = tmp_path / f"{name}{suffix}"
        sitk.WriteTransform(transform, str(path))
        expected = lps_to_ras([transform.TransformPoint(tuple(point)) for point in lps_to_ras(points)])
        np.testing.assert_allclose(apply_to_points(path, points), expected, atol=1e-6)


def test_labels_keep_their_type_and_every_digit(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 614_454_277, 614_454_278], np.uint32), (1, 8, 9, 10))
    grid = Grid((8, 9, 10), np.diag([1.0, 1, 1, 1]))
    path = tmp_path / "labels.nii.gz"
    write_volume(path, labels, grid)
    for kind in ("nearest", "label"):
        same = apply(Affine(np.eye(4)), path, path, interpolation=kind, out=tmp_path / "out.nii.gz")  # type: ignore[arg-type]
        assert same.voxels.dtype == torch.uint32
        np.testing.assert_array_equal(same.voxels.numpy(), labels)
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), labels[0])  # type: ignore


def test_series_and_vectors_keep_their_axes(tmp_path: Path) -> None:
    grid = Grid((6, 7, 8), np.diag([2.0, 2, 2, 1]))
    series = nib.Nifti1Image(np.moveaxis(noise(grid, channels=4), 0, -1), grid.affine)
    series.header.set_zooms((2, 2, 2, 0.72))
    series.header.set_xyzt_units("mm", "sec")
    nib.save(series, tmp_path / "series.nii.gz")
    vectors = nib.Nifti1Image(np.moveaxis(noise(grid, channels=3), 0, -1)[:, :, :, None], grid.affine)
    vectors.header.set_intent(1007)
    vectors.header.set_xyzt_units("mm")
    nib.save(vectors, tmp_path / "vectors.nii.gz")
    for name, given in (("series", series), ("vectors", vectors)):
        path, out = tmp_path / f"{name}.nii.gz", tmp_path / "out.nii.gz"
        apply(Affine(np.eye(4)), path, path, out=out)
        found: nib.Nifti1Image = nib.load(out)  # type: ignore[assignment]
        np.testing.assert_allclose(np.asarray(found.dataobj), np.asarray(given.dataobj), atol=1e-6)
        assert found.header["intent_code"] == given.header["intent_code"]
        assert found.header["xyzt_units"] == given.header["xyzt_units"]
        np.testing.assert_array_equal(found.header["pixdim"][1:5], given.header["pixdim"][1:5])


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii"])
def test_other_formats(files: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    chain = [files["field"], files["affine"]]
    out = tmp_path / f"out{suffix}"
    expected = apply(chain, files["moving"], files["fixed"], out=out)
    again = apply(Affine(np.eye(4)), out, files["fixed"])
    np.testing.assert_allclose(again.voxels.numpy(), expected.voxels.numpy(), atol=1e-5)


POINTS = np.array([[3.0, -4.0, 5.0], [1.5, 2.25, -3.0]])


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".pts", ".fcsv", ".mrk.json", ".tag", ".npy", ".npz"])
@pytest.mark.parametrize("space", ["lps", "ras", "voxel"])
def test_landmark_files_are_written_as_they_are_read(
    files: dict[str, Path], tmp_path: Path, suffix: str, space: str
) -> None:
    given = tmp_path / "given.npy"
    world = POINTS if space == "ras" else lps_to_ras(POINTS)
    np.save(given, FIXED.to_voxels(POINTS) if space == "voxel" else world)
    out = tmp_path / f"out{suffix}"
    arguments = ["--transform", str(files["affine"]), "--points", str(given), "--out", str(out)]
    images = ["--fixed", str(files["fixed"]), "--moving", str(files["moving"])]
    assert command.main([*arguments, "--landmarks-space", space, *images]) == 0
    landmarks = read_landmarks(out)
    states = suffix not in (".npy", ".npz")
    assert (landmarks.space is not None) == states
    found = landmarks.to_world(MOVING, None if states else space)
    np.testing.assert_allclose(found, AFFINE(POINTS), atol=1e-5)


def test_names_of_landmarks_go_through_a_transform(files: dict[str, Path], tmp_path: Path) -> None:
    given, out = tmp_path / "given.csv", tmp_path / "out.fcsv"
    given.write_text("R,A,S,name,size\n3,-4,5,apex,7\n1.5,2.25,-3,base,8\n")
    assert command.main(["--transform", str(files["affine"]), "--points", str(given), "--out", str(out)]) == 0
    assert read_details(out)["label"] == ["apex", "base"]
    np.testing.assert_allclose(read_landmarks(out).to_world(MOVING), AFFINE(POINTS), atol=1e-5)


def test_points_outside_a_field_stay_and_a_warning_says_so(
    files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    far = np.array([[500.0, 0, 0], [0.0, 0, 0]])
    with caplog.at_level(logging.WARNING):
        found = apply_to_points(files["field"], far)
    np.testing.assert_array_equal(found[0], far[0])
    assert "1 of 2 points (50 %) lie outside the field's grid" in caplog.text


def arguments_of(files: dict[str, Path], **changed: object) -> list[str]:
    """A command that works, but for what is changed; None leaves an option out."""
    values = {"transform": files["affine"], "moving": files["moving"], "fixed": files["fixed"], "out": "out.nii.gz"}
    return [f"--{name}={value}" for name, value in {**values, **changed}.items() if value is not None]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"transform": "missing.mat"}, "there is no transform file missing.mat"),
        ({"transform": "moving"}, "a displacement field has (X, Y, Z, 1, 3)"),
        ({"transform": "fsl.mat"}, "a matrix of plain numbers, as FSL writes it"),
        ({"transform": "far"}, "covers no point of the fixed image"),
        ({"transform": "away.tfm"}, "the result would be empty"),
        ({"transform": "nan"}, "numbers of the field are NaN or infinite"),
        ({"moving": "missing.nii.gz"}, "no such file"),
        ({"moving": None}, "--moving is missing"),
        ({"out": "out.png"}, "its name must end in one of .nii, .nii.gz"),
        ({"out": "file/out.nii.gz"}, "cannot write file/out.nii.gz"),
        ({"out": "moving"}, "it is one of the files to read"),
        ({"points": "missing.csv", "out": "p.csv"}, "no such file"),
        ({"points": "voxels.csv", "out": "p.csv", "fixed": None}, "--fixed FILE says of which image"),
        ({"points": "voxels.csv"}, "its name must end in one of .csv, .txt"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fsl.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    Path("voxels.csv").write_text("i,j,k\n1,2,3\n")
    Path("file").touch()
    away = np.eye(4)
    away[0, 3] = 900.0
    write_affine(Path("away.tfm"), Affine(away))
    write_field(Path("far.nii.gz"), smooth_field(Grid((5, 5, 5), away)))
    bad = smooth_field(FIXED)
    bad.displacement[0, 0, 0, 0] = torch.nan
    write_field(Path("nan.nii.gz"), bad)
    before = sorted(path.name for path in tmp_path.iterdir())
    named = {key: f"{value}.nii.gz" if value in ("moving", "far", "nan") else value for key, value in changed.items()}
    assert command.main(arguments_of(files, **named)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_values_that_an_image_cannot_hold(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"outside is -1; voxels of type uint16 cannot hold it"):
        apply(files["affine"], files["label"], files["fixed"], interpolation="nearest", outside=-1)
    with pytest.raises(DataError, match="it is no map of labels"):
        apply(files["affine"], files["moving"], files["fixed"], interpolation="label")
    with pytest.raises(UsageError, match="must be one of linear, nearest, label"):
        apply(files["affine"], files["moving"], files["fixed"], interpolation="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points must be \(N, 3\)"):
        apply_to_points(files["affine"], [1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="there is no transform"):
        apply([], files["moving"], files["fixed"])

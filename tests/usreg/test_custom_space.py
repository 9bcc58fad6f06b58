"""Where the samples of ``custom_dataset`` are in the world: one shared grid, or a grid for each image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from usreg.datasets import build_dataset, collate, grid_of
from usreg.datasets.sample_grids import inside
from usreg.errors import ConfigError, DataError
from usreg.metrics import evaluate_metrics, identity_inputs
from usreg.spatial import Grid

SIZE = (16, 20, 24)
CENTRE = np.array([30.0, 40.0, 20.0])
WORLD = np.array([[30.0, 40, 20], [35, 42, 22], [25, 38, 18], [30, 45, 25]])
"""Landmarks in mm, RAS."""
OBLIQUE = np.array([[0.96, -0.28, 0, -6], [0.28, 0.96, 0, -8], [0, 0, 1.1, -4], [0, 0, 0, 1.0]])
SHEARED = OBLIQUE @ np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0.1, 1, 0], [0, 0, 0, 1]])

Build = Callable[..., dict]


def blob(grid: Grid) -> np.ndarray:
    """A smooth function of the world, seen on a grid."""
    world = grid.to_world(np.indices(grid.size).reshape(3, -1).T)
    values = 100 * np.exp(-((world - CENTRE) ** 2).sum(-1) / 625) + 10 * np.sin(world[:, 0] / 7)
    return values.reshape(grid.size).astype(np.float32)


def ball(grid: Grid, radius: float = 9.0) -> np.ndarray:
    world = grid.to_world(np.indices(grid.size).reshape(3, -1).T)
    return (np.linalg.norm(world - CENTRE, axis=1) < radius).reshape(grid.size).astype(np.uint8)


def at(origin: tuple[float, float, float], size: tuple[int, int, int]) -> Grid:
    affine = np.eye(4)
    affine[:3, 3] = origin
    return Grid(size, affine)


FIXED = at((0, 0, 0), (60, 80, 40))
WIDER = at((-30, -20, -10), (120, 110, 70))
TURNED = Grid((80, 90, 50), OBLIQUE)
SKEWED = Grid((80, 90, 50), SHEARED)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Writes a case of two grids that see one world, and returns its sample."""

    def save(name: str, grid: Grid, voxels: np.ndarray) -> str:
        image = nib.Nifti1Image(voxels, grid.affine)
        nib.save(image, tmp_path / name)
        return name

    def sample(fixed: Grid = FIXED, moving: Grid = WIDER, without: tuple[str, ...] = (), **keys: object) -> dict:
        case: dict = {}
        for side, grid in (("moving", moving), ("fixed", fixed)):
            case[side] = save(f"{side}.nii.gz", grid, blob(grid))
            case[f"{side}_label"] = save(f"{side}_label.nii.gz", grid, ball(grid))
            case[f"{side}_mask"] = save(f"{side}_mask.nii.gz", grid, ball(grid, 14))
            case[f"{side}_landmarks"] = WORLD.tolist()
        case = {key: value for key, value in case.items() if key not in without}
        (tmp_path / "m.json").write_text(json.dumps({"train": [case]}))
        section = {"name": "custom_dataset", "json_file": str(tmp_path / "m.json"), "landmarks_space": "ras", **keys}
        return build_dataset(section, split="train", image_size=SIZE)[0]  # type: ignore[no-any-return]

    return sample


@pytest.mark.parametrize(
    ("fixed", "moving", "reference"),
    [
        (FIXED, WIDER, "fixed_label"),
        (FIXED, TURNED, "fixed_label"),
        (FIXED, WIDER.reoriented("LIP"), "moving_mask"),
        (SKEWED, FIXED, "moving_label"),
        (TURNED, SKEWED, "fixed_label"),
    ],
)
def test_what_agrees_in_the_world_agrees_on_the_shared_grid(build, fixed, moving, reference):
    sample = build(fixed, moving, align_shared_grid=True, align_reference=reference)
    values = evaluate_metrics(identity_inputs(collate([sample])))
    assert float(values["tre"]) < 1e-4
    assert float(values["dice"]) > 0.9  # balls of 9 voxels' radius, rasterised twice
    assert float(values["ncc"]) > 0.995
    assert torch.equal(sample["affine"], sample["moving_affine"])


def test_points_keep_their_place_in_the_world(build):
    for keys in ({}, {"align_shared_grid": True}, {"spacing": [2, 2, 2]}):
        batch = collate([build(FIXED, SKEWED, **keys)])
        for side in ("fixed", "moving"):
            grid = grid_of(batch, 0, side)
            assert grid is not None
            assert grid.size == SIZE
            np.testing.assert_allclose(grid.to_world(batch[f"{side}_points"][0]), WORLD, atol=1e-4)


def test_shared_grid_is_the_foreground_and_its_margin(build):
    """The ball spans 51 to 69 mm around its centre, and the file has voxels of 1 mm."""
    sample = build(align_shared_grid=True, align_margin_mm=6.0)
    grid = Grid(SIZE, sample["affine"].numpy())
    half = 9 + 6 - 0.5  # the outermost voxels of the ball are those nearer than 9 mm
    np.testing.assert_allclose(grid.corners.min(axis=0), CENTRE - half, atol=1e-4)
    np.testing.assert_allclose(grid.corners.max(axis=0), CENTRE + half, atol=1e-4)
    assert sample["spacing"].tolist() == pytest.approx([2 * half / length for length in SIZE])


def test_margin_ends_with_the_image(build):
    sample = build(align_shared_grid=True, align_margin_mm=1000.0)
    grid = Grid(SIZE, sample["affine"].numpy())
    np.testing.assert_allclose(grid.corners.min(axis=0), FIXED.corners.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(grid.corners.max(axis=0), FIXED.corners.max(axis=0), atol=1e-4)


def test_an_image_as_reference_has_its_foreground_above_the_minimum(build):
    sample = build(without=("moving_label", "fixed_label"), align_shared_grid=True, align_reference="fixed")
    grid = Grid(SIZE, sample["affine"].numpy())
    np.testing.assert_allclose(grid.centre, FIXED.centre, atol=1)


def test_shared_grid_holds_nearest_labels_zero_outside_and_images_with_their_edge(build):
    """The moving file ends inside the box of the fixed ball."""
    half = at((30, 0, 0), (60, 80, 40))
    sample = build(FIXED, half, align_shared_grid=True, normalize_intensity=False)
    assert set(sample["moving_label"].unique().tolist()) == {0.0, 1.0}
    outside = sample["moving"][..., :8]
    assert not sample["moving_label"][..., :11].any()
    assert not sample["moving_mask"][..., :11].any()
    torch.testing.assert_close(outside, outside[..., :1].expand_as(outside))
    assert outside.min() > 40  # the edge, not 0


def test_shared_grid_of_a_spacing(build):
    sample = build(align_shared_grid=True, spacing=[1.0, 1.0, 1.0])
    grid = Grid(SIZE, sample["affine"].numpy())
    np.testing.assert_allclose(grid.spacing, 1, atol=1e-5)
    np.testing.assert_allclose(grid.centre, CENTRE, atol=0.01)


def test_shared_grid_in_another_orientation(build):
    straight, turned = (build(align_shared_grid=True, orientation=code) for code in ("RAS", "LPS"))
    torch.testing.assert_close(turned["fixed"].flip(2, 3), straight["fixed"])


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"without": ("moving_label", "fixed_label")},
            r"train\[0\]: has no 'fixed_label', which align_reference names",
        ),
        ({"moving": at((500, 0, 0), (60, 80, 40))}, r"do not overlap, centres 500.0 mm apart, 0 %"),
        ({"fixed": at((500, 0, 0), (60, 80, 40)), "moving": at((500, 0, 0), (60, 80, 40))}, "fixed_label.*is empty"),
    ],
)
def test_what_cannot_be_aligned_is_said(build, keys, text):
    with pytest.raises(DataError, match=text):
        build(align_shared_grid=True, **keys)


def test_values_of_the_keys_are_checked(build):
    with pytest.raises(ConfigError, match="align_reference must be one of moving, moving_label"):
        build(align_reference="label")
    with pytest.raises(ConfigError, match="align_margin_mm must be 0 mm or more"):
        build(align_margin_mm=-1)


def test_different_boxes_are_said_once_for_all_cases(build, caplog):
    build(FIXED, WIDER)
    (warning,) = caplog.messages
    assert "cover different boxes in 1 of 1 cases" in warning
    assert "set align_shared_grid: true" in warning
    assert "train[0]: centres 7.1 mm apart, 100 % of the fixed image is in the moving one" in warning


@pytest.mark.parametrize(
    ("moving", "keys"), [(WIDER, {"align_shared_grid": True}), (at((1, 0, 1), (60, 80, 40)), {}), (FIXED, {})]
)
def test_one_box_is_not_worth_a_warning(build, caplog, moving, keys):
    build(FIXED, moving, **keys)
    assert not caplog.messages


def test_spacing_crops_and_pads_around_the_centre(build):
    """Of 40 x 80 x 60 mm, 16 x 20 x 24 voxels of 3 mm: z is padded, y and x are cropped."""
    sample = build(FIXED, FIXED, spacing=[3.0, 3.0, 3.0], normalize_intensity=False)
    assert sample["spacing"].tolist() == pytest.approx([3, 3, 3])
    grid = Grid(SIZE, sample["affine"].numpy())
    np.testing.assert_allclose(grid.centre, FIXED.centre, atol=1e-4)
    assert (sample["fixed"][0, 0] == blob(FIXED).min()).all()
    assert not sample["fixed_label"][0, 0].any()
    assert (sample["fixed"][0, 2] > blob(FIXED).min()).any()


def test_padding_is_no_part_of_the_intensities_or_of_the_mask(build):
    """Half of the sample is padding: without care, the lower quantile would be its value."""
    sample = build(FIXED, FIXED, spacing=[6.0, 6.0, 6.0], quantile_range=[0.2, 0.99], without=("moving_mask",))
    there = inside(FIXED, Grid(SIZE, sample["affine"].numpy()))
    assert 0 < there.float().mean() < 0.5
    assert (sample["moving"][0][there] == 0).float().mean() == pytest.approx(0.2, abs=0.05)
    assert (sample["moving"][0][~there] == 0).all()
    assert not sample["fixed_mask"][0][~there].any()

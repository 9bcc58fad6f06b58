from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from usreg.datasets.deepreg_synthetic import DeepRegSynthetic
from usreg.errors import DataError
from usreg.spatial import Grid
from usreg.viz import pictures, save_curves, save_registration_figure


def assert_is_picture(path: Path) -> None:
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 200
    assert np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0).shape[0] > 20


@pytest.fixture
def sample() -> dict:
    return DeepRegSynthetic(1, (10, 14, 12))[0]


def test_registration_figure(tmp_path, sample):
    path = tmp_path / "case.png"
    save_registration_figure(path, sample["moving"], sample["fixed"], sample["fixed"], sample["dvf"], "case 1")
    assert_is_picture(path)


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_is_one_row(tmp_path, sample, axis):
    path = tmp_path / "slice.png"
    images = [sample[key].narrow(axis - 3, 4, 1) for key in ("moving", "fixed", "fixed")]
    save_registration_figure(path, *images, sample["dvf"].narrow(axis - 3, 4, 1), "slice")
    save_registration_figure(tmp_path / "volume.png", *[sample["fixed"]] * 3, sample["dvf"], "volume")
    assert_is_picture(path)
    slices, volume = matplotlib.image.imread(path), matplotlib.image.imread(tmp_path / "volume.png")
    assert slices.shape[1] == volume.shape[1]
    assert slices.shape[0] < 0.7 * volume.shape[0]


def test_registration_figure_with_outlines_folding_and_spacing(tmp_path, sample):
    path = tmp_path / "case.png"
    labels = {key: sample["fixed_mask"].repeat(2, 1, 1, 1) for key in ("moving_label", "fixed_label", "warped_label")}
    folded = 6 * sample["dvf"][None].half().requires_grad_()
    images = [sample[key][None] for key in ("moving", "fixed", "moving")]
    save_registration_figure(path, *images, folded, "folded", **labels, spacing=torch.tensor([2.0, 1.0, 1.0]))
    assert_is_picture(path)


def test_planes_are_named_by_the_world(tmp_path, sample):
    """Axes that run to the left, to superior and to posterior are named so, wherever they are in the array."""
    affine = torch.tensor([[-2.0, 0, 0, 20], [0, 0, -1, 5], [0, 3, 0, 0], [0, 0, 0, 1]])
    assert pictures._row_names((10, 14, 12), Grid((10, 14, 12), affine.numpy())) == [
        "sagittal\nx = 10 mm",
        "axial\nz = 21 mm",
        "coronal\ny = -1 mm",
    ]
    images = [sample[key] for key in ("moving", "fixed", "fixed")]
    save_registration_figure(tmp_path / "a.png", *images, sample["dvf"], "case", affine=affine)
    assert_is_picture(tmp_path / "a.png")


def test_registration_figure_of_the_identity(tmp_path, sample):
    images = [sample["fixed"]] * 3
    save_registration_figure(tmp_path / "a.png", *images, torch.zeros_like(sample["dvf"]), "identity")
    assert_is_picture(tmp_path / "a.png")


def write_csv(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_curves(tmp_path):
    header = ["epoch", "train_loss", "val_loss", "epe", "identity_epe", "dice"]
    rows = [[1, -0.1, "", "", "", ""], [2, -0.2, -0.1, 1.5, 2.0, ""], [3, -0.3, -0.2, "nan", 2.0, ""]]
    table = write_csv(tmp_path / "metrics.csv", [header, *rows])
    save_curves(tmp_path / "curves.png", table)
    assert_is_picture(tmp_path / "curves.png")


@pytest.mark.parametrize("rows", [[["epoch", "loss"]], [["loss"], [1]]])
def test_curves_need_epochs(tmp_path, rows):
    with pytest.raises(DataError, match="'epoch' and at least one row"):
        save_curves(tmp_path / "curves.png", write_csv(tmp_path / "metrics.csv", rows))

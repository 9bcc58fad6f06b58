from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from usreg.datasets import build_dataset, collate, deepreg_synthetic, phantoms
from usreg.datasets.deepreg_synthetic import DeepRegSynthetic
from usreg.datasets.synthetic import SyntheticEllipsoids
from usreg.errors import ConfigError, DataError
from usreg.metrics.landmarks import sample_at_points
from usreg.models.warp import warp

SIZE = (16, 20, 24)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # machines with one core
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # Python 3.12 and above
]


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        assert same, key


class Highest(np.random.Generator):
    """Draws the upper end of every uniform range."""

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(size, high)


def test_deepreg_sample_has_the_documented_contents():
    sample = DeepRegSynthetic(2, SIZE)[1]
    shapes = {key: tuple(value.shape) for key, value in sample.items() if key != "case"}
    assert shapes == {
        "moving": (1, *SIZE),
        "fixed": (1, *SIZE),
        "dvf": (3, *SIZE),
        "moving_mask": (1, *SIZE),
        "fixed_mask": (1, *SIZE),
        "fixed_points": (32, 3),
        "moving_points": (32, 3),
    }
    assert all(value.dtype == torch.float32 for key, value in sample.items() if key != "case")
    assert sample["case"] == "train[1]"
    for key in ("moving", "fixed"):
        assert sample[key].min() >= 0
        assert sample[key].max() <= 1
        assert sample[key].std() > 0.05
    for key in ("moving_mask", "fixed_mask"):
        assert set(sample[key].unique().tolist()) == {0.0, 1.0}


def test_dvf_warps_moving_onto_fixed():
    sample = DeepRegSynthetic(1, SIZE, noise_std=0.1)[0]
    torch.testing.assert_close(warp(sample["moving"][None], sample["dvf"][None])[0], sample["fixed"], atol=0, rtol=0)
    assert (sample["moving"] - sample["fixed"]).abs().mean() > 0.01


def test_dvf_is_a_pull_back_in_voxels(monkeypatch):
    """A displacement of +2 along z shows at z what the moving image has at z + 2; the points follow it."""
    field = np.zeros((3, *SIZE), np.float32)
    field[0] = 2
    monkeypatch.setattr(deepreg_synthetic, "spline_field", lambda *_: field)
    sample = DeepRegSynthetic(1, SIZE)[0]
    torch.testing.assert_close(sample["fixed"][:, :-2], sample["moving"][:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(sample["moving_points"], sample["fixed_points"] + torch.tensor([2.0, 0.0, 0.0]))


def test_points_correspond_and_lie_on_the_anatomy():
    sample = DeepRegSynthetic(1, SIZE)[0]
    fixed, moving = sample["fixed_points"], sample["moving_points"]
    torch.testing.assert_close(fixed + sample_at_points(sample["dvf"], fixed), moving, atol=1e-4, rtol=0)
    assert (sample_at_points(sample["fixed_mask"], fixed) > 0.999).all()
    # The same tissue is at both places, up to what the warp's interpolation blurs.
    tissue = sample_at_points(sample["fixed"], fixed) - sample_at_points(sample["moving"], moving)
    assert tissue.abs().max() < 1e-4


def test_max_disp_is_a_part_of_half_the_extent():
    highest = Highest(np.random.PCG64(0))
    field = phantoms.spline_field(highest, SIZE, max_disp=0.2, cp_spacing=8)
    for component, size in enumerate(SIZE):
        np.testing.assert_allclose(field[component], 0.2 * (size - 1) / 2, rtol=1e-6)


def test_field_stays_in_range_and_uses_it():
    dvf = torch.stack([DeepRegSynthetic(20, SIZE, max_disp=0.3, cp_spacing=6)[i]["dvf"] for i in range(20)])
    largest = torch.tensor([0.3 * (size - 1) / 2 for size in SIZE])
    reached = dvf.abs().amax(dim=(0, 2, 3, 4))
    assert (reached <= largest).all()
    assert (reached > 0.5 * largest).all()


def test_spline_upsampling_is_a_cubic_b_spline():
    """Control points on a line give the line, and a single one gives the basis function's 2/3 in its middle."""
    size, spacing = (9, 9, 9), 4.0
    places = spacing * (np.arange(5) - 1.0)
    control = np.zeros((3, 5, 5, 5))
    control[1] = places[None, :, None]
    field = phantoms.spline_upsample(control, size, spacing)
    np.testing.assert_allclose(field[1], np.broadcast_to(np.arange(9.0)[None, :, None], size), atol=1e-12)
    control[:] = 0
    control[2, 2, 2, 2] = 1
    field = phantoms.spline_upsample(control, size, spacing)
    assert field[2, 4, 4, 4] == pytest.approx((2 / 3) ** 3)
    assert field[2, 0, 4, 4] == pytest.approx((2 / 3) ** 2 / 6)


def test_ellipsoids_hide_their_deformation():
    sample = SyntheticEllipsoids(2, SIZE)[0]
    assert sorted(sample) == ["case", "fixed", "moving"]
    for key in ("moving", "fixed"):
        assert sample[key].shape == (1, *SIZE)
        assert sample[key].dtype == torch.float32
        assert sample[key].min() >= 0
        assert sample[key].max() <= 1
    clean = SyntheticEllipsoids(2, SIZE, noise_std=0.0)[0]
    difference = (clean["moving"] - clean["fixed"]).abs().mean()
    assert 0.001 < difference < 0.1


def test_smooth_softens_the_edges():
    soft, sharp = (SyntheticEllipsoids(1, SIZE, noise_std=0.0, smooth=smooth)[0]["fixed"] for smooth in (True, False))
    steps = [image.diff(dim=3).abs().amax() for image in (soft, sharp)]
    assert steps[0] < steps[1]
    assert len(sharp.unique()) < 60 < len(soft.unique())


@pytest.mark.parametrize("dataset", [DeepRegSynthetic, SyntheticEllipsoids])
def test_samples_depend_on_seed_split_and_index_alone(dataset):
    data = dataset(4, SIZE)
    backwards = [data[i] for i in (3, 2, 1, 0)][::-1]
    for i, sample in enumerate(backwards):
        assert_same(sample, dataset(4, SIZE)[i])
    others = [dataset(4, SIZE, seed=124)[0], dataset(4, SIZE, split="val")[0], data[1]]
    assert not any(torch.equal(data[0]["moving"], other["moving"]) for other in others)
    assert torch.equal(data[-1]["moving"], data[3]["moving"])
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)])
def test_samples_are_the_same_in_workers(context, workers):
    """Workers have one thread each, this process has two."""
    data = DeepRegSynthetic(3, SIZE)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = [data[i] for i in range(3)]
    finally:
        torch.set_num_threads(before)
    loader = DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=context)
    for sample, expected in zip(loader, here, strict=True):
        assert_same(sample, expected)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"num_samples": 0}, "num_samples must be 1 or more"),
        ({"num_samples": 1, "noise_std": -1.0}, "noise_std"),
        ({"num_samples": 1, "seed": -3}, "seed"),
        ({"num_samples": 1, "image_size": [1, 1, 8]}, "image_size must be three whole numbers"),
        ({"num_samples": 1, "max_disp": 2.0}, "max_disp"),
        ({"num_samples": 1, "cp_spacing": 0}, "cp_spacing"),
    ],
)
def test_impossible_values_are_refused(keys, text):
    with pytest.raises(ConfigError, match=text):
        build_dataset({"name": "deepreg_synthetic", **keys}, split="train", image_size=SIZE)
    with pytest.raises(ValueError, match="split must be one of"):
        DeepRegSynthetic(1, SIZE, split="training")


def test_the_runs_image_size_is_the_default():
    section = {"name": "synthetic_ellipsoids", "num_samples": 1}
    assert build_dataset(section, split="val", image_size=SIZE)[0]["fixed"].shape == (1, *SIZE)
    own = build_dataset({**section, "image_size": [8, 9, 10]}, split="val", image_size=SIZE)
    assert own[0]["fixed"].shape == (1, 8, 9, 10)


def test_collate_stacks_tensors_and_lists_the_rest():
    batch = collate([DeepRegSynthetic(2, SIZE)[i] for i in range(2)])
    assert batch["moving"].shape == (2, 1, *SIZE)
    assert batch["dvf"].shape == (2, 3, *SIZE)
    assert [points.shape for points in batch["fixed_points"]] == [(32, 3), (32, 3)]
    assert batch["case"] == ["train[0]", "train[1]"]


def test_collate_pads_labels_with_empty_channels():
    def sample(channels: int) -> dict:
        label = torch.ones(channels, 2, 2, 2)
        image = torch.zeros(1, 2, 2, 2)
        return {"moving": image, "fixed": image, "moving_label": label, "fixed_label": label, "case": str(channels)}

    batch = collate([sample(1), sample(3)])
    for key in ("moving_label", "fixed_label"):
        assert batch[key].shape == (2, 3, 2, 2, 2)
        assert batch[key].flatten(2).amax(2).tolist() == [[1, 0, 0], [1, 1, 1]]


def test_collate_names_the_cases_that_do_not_fit():
    image = torch.zeros(1, 2, 2, 2)
    a = {"moving": image, "fixed": image, "case": "A"}
    with pytest.raises(DataError, match=r"dvf is in only one of case 'A' and case 'B'"):
        collate([a, {**a, "dvf": image, "case": "B"}])
    with pytest.raises(DataError, match=r"'fixed' must have one shape.*'B': \(1, 3, 2, 2\)"):
        collate([a, {**a, "fixed": torch.zeros(1, 3, 2, 2), "case": "B"}])

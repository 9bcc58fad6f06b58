"""Augmentation: what belongs together in a sample stays together, in every process and after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from usreg.config import AugmentationConfig, load_config
from usreg.datasets import build_dataset, collate
from usreg.datasets.augmentation import Augmented
from usreg.errors import ConfigError
from usreg.metrics.landmarks import sample_at_points
from usreg.models import warp
from usreg.training import load_checkpoint

SIZE = (24, 28, 32)
STRONG = AugmentationConfig(
    flip=[0, 1, 2], rotation=15, scaling=0.1, translation=2, deformation=2, deformation_spacing=8, separate=True
)
SHARED = AugmentationConfig(flip=[0, 2], rotation=15, scaling=0.1, translation=2, deformation=2, deformation_spacing=8)


class Blobs(Dataset[dict[str, Any]]):
    """One sample: soft blobs on landmarks, a label channel for each, masks, sizes in mm."""

    fixed = torch.tensor([[8.0, 9.0, 10.0], [14.0, 18.0, 20.0]])
    moving = torch.tensor([[9.0, 8.0, 12.0], [13.0, 17.0, 21.0]])

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"case": str(index), "spacing": torch.tensor([2.0, 1.0, 0.5])}
        for side, points in (("moving", self.moving), ("fixed", self.fixed)):
            channels = torch.stack([_blob(point) for point in points])
            sample |= {side: channels.sum(0, keepdim=True), f"{side}_points": points.clone()}
            sample |= {f"{side}_label": (channels > 0.5).float(), f"{side}_mask": torch.ones(1, *SIZE)}
        return sample | {"affine": torch.eye(4), "moving_affine": torch.eye(4)}


def _blob(centre: torch.Tensor) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")
    return torch.exp(-sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) / (2 * 2.0**2))


def _middle(weights: torch.Tensor) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")
    return torch.stack([(axis * weights).sum() for axis in axes]) / weights.sum()


@pytest.mark.parametrize("options", [STRONG, SHARED], ids=["separate", "shared"])
def test_landmarks_and_labels_stay_on_their_structures(options: AugmentationConfig) -> None:
    dataset = Augmented(Blobs(), options, seed=0)
    for number in range(6):
        sample = dataset[number]
        for side in ("moving", "fixed"):
            for label, point in zip(sample[f"{side}_label"], sample[f"{side}_points"], strict=True):
                assert (_middle(label) - point).abs().max() < 0.6
                near = sample[side][0] * _near(point)
                assert (_middle(near**2) - point).abs().max() < 0.6
            assert set(sample[f"{side}_label"].unique().tolist()) == {0.0, 1.0}
            assert set(sample[f"{side}_mask"].unique().tolist()) <= {0.0, 1.0}
        assert not torch.equal(sample["fixed_points"], Blobs.fixed)


def _near(point: torch.Tensor) -> torch.Tensor:
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")
    return (sum((axis - c) ** 2 for axis, c in zip(axes, point, strict=True)) < 5**2).float()


@pytest.mark.parametrize("options", [STRONG, SHARED], ids=["separate", "shared"])
def test_the_known_field_still_warps_moving_onto_fixed(options: AugmentationConfig) -> None:
    section = {"name": "deepreg_synthetic", "num_samples": 3, "noise_std": 0.0, "max_disp": 0.1}
    plain = build_dataset(section, split="train", image_size=SIZE)
    dataset = Augmented(plain, options, seed=0)
    for number in range(6):
        sample = dataset[number]
        error = (warp(sample["moving"][None], sample["dvf"][None])[0] - sample["fixed"])[0, 4:-4, 4:-4, 4:-4].abs()
        before = (sample["moving"] - sample["fixed"])[0, 4:-4, 4:-4, 4:-4].abs()
        assert error.mean() < 0.03
        assert error.mean() < 0.4 * before.mean()
        fixed, moving = sample["fixed_points"], sample["moving_points"]
        inside = ((fixed > 3) & (fixed < torch.tensor(SIZE) - 4)).all(1)
        found = fixed + sample_at_points(sample["dvf"], fixed)
        assert inside.any()
        assert (found - moving)[inside].abs().max() < 0.3


def test_a_flip_mirrors_everything() -> None:
    plain = Blobs()[0]
    flips = set()
    for number in range(9):
        sample = Augmented(Blobs(), AugmentationConfig(flip=[1]), seed=0)[number]
        flipped = not torch.allclose(sample["fixed"], plain["fixed"], atol=1e-6)
        flips.add(flipped)
        for key in ("moving", "fixed", "moving_label", "fixed_label"):
            torch.testing.assert_close(sample[key], plain[key].flip(2) if flipped else plain[key], rtol=0, atol=1e-6)
        y = SIZE[1] - 1 - Blobs.fixed[:, 1] if flipped else Blobs.fixed[:, 1]
        torch.testing.assert_close(sample["fixed_points"][:, 1], y)
    assert flips == {False, True}


def test_a_rotation_keeps_distances_in_mm() -> None:
    """Voxels are 2 x 1 x 0.5 mm: turning them as if they were cubes would shear the anatomy."""
    mm = torch.tensor([2.0, 1.0, 0.5])
    expected = ((Blobs.fixed[0] - Blobs.fixed[1]) * mm).norm()
    for number in range(3):
        points = Augmented(Blobs(), AugmentationConfig(rotation=40), seed=0)[number]["fixed_points"]
        torch.testing.assert_close(((points[0] - points[1]) * mm).norm(), expected, rtol=1e-4, atol=0)
        assert (points - Blobs.fixed).abs().max() > 1


def test_what_has_no_place_in_the_world_says_nothing_of_it() -> None:
    for probability in (0.0, 1.0):
        sample = Augmented(Blobs(), AugmentationConfig(probability=probability, rotation=5), seed=0)[0]
        assert not {"affine", "moving_affine"} & sample.keys()
        assert torch.equal(sample["fixed"], Blobs()[0]["fixed"]) == (probability == 0)


def test_intensities_change_for_each_image_by_itself() -> None:
    sample = Augmented(Blobs(), AugmentationConfig(gamma=0.5), seed=0)[0]
    plain = Blobs()[0]
    powers = []
    for side in ("moving", "fixed"):
        scaled = [image / image.max() for image in (sample[side], plain[side])]
        between = (scaled[1] > 0.1) & (scaled[1] < 0.9)
        power = (scaled[0].log() / scaled[1].log())[between]
        assert power.std() < 1e-3
        powers.append(power.mean())
    assert abs(powers[0] - powers[1]) > 0.01
    for side in ("moving", "fixed"):
        assert torch.equal(sample[f"{side}_label"], plain[f"{side}_label"])
    noisy = Augmented(Blobs(), AugmentationConfig(noise_std=0.1), seed=0)[0]
    assert (noisy["fixed"] - plain["fixed"]).std().item() == pytest.approx(0.1, rel=0.05)


def test_a_sample_depends_on_seed_epoch_and_place_only() -> None:
    dataset = Augmented(Blobs(), STRONG, seed=0)
    numbers = [4, 0, 5, 1]
    with_workers = DataLoader(dataset, sampler=numbers, num_workers=2, collate_fn=collate)
    for number, batch in zip(numbers, with_workers, strict=True):
        assert torch.equal(batch["moving"][0], dataset[number]["moving"])
    images = [dataset[0]["fixed"], dataset[3]["fixed"], dataset[1]["fixed"], Augmented(Blobs(), STRONG, 1)[0]["fixed"]]
    assert not any(torch.equal(one, other) for i, one in enumerate(images) for other in images[:i])


SECTION = "augmentation={flip: [2], rotation: 10, deformation: 1, deformation_spacing: 8, noise_std: 0.01}"


def test_a_resumed_run_sees_the_same_samples(train_tiny: Callable[..., Any]) -> None:
    whole = train_tiny(SECTION, "training.epochs=2", "training.save_dir=whole")
    train_tiny(SECTION, "training.epochs=2", "training.max_steps=4", "training.save_dir=part")
    rest = train_tiny(SECTION, "training.epochs=2", "training.resume=part", "training.save_dir=part")
    one, other = (load_checkpoint(Path(result.folder) / "last.pt")["model"] for result in (whole, rest))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    plain = train_tiny("training.epochs=2", "training.save_dir=plain")
    first = load_checkpoint(Path(plain.folder) / "last.pt")["model"]
    assert not all(torch.equal(value, first[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augmentation.rotation=-1", r"augmentation.rotation .* is -1.0; it must be 0 or more"),
        ("augmentation.flip=[3]", r"augmentation.flip .* a list of axes: 0 \(z\)"),
        ("augmentation.probability=2", "augmentation.probability .* from 0 to 1"),
        ("augmentation.deformation=10", "augmentation.deformation_spacing .* at least 4 times"),
        ("augmentation.elastic=1", "augmentation.elastic .* is not a key"),
    ],
)
def test_impossible_values(tiny_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_file, [override])


def test_the_strongest_deformation_can_be_undone() -> None:
    rng = np.random.default_rng(0)
    dataset = Augmented(Blobs(), AugmentationConfig(deformation=2, deformation_spacing=8), seed=0)
    for _ in range(3):
        through = dataset._draw(rng, SIZE, [], None)
        assert through.bend is not None
        places = torch.rand(200, 3, dtype=torch.float64) * (torch.tensor(SIZE) - 1)
        torch.testing.assert_close(through(through.inverse(places)), places, rtol=0, atol=1e-3)


class FlatBlobs(Blobs):
    """The same in 2-D: the plane y = 9 of volumes whose landmarks lie in it."""

    fixed = torch.tensor([[8.0, 9.0, 10.0], [14.0, 9.0, 20.0]])
    moving = torch.tensor([[9.0, 9.0, 12.0], [13.0, 9.0, 21.0]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        flat = {key: value[:, :, 9:10] for key, value in sample.items() if getattr(value, "ndim", 0) == 4}
        points = {f"{side}_points": sample[f"{side}_points"] * torch.tensor([1, 0, 1]) for side in ("moving", "fixed")}
        return sample | flat | points | {"dvf": torch.zeros(3, SIZE[0], 1, SIZE[2])}


def test_slices_stay_in_their_plane() -> None:
    """Tilted out of it, labels would be lost."""
    dataset = Augmented(FlatBlobs(), STRONG, seed=0)
    axes = torch.meshgrid(torch.arange(float(SIZE[0])), torch.arange(float(SIZE[2])), indexing="ij")
    for number in range(6):
        sample = dataset[number]
        assert not sample["dvf"][1].any()
        for side in ("moving", "fixed"):
            assert not sample[f"{side}_points"][:, 1].any()
            assert not torch.equal(sample[side], FlatBlobs()[0][side])
            for label, point in zip(sample[f"{side}_label"][:, :, 0], sample[f"{side}_points"], strict=True):
                near = (sample[side][0] * _near(point)[:, :1])[:, 0] ** 2
                # The nearest pixels of a disc of seventeen are less well centred than the image is.
                for weights, most in ((near, 0.6), (label, 1.0)):
                    middle = torch.stack([(axis * weights).sum() for axis in axes]) / weights.sum()
                    assert (middle - point[::2]).abs().max() < most


def test_the_contrast_of_each_channel_is_kept() -> None:
    """A power of the intensities leaves the lowest and the highest value of a channel where they are."""

    class TwoChannels(Blobs):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            return sample | {side: torch.cat([sample[side], 0.2 * sample[side] + 3]) for side in ("moving", "fixed")}

    sample = Augmented(TwoChannels(), AugmentationConfig(gamma=0.5), seed=0)[0]
    for side in ("moving", "fixed"):
        before, after = TwoChannels()[0][side], sample[side]
        torch.testing.assert_close(after.amin((1, 2, 3)), before.amin((1, 2, 3)))
        torch.testing.assert_close(after.amax((1, 2, 3)), before.amax((1, 2, 3)))
        torch.testing.assert_close(after[1], 0.2 * after[0] + 3, atol=1e-3, rtol=0)
        assert (after - before).abs().max() > 0.01

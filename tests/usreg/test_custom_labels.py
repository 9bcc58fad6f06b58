"""Labels of ``custom_dataset``: integer maps, masks, channels, each by its own header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from usreg.datasets import build_dataset, collate
from usreg.datasets.custom import CustomDataset
from usreg.datasets.labels import LabelMap
from usreg.errors import ConfigError, DataError
from usreg.metrics import evaluate_metrics, identity_inputs

SIZE = (12, 12, 12)
SHAPE = (24, 24, 24)
AFFINE = np.eye(4)

Build = Callable[..., CustomDataset]


def slabs(*values: float, thick: int = 6) -> np.ndarray:
    """A map with a slab of each value along the first axis."""
    voxels = np.zeros(SHAPE, np.float32)
    for number, value in enumerate(values):
        voxels[2 + number * thick : 2 + (number + 1) * thick] = value
    return voxels


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Writes cases of labels ``(moving, fixed)`` with images, and builds the data set."""

    def dataset(*pairs: tuple[np.ndarray, np.ndarray], affine: np.ndarray = AFFINE, **keys: object) -> CustomDataset:
        image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "image.nii.gz")
        cases = []
        for number, pair in enumerate(pairs):
            case = {"moving": "image.nii.gz", "fixed": "image.nii.gz", "modality": str(number)}
            for side, voxels in zip(("moving", "fixed"), pair, strict=True):
                nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{side}{number}.nii.gz")
                case[f"{side}_label"] = f"{side}{number}.nii.gz"
            cases.append(case)
        (tmp_path / "m.json").write_text(json.dumps({"train": cases}))
        section = {"name": "custom_dataset", "json_file": str(tmp_path / "m.json"), **keys}
        return build_dataset(section, split="train", image_size=SIZE)  # type: ignore[return-value]

    return dataset


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_map_has_a_channel_per_structure(build, dtype):
    sample = build((slabs(1, 2, 3).astype(dtype), slabs(1, 3).astype(dtype)))[0]
    moving, fixed = sample["moving_label"], sample["fixed_label"]
    assert moving.shape == fixed.shape == (3, *SIZE)
    assert moving.dtype == torch.float32
    assert set(moving.unique().tolist()) == {0.0, 1.0}
    assert moving.sum((1, 2, 3)).tolist() == [432, 432, 432]
    assert fixed.sum((1, 2, 3)).tolist() == [432, 0, 432]
    assert moving[1, :, :, 4:7].all()  # x is the last axis of the sample; 8 to 14 of the file's 24 voxels
    dice = evaluate_metrics(identity_inputs(collate([sample])))["dice"]
    assert dice[0].isnan().tolist() == [False, True, False]


def test_values_near_whole_numbers_are_those(build):
    sample = build((slabs(0.9999, 2.0002), slabs(1, 2)))[0]
    assert torch.equal(sample["moving_label"], sample["fixed_label"])


def test_named_values_become_the_channels_in_their_order(build):
    sample = build((slabs(17, 2035, 4), slabs(4, 17, 2035)), labels=[4, 2035])[0]
    assert sample["moving_label"].shape == (2, *SIZE)
    assert sample["moving_label"][0, :, :, 7:10].all()
    assert sample["moving_label"][1, :, :, 4:7].all()
    assert sample["fixed_label"][0, :, :, 1:4].all()


def test_masks_of_8_bits(build):
    mask, channels = slabs(255).astype(np.uint8), np.stack([slabs(255), slabs(0, 255)], -1).astype(np.uint8)
    data = build((mask, mask), (channels, channels), (mask, slabs(1)))
    assert data[0]["moving_label"].shape == (1, *SIZE)
    assert data[1]["moving_label"].shape == (2, *SIZE)
    assert torch.equal(data[0]["moving_label"][0], data[1]["moving_label"][0])
    assert torch.equal(data[2]["moving_label"], data[2]["fixed_label"])


def test_probabilities_and_channels_keep_their_fractions(build):
    sample = build((slabs(0.25, 0.75), slabs(0.25, 0.75)))[0]
    assert sample["moving_label"].shape == (1, *SIZE)
    assert {0.25, 0.75} <= set(sample["moving_label"].unique().tolist())


def test_maps_are_kept_as_small_integers(build):
    data = build((slabs(1, 2, 3), slabs(1, 2, 3)))
    kept = data._cached(0)["fixed_label"]
    assert isinstance(kept, LabelMap)
    assert kept.indices.dtype == torch.uint8
    assert kept.nbytes == np.prod(SIZE)
    data[0]["fixed_label"].zero_()
    assert data[0]["fixed_label"].any()


def test_a_batch_of_different_numbers_of_structures(build):
    data = build((slabs(1, 2, 3), slabs(1, 2, 3)), (slabs(1), slabs(1)))
    assert collate([data[0], data[1]])["fixed_label"].shape == (2, 3, *SIZE)


def test_a_label_is_turned_by_its_own_header(build):
    """The same voxels in mm, stored to the left and to posterior."""
    lps = np.diag([-1.0, -1, 1, 1])
    lps[:2, 3] = 23
    straight, turned = slabs(1, 2), slabs(1, 2)[::-1, ::-1]
    assert torch.equal(
        build((turned, turned), affine=lps)[0]["fixed_label"], build((straight, straight))[0]["fixed_label"]
    )


def test_a_label_may_have_a_grid_of_its_own(build):
    part = np.eye(4)
    part[0, 3] = 2
    cut = slabs(1, 2)[2:14]
    sample, whole = build((cut, cut), affine=part)[0], build((slabs(1, 2), slabs(1, 2)))[0]
    assert torch.equal(sample["fixed_label"], whole["fixed_label"])


def test_a_header_that_moves_a_label_of_the_same_size_is_worth_a_warning(build, caplog):
    moved = np.eye(4)
    moved[0, 3] = 3
    build((slabs(1), slabs(1)), affine=moved)
    assert "train[0].fixed_label" in caplog.text
    assert "its header puts it up to 3.0 voxels away from its image" in caplog.text


def test_structures_that_vanish_are_named_once(build, caplog, monkeypatch):
    voxels = slabs(1, 2)
    voxels[21, 21, 21] = 3
    channels = np.stack([slabs(1), voxels == 3], -1).astype(np.float32)
    data = build((voxels, voxels), (channels, channels))
    texts = [text for text in caplog.messages if "no voxel of the sample" in text]
    assert len(texts) == 4
    assert "train[0].moving_label: no voxel of the sample of [12, 12, 12] is in structure 3 (1 voxels" in texts[0]
    assert "train[1].fixed_label" in texts[3]
    assert "structure 2 (1 voxels" in texts[3]
    monkeypatch.setattr(data._cache, "get", lambda _: None)
    data[0]
    assert len([text for text in caplog.messages if "no voxel of the sample" in text]) == 4


def test_a_structure_that_the_moving_sample_lost_has_dice_0(build, caplog):
    """Its fixed counterpart is large enough; cases with fewer structures, and without labels, share its batch."""
    small = slabs(1)
    small[21, 21, 21] = 2
    data = build((small, slabs(1, 2)), (slabs(1, 2), small), (slabs(1), slabs(1)))
    assert "train[0].moving_label: no voxel" in caplog.text
    assert "It counts as Dice 0 where the fixed label has it" in caplog.messages[0]
    assert "train[1].fixed_label: no voxel" in caplog.text
    assert "It counts as absent" in caplog.messages[1]
    batch = collate([data[0], data[1], data[2]])
    assert batch["moving_label_lost"].tolist() == [[False, True], [False, False], [False, False]]
    dice = evaluate_metrics(identity_inputs(batch))["dice"]
    assert dice[0].tolist() == [1, 0]
    assert dice[1:, 1].isnan().all()


def test_labels_that_no_file_has_are_worth_a_warning(build, caplog):
    build((slabs(1, 2), slabs(1, 2)), labels=[7])
    assert "train[0].fixed_label: holds none of the labels [7], only [1, 2]" in caplog.text


@pytest.mark.parametrize(
    ("moving", "fixed", "keys", "text"),
    [
        (slabs(1.5), slabs(1), {}, "its values go from 0 to 1.5"),
        (slabs(-1), slabs(1), {}, "its values go from -1 to 0"),
        (slabs(2035), slabs(1), {}, r"values up to 2035; name those .* as in labels: \[1, 2035\]"),
        (
            slabs(255),
            slabs(1, 2),
            {},
            "is a mask of 0 and 255, and the other label numbers 2 structures",
        ),
        (np.stack([slabs(1), slabs(2)], -1), slabs(1), {}, "its values go from 0 to 2"),
        (np.stack([slabs(1)] * 3, -1), slabs(1), {}, "'moving_label' has 3, 'fixed_label' has 1 channels"),
        (np.stack([slabs(1)] * 2, -1), slabs(1, 2, 3), {}, "'moving_label' has 2, 'fixed_label' has 3 channels"),
        (np.stack([slabs(1)] * 2, -1), slabs(1), {"labels": [1]}, "'moving_label' has 2 channels; labels names 1"),
        (slabs(0.5), slabs(1), {"labels": [1]}, "its values go from 0 to 0.5"),
    ],
)
def test_what_is_no_label_is_said(build, moving, fixed, keys, text):
    with pytest.raises(DataError, match=text):
        build((moving, fixed), **keys)


@pytest.mark.parametrize("labels", [[], [0, 1], [1, 1], [1.5]])
def test_names_of_structures_are_checked(build, labels):
    with pytest.raises(ConfigError, match="labels must be different whole numbers above 0"):
        build((slabs(1), slabs(1)), labels=labels)


def test_a_map_beside_channels_counts_as_many(build):
    channels = np.stack([slabs(1), slabs(0, 1)], -1)
    sample = build((slabs(1, 2), channels))[0]
    assert sample["moving_label"].shape == sample["fixed_label"].shape
    torch.testing.assert_close(sample["moving_label"], (sample["fixed_label"] > 0.5).float())

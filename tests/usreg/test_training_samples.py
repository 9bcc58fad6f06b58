"""Samples as people's datasets return them: what is converted, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import usreg
from usreg.datasets import DATASET_REGISTRY, collate
from usreg.datasets.deepreg_synthetic import DeepRegSynthetic
from usreg.errors import ConfigError, DataError
from usreg.io.transforms import read_transform
from usreg.metrics import METRIC_REGISTRY
from usreg.models import MODEL_REGISTRY, RegistrationModel
from usreg.training.checkpoints import load_checkpoint
from usreg.viz import save_registration_figure

IMAGE = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "given",
    [IMAGE.double(), IMAGE.half(), IMAGE.numpy(), IMAGE.double().numpy(), IMAGE.numpy().astype(">f4")],
    ids=["float64", "float16", "array", "array of float64", "array of other byte order"],
)
def test_images_become_float32_tensors(given):
    batch = collate([{"moving": given, "fixed": given}])
    assert batch["moving"].dtype == torch.float32
    torch.testing.assert_close(batch["fixed"], IMAGE[None], atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_labels_and_masks_become_float32(dtype):
    inside = (IMAGE > 0.5).to(dtype)
    batch = collate([{"moving": IMAGE, "fixed": IMAGE, "moving_label": inside, "fixed_mask": inside.numpy()}])
    for key in ("moving_label", "fixed_mask"):
        assert batch[key].dtype == torch.float32
        assert torch.equal(batch[key][0], inside.float())


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((IMAGE, IMAGE), r"type tuple; it must be a dictionary, as in \{'moving'"),
        ({"moving": IMAGE.byte(), "fixed": IMAGE}, r"'moving' is of the type torch.uint8.*image\.float\(\) / 255"),
        ({"moving": IMAGE, "fixed": (255 * IMAGE).short().numpy()}, "'fixed' is of the type torch.int16"),
        ({"case": "A", "fixed_label": 255.0 * (IMAGE > 0.5)}, "case 'A': 'fixed_label' has values from 0 to 255"),
        ({"moving_label": torch.arange(4).reshape(1, 4, 1, 1)}, r"from 0 to 3; .*torch\.stack"),
        ({"moving_mask": torch.full((1, 2, 2, 2), torch.nan)}, "'moving_mask' has values from nan"),
    ],
    ids=["tuple", "uint8", "array of int16", "0 and 255", "map", "NaN"],
)
def test_what_no_network_can_use_is_refused(sample, message):
    with pytest.raises(DataError, match=message):
        collate([sample])


class Mine(DeepRegSynthetic):
    """The synthetic dataset as a plugin that does something else with its samples."""

    def __getitem__(self, index):
        return self.change(super().__getitem__(index))

    @staticmethod
    def change(sample):
        return sample


def arrays(sample):
    return {key: value.double().numpy() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}


def test_a_dataset_of_arrays_trains_as_one_of_tensors(train_tiny, monkeypatch):
    expected = train_tiny("training.epochs=1").evaluation
    monkeypatch.setattr(Mine, "change", staticmethod(arrays))
    monkeypatch.setitem(DATASET_REGISTRY, "mine", Mine)
    found = train_tiny("training.epochs=1", "train_dataset.name=mine", "val_dataset.name=mine").evaluation
    assert found == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s["moving"], s["fixed"]), "type tuple"),
        (lambda s: s | {"moving": s["moving"][0]}, r"'moving' must be a tensor of the shape \(1, D, H, W\)"),
        (lambda s: {"fixed": s["fixed"]}, "'moving' .*not missing"),
        (lambda s: s | {"fixed_label": s["fixed_mask"][0], "moving_label": s["moving_mask"]}, r"\(L, 16, 16, 16\)"),
        (lambda s: s | {"dvf": s["dvf"][:2]}, r"'dvf' has the shape \(2, 16, 16, 16\)"),
        (lambda s: s | {"fixed_mask": 255 * s["fixed_mask"]}, "from 0 to 255"),
    ],
    ids=["tuple", "no channel", "no moving", "label without channel", "field of a plane", "mask of 255"],
)
def test_a_plugins_dataset_is_checked_before_anything_is_written(train_tiny, monkeypatch, tmp_path, change, message):
    monkeypatch.setattr(Mine, "change", staticmethod(change))
    monkeypatch.setitem(DATASET_REGISTRY, "mine", Mine)
    with pytest.raises(DataError, match=message):
        train_tiny("train_dataset.name=mine")
    assert not (tmp_path / "run").exists()


def per_voxel(ddf: torch.Tensor) -> torch.Tensor:
    return ddf.square().mean(1)


def one_number(ddf: torch.Tensor) -> torch.Tensor:
    return ddf.square().mean()


def nothing(ddf: torch.Tensor) -> None:
    pass


def mistaken(ddf: torch.Tensor) -> torch.Tensor:
    raise ValueError("a bug in my metric")


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (per_voxel, ConfigError, r"'mine' returned a tensor \(2, 16, 16, 16\) for a batch of 2"),
        (one_number, ConfigError, r"'mine' returned a tensor \(\) .* one value per sample"),
        (nothing, ConfigError, "'mine' returned None"),
        (mistaken, ValueError, "a bug in my metric"),
    ],
)
def test_a_metric_is_tried_before_anything_is_written(train_tiny, monkeypatch, tmp_path, metric, error, message):
    monkeypatch.setitem(METRIC_REGISTRY, "mine", metric)
    with pytest.raises(error, match=message):
        train_tiny()
    assert not (tmp_path / "run").exists()


def two_channels(sample):
    """A second channel that is another contrast of the first."""
    return sample | {key: torch.cat([sample[key], 1 - sample[key] ** 2]) for key in ("moving", "fixed")}


MINE = ("train_dataset.name=mine", "val_dataset.name=mine")


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ("{name: unetreg3d, channels: [4, 8], strides: [2], num_res_units: 0}", "{name: lncc_dvf}"),
        ("{name: globalnet3d, num_channel_initial: 4, depth: 2}", "{name: mse}"),
    ],
    ids=["unetreg3d", "globalnet3d"],
)
def test_images_of_two_channels_train_and_are_evaluated(train_tiny, monkeypatch, tmp_path, model, loss):
    monkeypatch.setattr(Mine, "change", staticmethod(two_channels))
    monkeypatch.setitem(DATASET_REGISTRY, "mine", Mine)
    run = train_tiny(*MINE, f"model={model}", f"loss={loss}")
    assert run.evaluation.skipped == 0
    assert run.evaluation.metrics["dice"] is None  # no labels
    config = load_checkpoint(run.folder / "last.pt")["config"]
    assert config["model"]["image_channels"] == 2
    resumed = train_tiny(*MINE, f"model={model}", f"loss={loss}", "training.resume=auto", "training.epochs=3")
    assert resumed.folder == run.folder
    last = run.folder / "last.pt"
    found = usreg.evaluate(last, split="val", out="out", save=["warped", "pictures"])
    overrides = [*MINE, f"model={model}", f"loss={loss}"]
    again = usreg.evaluate(last, config=tmp_path / "tiny.yaml", overrides=overrides, split="val")
    for key in ("mse", "ncc"):
        values = [result.values(next(iter(result.methods)), key) for result in (found, again)]
        assert values[0].mean() == pytest.approx(resumed.evaluation.metrics[key], rel=1e-4)
        assert values[0].tolist() == values[1].tolist()
    saved = sorted(Path("out").glob("**/warped.nii.gz"))
    assert [nib.load(path).shape for path in saved] == [(16, 16, 16, 2)] * 2
    assert len(list(Path("out").glob("**/picture.png"))) == 2


def other_axes(sample):
    return sample | {key: sample[key].transpose(0, 1) for key in ("moving", "fixed")}


@pytest.mark.parametrize(
    ("change", "overrides", "error", "message"),
    [
        (other_axes, (), DataError, r"\(16, 1, 16, 16\); with image_size \[16, 16, 16\] it is \(1, 16, 16, 16\): put"),
        (
            lambda s: two_channels(s) | {"moving": s["moving"]},
            (),
            DataError,
            r"moving \(1, 16, 16, 16\) and fixed \(2, 16, 16, 16\) must have one shape, channels included",
        ),
        (two_channels, ("model.image_channels=3",), ConfigError, r"\(B, 3, D, H, W\).*'image_channels' of the model"),
        (two_channels, ("model.in_channels=2",), ConfigError, "in_channels is 2; it must be 4, .* leave it out"),
        (two_channels, ("model={name: one_channel}",), ConfigError, "takes images of one channel, and these have 2: "),
        (lambda s: s | {"moving": s["moving"][:, 0]}, (), DataError, r"give \(C, H, W\) as image\[:, None\]"),
        (lambda s: s | {"fixed": s["fixed"][0, 0]}, (), DataError, r"give \(H, W\) as image\[None, None\]"),
    ],
    ids=["axes", "one of two", "other number", "in_channels", "a plugin's model", "slice", "plane"],
)
@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_channels_and_slices_that_do_not_fit(
    train_tiny, monkeypatch, tmp_path, change, overrides, error, message, augmented
):
    monkeypatch.setitem(MODEL_REGISTRY, "one_channel", lambda: RegistrationModel(torch.nn.Conv3d(2, 3, 1)))
    monkeypatch.setattr(Mine, "change", staticmethod(change))
    monkeypatch.setitem(DATASET_REGISTRY, "mine", Mine)
    with pytest.raises(error, match=message):
        train_tiny(*MINE, *overrides, *(["augmentation={gamma: 0.2, rotation: 5}"] if augmented else []))
    assert not (tmp_path / "run").exists()


def as_slices(sample):
    """Volumes of one voxel along z, with everything that a metric may ask for."""
    flat = {key: sample[key][:, :1] for key in ("moving", "fixed", "dvf", "moving_mask", "fixed_mask")}
    points = {key: sample[key] * torch.tensor([0.0, 1.0, 1.0]) for key in ("moving_points", "fixed_points")}
    return flat | points | {"moving_label": flat["moving_mask"], "fixed_label": flat["fixed_mask"]}


def test_volumes_of_one_voxel_along_an_axis(train_tiny, monkeypatch):
    monkeypatch.setattr(Mine, "change", staticmethod(as_slices))
    monkeypatch.setitem(DATASET_REGISTRY, "mine", Mine)
    names = "train_dataset.name=mine", "val_dataset.name=mine"
    sizes = "image_size=[1,16,16]", "train_dataset.image_size=[16,16,16]", "val_dataset.image_size=[16,16,16]"
    found = train_tiny("training.epochs=1", *names, *sizes, "loss={name: lncc_dice, smooth_weight: 0.1}").evaluation
    assert found.skipped == 0
    for name in ("epe", "dice", "hd95", "asd", "tre", "neg_jac_ratio", "log_jac_std"):
        assert found.metrics[name] is not None, name


def write_slices(folder, channels=2):
    """A manifest of two pairs of slices with labels and landmarks."""
    generator = np.random.default_rng(0)
    cases = []
    for number in range(2):
        case = {}
        for side in ("moving", "fixed"):
            image = gaussian_filter(generator.random((24, 20, 1, channels)), (2, 2, 0, 0)).astype(np.float32)
            inside = (image[..., 0] > np.median(image)).astype(np.uint8)
            for key, voxels in ((side, image), (f"{side}_label", inside)):
                nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 1.5, 3, 1])), folder / f"{key}{number}.nii")
                case[key] = f"{key}{number}.nii"
            case[f"{side}_landmarks"] = [[5, 6, 0], [9, 11, 0]]
        cases.append(case)
    (folder / "slices.json").write_text(json.dumps({"train": cases[:1], "val": cases[1:]}))


SLICES = "{name: custom_dataset, json_file: slices.json, landmarks_space: voxel, image_channels: 2}"
ON_SLICES = (
    f"train_dataset={SLICES}", f"val_dataset={SLICES}", "augmentation={rotation: 3, flip: [1], gamma: 0.2}",
    "loss={name: lncc_dice, kernel_size: [1, 5, 5], smooth_weight: 0.1}",
)  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        "{name: globalnet3d, depth: 2}",
        "{name: localnet3d, num_channel_initial: 4, depth: 2}",
        "{name: unetreg3d, channels: [4, 8], strides: [2], num_res_units: 0}",
        "{name: voxelmorph3d, channels: [4, 4]}",
        "{name: transmorph3d, feature_size: 12, num_heads: [1, 2, 2, 4], depths: [1, 1, 1, 1], window_size: 2}",
    ],
    ids=["globalnet3d", "localnet3d", "unetreg3d", "voxelmorph3d", "transmorph3d"],
)
def test_slices_train_resume_and_are_evaluated_and_warped(train_tiny, tmp_path, model):
    """Files to checkpoint, with two channels; the registration without a network takes the same samples."""
    write_slices(tmp_path)
    given = ("image_size=[16,18]", f"model={model}", *ON_SLICES)
    run = train_tiny(*given, "training.epochs=2")
    content = load_checkpoint(run.folder / "last.pt")
    assert content["config"]["image_size"] == [1, 16, 18]
    assert content["config"]["model"]["spatial_dims"] == 2
    assert not any(weight.dim() == 5 for weight in content["model"].values())
    resumed = train_tiny(*given, "training.epochs=3", "training.resume=auto")
    assert resumed.folder == run.folder
    for name in ("dice", "tre", "hd95", "neg_jac_ratio", "log_jac_std", "ncc"):
        assert resumed.evaluation.metrics[name] is not None, name
    found = usreg.evaluate(
        run.folder, register="voxelmorph3d" in model, split="val", out="out", save=["warped", "fields", "pictures"]
    )
    assert all(np.isfinite(found.values(name, "dice")).all() for name in found.methods)
    assert list(Path("out").glob("**/picture.png"))
    fields = list(Path("out").glob("**/field.nii.gz"))
    assert fields
    for path in fields:
        field = nib.load(path).get_fdata()
        assert field.shape[:3] == (18, 16, 1)
        assert not field[..., 2].any()
        usreg.apply(path, moving="moving1.nii", fixed="fixed1.nii", out="warped.nii.gz")
        assert nib.load("warped.nii.gz").shape == nib.load("fixed1.nii").shape
    registered = usreg.register(
        tmp_path / "fixed1.nii",
        tmp_path / "moving1.nii",
        checkpoint=run.folder,
        overrides=["stages=[{stage: greedy, levels: [1], iterations: [0]}]"],
    )
    (path,) = (path for path in Path("out").glob("**/field.nii.gz") if "register" not in path.parts[1])
    of_evaluation = read_transform(path)
    points = of_evaluation.grid.to_world(np.argwhere(np.ones((12, 10, 1))) + np.array([3, 3, 0]))
    apart = np.linalg.norm(registered.transform(points) - of_evaluation(points), axis=1)
    assert apart.max() < 0.05  # mm: the voxels of the image are not those of the network
    assert np.abs(registered.transform(points) - points)[:, :2].max() > 1e-3
    np.testing.assert_allclose(registered.transform(points)[:, 2], points[:, 2], atol=1e-6)
    assert registered.warped.shape == (2, 24, 20, 1)


def test_a_network_for_volumes_that_was_trained_on_slices(train_tiny, tmp_path):
    """Checkpoints that do not say how many dimensions their network has are of three, and go on so."""
    write_slices(tmp_path)
    given = ("image_size=[1,16,18]", "model={name: voxelmorph3d, channels: [4, 4]}", *ON_SLICES)
    run = train_tiny(*given, "model.spatial_dims=3", "training.epochs=1")
    content = torch.load(run.folder / "last.pt")
    del content["config"]["model"]["spatial_dims"]
    torch.save(content, run.folder / "last.pt")
    found = usreg.evaluate(run.folder / "last.pt", split="val", out="out")
    assert np.isfinite(found.values(next(iter(found.methods)), "dice")).all()
    train_tiny(*given, "training.epochs=2", "training.resume=auto")
    content = load_checkpoint(run.folder / "last.pt")
    assert "spatial_dims" not in content["config"]["model"]
    assert any(weight.dim() == 5 for weight in content["model"].values())


@pytest.mark.parametrize("name", ["deepreg_synthetic", "synthetic_ellipsoids"])
def test_synthetic_slices_train(train_tiny, name):
    sections = [f"{split}_dataset={{name: {name}, num_samples: 2}}" for split in ("train", "val")]
    found = train_tiny("image_size=[20,24]", *sections, "loss={name: mse}", "training.epochs=1").evaluation
    assert found.skipped == 0
    assert found.metrics["mse"] > 0


def test_a_picture_of_a_slice_of_two_channels(tmp_path):
    images = torch.rand(3, 2, 1, 12, 14, generator=torch.Generator().manual_seed(0))
    save_registration_figure(tmp_path / "p.png", *images, torch.zeros(3, 1, 12, 14), "slice")
    assert (tmp_path / "p.png").stat().st_size > 10_000

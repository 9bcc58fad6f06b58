"""Configuration files as users of older versions have them: each loads, builds and trains."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from usreg.config import load_config
from usreg.datasets import custom_options
from usreg.train import main

HEAD = """\
project: "p"
image_size: [32, 32, 32]
wandb: {enabled: false, project: "u", run_name: "c", offline: true}
train_dataset: &d
  name: custom_dataset
  json_file: m.json
  image_size: [32, 32, 32]
  orientation: RAS
  spacing: null
  preprocess_style: multigradicon
  ct_window: [-1000.0, 1000.0]
  quantile_range: [0.01, 0.99]
  default_is_ct: false
  normalize_intensity: true
"""
TAIL = """\
val_dataset:
  <<: *d
optimizer: {name: Adam, lr: 1e-4, weight_decay: 1e-5}
training: {epochs: 50, batch_size: 2, num_workers: 0, amp: true, val_every: 1, seed: 42}
tensorboard: {enabled: false}
"""
ALIGNED = """\
  align_shared_grid: true
  align_reference: fixed_label
  align_margin_mm: 6.0
  landmarks_space: lps
"""
IGNORED = """\
  roi_from_labels: true
  roi_margin: 8
  roi_reference: fixed
  intensity_lower: 0.5
  intensity_upper: 99.5
  intensity_clip: true
"""
LNCC = "loss: {name: lncc, kernel_size: 9, smooth_nr: 1e-4, smooth_dr: 1e-2}\n"
LNCC_DICE = (
    "loss: {name: lncc_dice, params: {kernel_size: 9, smooth_nr: 1e-4, smooth_dr: 1e-2, lncc_weight: 1.0, dice_weight: "
    "0.5, label_warp_mode: bilinear, label_warp_padding_mode: border}}\n"
)
LOCALNET = (
    "model: {name: localnet3d, in_channels: 2, num_channel_initial: 4, extract_levels: [0, 1, 2, 3], out_channels: 3, "
    "pooling: true, concat_skip: false, warp_mode: bilinear, warp_padding_mode: border}\n"
)
CONFIGS = {
    "globalnet": HEAD
    + "model: {name: globalnet3d, num_channel_initial: 4, depth: 3, warp_mode: bilinear, warp_padding_mode: border}\n"
    + LNCC,
    "localnet": HEAD + IGNORED + LOCALNET + LNCC,
    "aligned": HEAD + ALIGNED + LOCALNET + LNCC_DICE,
    "voxelmorph": HEAD
    + "model: {name: voxelmorph3d, in_channels: 2, unet_out_channels: 32, channels: [16, 32, 32, 32, 32, 32], "
    + "final_conv_channels: [16, 16], integration_steps: 0, half_res: false}\n"
    + LNCC,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs of a CT and an ultrasound volume that share a world and not a grid, with labels and landmarks."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    content: dict[str, list[dict]] = {"train": [], "val": []}
    for number, split in enumerate(("train", "val")):
        case = {"moving_modality": "CT", "fixed_modality": "US"}
        for side, size, origin in (("moving", (40, 44, 36), -6.0), ("fixed", (30, 32, 34), 0.0)):
            affine = np.eye(4)
            affine[:3, 3] = origin
            world = np.moveaxis(np.indices(size), 0, -1) + origin
            label = (np.linalg.norm(world - 15, axis=-1) < 8).astype(np.uint8)
            image = 300.0 * label + 20 * generator.random(size)
            for key, voxels in ((side, image.astype(np.float32)), (f"{side}_label", label)):
                case[key] = f"{key}{number}.nii.gz"
                nib.save(nib.Nifti1Image(voxels, affine), tmp_path / case[key])
            case[f"{side}_landmarks"] = f"{side}{number}.txt"
            (tmp_path / case[f"{side}_landmarks"]).write_text("-15 -15 15\n-12 -16 14\n")
        content[split].append(case)
    (tmp_path / "m.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("name", list(CONFIGS))
def test_trains_one_step(folder, name, capsys, caplog, fresh_accelerate, quick_drawing):
    custom_options._note_once.cache_clear()
    file = folder / f"{name}.yaml"
    file.write_text(CONFIGS[name] + TAIL)
    options = ["training.max_steps=1", "training.save_dir=run", "device=cpu"]
    assert main(["--config", str(file), *options]) == 0, capsys.readouterr().err
    assert "tre" in capsys.readouterr().out
    assert ("set align_shared_grid: true" in caplog.text) == (name != "aligned")
    assert ("do nothing" in caplog.text) == (name == "localnet")
    assert load_config(folder / "run" / "config.yaml").train_dataset["preprocess_style"] == "multigradicon"

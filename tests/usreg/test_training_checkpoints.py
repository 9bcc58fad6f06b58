"""Checkpoints are written whole or not at all, run no code when read, and explain what does not fit."""

from __future__ import annotations

import os
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from usreg.errors import ConfigError, DataError
from usreg.training import checkpoints, randomness
from usreg.training.checkpoints import (
    find_resume,
    load_checkpoint,
    load_loss,
    load_optimizer,
    load_weights,
    save_checkpoint,
)
from usreg.training.progress import TrainingProgress

ENTRIES = {
    "model": {"weight": torch.arange(3.0)},
    "loss": {},
    "scheduler": None,
    "ema": None,
    "optimizer": {},
    "scaler": None,
    "progress": {"epoch": 3, "best_epe": float("inf")},
    "random": [randomness.capture_random_state()],
    "config": {"model": {"name": "tiny"}},
}


def test_round_trip(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, ENTRIES)
    content = load_checkpoint(path)
    assert torch.equal(content["model"]["weight"], torch.arange(3.0))
    assert content["progress"] == ENTRIES["progress"]
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, ENTRIES)
    before = path.read_bytes()

    def half(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, ENTRIES)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoints.FORMAT, "model": Malicious()}, "bad.pt")
    (tmp_path / "worse.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("bad.pt", "worse.pt"):
        with pytest.raises(DataError, match="cannot be read as a checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no checkpoint"),
        (b"", "cannot be read"),
        (b"not a checkpoint", "cannot be read"),
        ({"weights": 1}, "no checkpoint of usreg"),
        ({"format": "usreg.checkpoint", "version": 99}, "version 99"),
        ({"format": "usreg.checkpoint", "version": 2, "model": {}}, "lacks loss, optimizer, scheduler"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DataError, match=message):
        load_checkpoint(path)


def test_a_truncated_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, ENTRIES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(path)


def test_a_checkpoint_of_version_1_is_read(tmp_path):
    old = {"format": checkpoints.FORMAT, "version": 1, **ENTRIES}
    del old["loss"], old["scheduler"], old["ema"]
    old["progress"] = {"epoch": 3, "batch": 4, "step": 40, "best_epe": 0.5, "best_val_loss": float("inf")}
    old["config"] = {"model": {}, "training": {"batch_size": 2, "seed": 7}}
    torch.save(old, tmp_path / "old.pt")
    content = load_checkpoint(tmp_path / "old.pt")
    assert content["loss"] == {}
    assert content["progress"] == {"epoch": 3, "step": 40, "samples": 8, "size": 0, "seed": 7, "best": {"epe": 0.5}}
    progress = TrainingProgress.from_plain(content["progress"])
    progress.go_on_with(20, 7, "old.pt")
    assert (progress.samples, progress.size, progress.pending) == (8, 20, False)


def test_another_loss_is_refused_by_name(tmp_path):
    kept = nn.BatchNorm1d(2, affine=False)
    checkpoint = {"loss": kept.state_dict(), "config": {"loss": {"name": "warm_up"}}}
    with pytest.raises(ConfigError, match=r"unknown to the loss: running_mean.*'warm_up'"):
        load_loss(nn.MSELoss(), checkpoint, tmp_path / "last.pt")
    load_loss(nn.L1Loss(), {"loss": nn.MSELoss().state_dict()}, tmp_path / "last.pt")


def test_another_model_is_refused_by_name(tmp_path):
    checkpoint = {"model": nn.Linear(3, 2).state_dict() | {"extra": torch.ones(1)}, "config": {"model": {"name": "a"}}}
    model = nn.ModuleDict({"head": nn.Linear(1, 1)})
    model.weight = nn.Parameter(torch.ones(2, 4))
    with pytest.raises(ConfigError) as error:
        load_weights(model, checkpoint, tmp_path / "last.pt")
    text = str(error.value)
    assert "missing in the checkpoint: head.weight, head.bias" in text
    assert "unknown to the model: bias, extra" in text
    assert "weight (2, 3) instead of (2, 4)" in text
    assert "'name': 'a'" in text


def test_the_configured_learning_rate_wins(tmp_path):
    weights = [nn.Parameter(torch.ones(2))]
    saved = torch.optim.Adam(weights, lr=1e-3).state_dict()
    optimizer = torch.optim.Adam(weights, lr=1e-5)
    load_optimizer(optimizer, {"optimizer": saved}, tmp_path)
    assert optimizer.param_groups[0]["lr"] == 1e-5
    more = torch.optim.Adam([*weights, nn.Parameter(torch.ones(1))])
    with pytest.raises(ConfigError, match="another optimizer"):
        load_optimizer(more, {"optimizer": saved}, tmp_path)


def test_random_state_round_trip(tmp_path):
    def draw():
        return random.random(), np.random.randn(), torch.rand(()).item()  # noqa: NPY002

    draw()  # leaves a cached second value of randn, which belongs to the state
    save_checkpoint(tmp_path / "x.pt", ENTRIES | {"random": [randomness.capture_random_state()]})
    expected = draw()
    randomness.restore_random_state(load_checkpoint(tmp_path / "x.pt")["random"][0])
    assert draw() == expected


def test_auto_finds_the_newest(tmp_path):
    assert find_resume(None, None, tmp_path) is None
    assert find_resume("auto", None, tmp_path) is None
    for age, name in ((30, "run"), (20, "run-2"), (10, "other")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "last.pt"
        save_checkpoint(path, ENTRIES)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_resume("auto", None, tmp_path).path == tmp_path / "other" / "last.pt"
    assert find_resume("auto", str(tmp_path / "run"), tmp_path).path == tmp_path / "run-2" / "last.pt"
    assert find_resume(str(tmp_path / "run"), None, tmp_path).path == tmp_path / "run" / "last.pt"
    with pytest.raises(DataError, match="no checkpoint"):
        find_resume(str(tmp_path / "absent"), None, tmp_path)

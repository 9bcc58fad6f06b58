"""Whole runs of a tiny config: what they leave, how they resume, and what they do about NaN and Inf."""

from __future__ import annotations

import csv
import errno
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from usreg.config import load_config
from usreg.datasets import DATASET_REGISTRY
from usreg.datasets.deepreg_synthetic import DeepRegSynthetic
from usreg.errors import ConfigError, DataError, UsageError
from usreg.losses import LOSS_REGISTRY
from usreg.metrics import METRIC_REGISTRY
from usreg.models import MODEL_REGISTRY
from usreg.models.warp import warp
from usreg.training import Stopped, checkpoints, interrupts, load_checkpoint, train
from usreg.training.batches import EpochBatches
from usreg.training.interrupts import StopRequest


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(a, b):
    """Bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


class Restless(nn.Module):
    """A model with batch normalisation and dropout: state beside the weights, and a use of the random generator."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.5), nn.Conv3d(4, 3, 1))

    def forward(self, moving, fixed):
        ddf = self.net(torch.cat([moving, fixed], dim=1))
        return warp(moving, ddf), ddf


@pytest.fixture(autouse=True)
def restless(monkeypatch):
    monkeypatch.setitem(MODEL_REGISTRY, "restless", Restless)


RESTLESS = "model={name: restless}"


def test_what_a_run_leaves(train_tiny, tmp_path):
    result = train_tiny("tensorboard.enabled=true")
    assert result.folder.resolve() == tmp_path / "run"
    names = {"last.pt", "best_val_loss.pt", "best_epe.pt", "config.yaml", "metrics.csv", "curves.png"}
    assert {path.name for path in result.folder.iterdir()} == names | {"pictures", "tensorboard"}
    assert len(list((result.folder / "pictures").glob("*.png"))) == 2
    assert list((result.folder / "tensorboard").iterdir())

    table = rows(result.folder)
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert [row["step"] for row in table] == ["3", "6"]
    assert all(float(row[key]) for row in table for key in ("train_loss", "val_loss", "epe", "identity_epe"))
    assert table[0]["dice"] == ""  # absent, not 0
    assert result.evaluation.metrics["epe"] == pytest.approx(float(table[1]["epe"]), rel=1e-5)
    assert result.evaluation.identity["jac_det_min"] == 1.0

    again = load_config(result.folder / "config.yaml")
    assert again.training.epochs == 2
    assert load_checkpoint(result.folder / "last.pt")["config"]["model"]["channels"] == [4, 8]

    shown = train_tiny.output.getvalue()
    for text in ("epoch 1/2", "identity", "absent", "finished in", "run/", "best_epe.pt", "0 skipped"):
        assert text in shown


def test_pictures_are_drawn(tiny_file, fresh_accelerate):
    result = train(load_config(tiny_file, ["training.epochs=1", "val_dataset.num_samples=1"]))
    for picture in [result.folder / "curves.png", *(result.folder / "pictures").iterdir()]:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_overwritten(train_tiny):
    first = train_tiny("training.epochs=1")
    before = (first.folder / "last.pt").read_bytes()
    second = train_tiny("training.epochs=1")
    assert second.folder.name == "run-2"
    assert (first.folder / "last.pt").read_bytes() == before


@pytest.mark.parametrize("model", [(), (RESTLESS,)], ids=["unet", "dropout"])
@pytest.mark.parametrize("stop", ["training.epochs=1", "training.max_steps=4"], ids=["between epochs", "inside one"])
def test_a_resumed_run_is_the_uninterrupted_one(train_tiny, model, stop):
    whole = train_tiny("training.save_dir=whole", *model)
    part = train_tiny("training.save_dir=part", stop, *model)
    rest = train_tiny("training.save_dir=part", "training.resume=auto", *model)
    assert rest.folder == part.folder

    expected, got = (load_checkpoint(r.folder / "last.pt") for r in (whole, rest))
    for key in ("model", "optimizer", "random"):
        assert_same(expected[key], got[key])
    ignored = {"samples_per_second"}
    assert [{k: v for k, v in row.items() if k not in ignored} for row in rows(rest.folder)] == [
        {k: v for k, v in row.items() if k not in ignored} for row in rows(whole.folder)
    ]
    assert rest.evaluation == whole.evaluation


def test_resume_from_a_best_checkpoint_begins_a_new_folder(train_tiny):
    first = train_tiny()
    second = train_tiny("training.epochs=3", f"training.resume={first.folder / 'best_epe.pt'}")
    assert second.folder.name == "run-2"
    assert [row["epoch"] for row in rows(second.folder)] == ["1", "2", "3"]


def test_resume_with_nothing_left(train_tiny):
    train_tiny("training.epochs=1")
    with pytest.raises(UsageError, match=r"1 epochs behind it.*larger training\.epochs"):
        train_tiny("training.epochs=1", "training.resume=auto")


def test_resume_of_another_model(train_tiny, tmp_path):
    train_tiny("training.epochs=1")
    with pytest.raises(ConfigError, match="another model"):
        train_tiny("model.channels=[4,8,8]", "model.strides=[2,2]", "training.resume=run", "training.save_dir=new")
    assert not (tmp_path / "new").exists()


def test_auto_without_a_checkpoint_trains_from_the_beginning(train_tiny):
    train_tiny("training.epochs=1", "training.resume=auto")
    assert "no checkpoint yet" in train_tiny.output.getvalue()


def test_max_steps(train_tiny):
    result = train_tiny("training.max_steps=2", "training.epochs=50")
    assert load_checkpoint(result.folder / "last.pt")["progress"]["step"] == 2
    assert result.evaluation is not None


def test_without_validation(train_tiny):
    result = train_tiny("training.val_every=0")
    assert result.evaluation is None
    assert not (result.folder / "best_val_loss.pt").exists()
    assert (result.folder / "last.pt").exists()
    assert (result.folder / "curves.png").exists()
    assert "no validation" in train_tiny.output.getvalue()


def test_without_a_validation_section(train_tiny, tiny_file):
    text = tiny_file.read_text().splitlines()
    tiny_file.write_text("\n".join(line for line in text if not line.startswith("val_dataset")))
    with pytest.raises(ConfigError, match="val_dataset is missing"):
        train_tiny()
    result = train_tiny("training.val_every=0", "training.epochs=1")
    assert result.evaluation is None
    assert train_tiny("training.val_every=0", f"training.resume={result.folder}", "training.epochs=2").folder


def test_the_last_epoch_is_validated(train_tiny):
    result = train_tiny("training.val_every=2", "training.epochs=3")
    assert [bool(row["val_loss"]) for row in rows(result.folder)] == [False, True, True]


def test_workers(train_tiny):
    alone = train_tiny("training.epochs=1")
    helped = train_tiny("training.epochs=1", "training.num_workers=1")
    assert helped.evaluation == alone.evaluation


class Damaged(DeepRegSynthetic):
    """The synthetic dataset with a NaN in chosen training samples."""

    damaged: tuple[int, ...] = (3,)

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if self.split == "train" and index in self.damaged:
            sample["moving"][0, 3, 3, 3] = math.nan
        return sample


def test_a_bad_batch_is_skipped_and_leaves_no_trace(train_tiny, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY, "damaged", Damaged)
    result = train_tiny(RESTLESS, "train_dataset.name=damaged")
    assert result.skipped == 2
    assert [row["skipped"] for row in rows(result.folder)] == ["1", "1"]
    weights = load_checkpoint(result.folder / "last.pt")["model"]
    assert all(w.isfinite().all() for w in weights.values())
    assert math.isfinite(result.evaluation.loss)
    assert "1 skipped (NaN or Inf: 1 in the inputs)" in train_tiny.output.getvalue()


def test_a_run_of_bad_batches_ends_with_an_error_and_no_checkpoint(train_tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(DATASET_REGISTRY, "damaged", Damaged)
    monkeypatch.setattr(Damaged, "damaged", range(6))
    with pytest.raises(UsageError, match=r"epoch 1 trained nothing: 3 skipped .*check the images"):
        train_tiny("train_dataset.name=damaged")
    assert not list((tmp_path / "run").glob("*.pt"))


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.mean()

    @staticmethod
    def backward(ctx, grad):
        return torch.full((2, 3, 16, 16, 16), math.inf)


class Overflowing(nn.Module):
    """Finite in value; the gradient overflows in the first step of each epoch of three."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, warped, fixed, pred_dvf, gt_dvf):
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls % 3 == 1:
                return InfiniteGradient.apply(pred_dvf)
        return (pred_dvf - gt_dvf).square().mean()


def test_an_overflow_of_the_gradients_is_skipped(train_tiny, monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY, "overflowing", Overflowing)
    result = train_tiny("loss.name=overflowing")
    assert result.skipped == 2
    assert "1 in the gradients" in train_tiny.output.getvalue()
    assert all(w.isfinite().all() for w in load_checkpoint(result.folder / "last.pt")["model"].values())


class Faulty(nn.Module):
    def forward(self, warped, fixed, pred_dvf=None, gt_dvf=None):
        if pred_dvf is None:
            return warped.mean()  # where a fallback to two arguments would end up, unnoticed
        return len(3)


def test_a_type_error_inside_the_loss_reaches_the_user(train_tiny, monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY, "faulty", Faulty)
    with pytest.raises(TypeError, match="has no len"):
        train_tiny("loss.name=faulty")


class Interrupting(nn.Module):
    """Sends the interrupt of a Ctrl-C in the middle of the fifth training step."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, warped, fixed, pred_dvf, gt_dvf):
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == 5:
                os.kill(os.getpid(), signal.SIGINT)
        return (pred_dvf - gt_dvf).square().mean()


def test_ctrl_c_saves_after_the_step_and_says_how_to_go_on(train_tiny, monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY, "interrupting", Interrupting)
    before = signal.getsignal(signal.SIGINT)  # a shell lets what it runs in the background ignore the signal
    with pytest.raises(Stopped, match=r"after step 5; .*training\.resume=run/last\.pt"):
        train_tiny("loss.name=interrupting")
    assert signal.getsignal(signal.SIGINT) is before
    resumed = train_tiny("loss.name=interrupting", "training.resume=run/last.pt")
    whole = train_tiny("loss.name=interrupting", "training.save_dir=whole", "training.max_steps=4")
    assert load_checkpoint(resumed.folder / "last.pt")["progress"]["step"] == 6
    assert rows(resumed.folder)[0]["train_loss"] == rows(whole.folder)[0]["train_loss"]


class Slow(nn.Module):
    """A loss that is asked to stop in its third validation batch, of which the trial before training is the first."""

    signal = signal.SIGTERM

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, warped, fixed, pred_dvf, gt_dvf):
        if not torch.is_grad_enabled():
            self.calls += 1
            if self.calls == 4:
                os.kill(os.getpid(), self.signal)
        return (pred_dvf - gt_dvf).square().mean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_during_validation_leaves_the_epoch_and_resumes_with_the_validation(train_tiny, monkeypatch, number):
    monkeypatch.setitem(LOSS_REGISTRY, "slow", Slow)
    monkeypatch.setattr(Slow, "signal", number)
    arguments = "loss.name=slow", "val_dataset.num_samples=8"
    with pytest.raises(Stopped, match=r"after step 3; .*training\.resume=run/last\.pt"):
        train_tiny(*arguments)
    assert load_checkpoint(Path("run/last.pt"))["progress"]["pending"]
    assert not Path("run/metrics.csv").exists()
    assert not Path("run/best_val_loss.pt").exists()

    monkeypatch.setattr(Slow, "signal", 0)  # asks whether the process is there
    resumed = train_tiny(*arguments, "training.resume=auto")
    assert "step 3, whose validation comes first" in train_tiny.output.getvalue()
    whole = train_tiny(*arguments, "training.save_dir=whole")
    assert_same_run(resumed, whole)


def test_a_second_ctrl_c_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(interrupts, "SAME_PRESS", 0.0)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_an_interrupt_that_a_launcher_passes_on_is_the_same_one():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested


def assert_same_run(one, other):
    """The same weights, moments, random states, table and validation, bit for bit."""
    contents = [load_checkpoint(result.folder / "last.pt") for result in (one, other)]
    for key in ("model", "loss", "optimizer", "random", "progress"):
        assert_same(contents[0][key], contents[1][key])
    tables = [
        [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows(r.folder)] for r in (one, other)
    ]
    assert tables[0] == tables[1]
    assert one.evaluation == other.evaluation


def test_a_metric_that_fails_loses_nothing(train_tiny, monkeypatch):
    tried = []

    def mine(ddf):
        tried.append(1)
        if len(tried) > 3:  # twice in the trial, and the identity
            raise ValueError("a bug in my metric")
        return ddf.flatten(1).mean(1)

    monkeypatch.setitem(METRIC_REGISTRY, "mine", mine)
    with pytest.raises(ValueError, match="a bug"):
        train_tiny()
    assert "training.resume=run/last.pt" in train_tiny.output.getvalue()
    monkeypatch.setitem(METRIC_REGISTRY, "mine", lambda ddf: ddf.flatten(1).mean(1))
    assert_same_run(train_tiny("training.resume=run"), train_tiny("training.save_dir=whole"))


def test_values_that_the_warp_lost_are_counted_and_named(train_tiny, monkeypatch):
    """A structure without a voxel has no surface distance, and the mean over the others may look better."""

    def mine(ddf):
        values = torch.tensor([[3.0, 9.0]]).repeat(len(ddf), 1)
        if ddf.any():
            values[:, 1] = math.nan
        return values

    monkeypatch.setitem(METRIC_REGISTRY, "hd95", mine)
    result = train_tiny("val_dataset.num_samples=3")
    assert result.evaluation.lost == {"hd95": 3}
    assert result.evaluation.metrics["hd95"] == 3.0
    text = train_tiny.output.getvalue()
    assert "3 lost" in text
    assert "the warp has lost" in text


def refuse_to_write(monkeypatch, name, after=0):
    """The file system has no room for checkpoints of this name from the ``after``-th on."""
    write, seen = checkpoints.save_checkpoint, []

    def save(path, entries):
        if path.name == name:
            seen.append(1)
            if len(seen) > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, entries)

    monkeypatch.setattr("usreg.training.trainer.save_checkpoint", save)


def test_a_full_disk_is_named(train_tiny, monkeypatch):
    refuse_to_write(monkeypatch, "last.pt")
    with pytest.raises(UsageError, match=r"run: No space left on device; no checkpoint was written"):
        train_tiny()


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(train_tiny, monkeypatch):
    with monkeypatch.context() as context:
        refuse_to_write(context, "best_epe.pt")
        with pytest.raises(UsageError, match=r"No space left on device; the state is in run/last\.pt"):
            train_tiny()
    rest = train_tiny("training.resume=run")
    assert (rest.folder / "best_epe.pt").exists()


class Unreadable(DeepRegSynthetic):
    """The synthetic dataset with a sample that cannot be read."""

    broken: int | None = None

    def __getitem__(self, index):
        if self.split == "train" and index == self.broken and torch.is_grad_enabled():  # not while it is tried out
            raise DataError(f"case {index}: the file is gone")
        return super().__getitem__(index)


def test_a_sample_that_cannot_be_loaded_leaves_what_was_trained(train_tiny, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY, "unreadable", Unreadable)
    in_the_last_batch = list(EpochBatches(6, 2, seed=42))[2][0]
    monkeypatch.setattr(Unreadable, "broken", in_the_last_batch)
    with pytest.raises(DataError, match="the file is gone"):
        train_tiny("train_dataset.name=unreadable", RESTLESS)
    saved = load_checkpoint(Path("run/last.pt"))["progress"]
    assert (saved["samples"], saved["step"]) == (4, 2)
    monkeypatch.setattr(Unreadable, "broken", None)
    rest = train_tiny("train_dataset.name=unreadable", RESTLESS, "training.resume=run")
    assert_same_run(rest, train_tiny("train_dataset.name=unreadable", RESTLESS, "training.save_dir=whole"))


class Listing(DeepRegSynthetic):
    """The synthetic dataset, which notes what was loaded for training."""

    loaded: tuple[str, ...] = ()

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if self.split == "train":
            Listing.loaded += (sample["case"],)
        return sample


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_another_batch_size_neither_skips_nor_repeats(train_tiny, monkeypatch, batch_size):
    monkeypatch.setitem(DATASET_REGISTRY, "listing", Listing)
    monkeypatch.setattr(Listing, "loaded", ())
    base = "train_dataset.name=listing", "train_dataset.num_samples=7", "training.epochs=1"
    train_tiny(*base, "training.max_steps=2")
    before = Listing.loaded[3:7]  # one was looked at for its channels, and the first two were tried out
    Listing.loaded = ()
    tried = 1 + min(batch_size, 7)
    result = train_tiny(*base, "training.resume=run", f"training.batch_size={batch_size}")
    assert "after 4 of 7 samples" in train_tiny.output.getvalue()
    after = Listing.loaded[tried : tried + 3]
    assert sorted((*before, *after)) == [f"train[{i}]" for i in range(7)]
    assert load_checkpoint(result.folder / "last.pt")["progress"]["step"] == 2 + -(-3 // batch_size)


def test_another_dataset_inside_an_epoch_is_refused(train_tiny):
    train_tiny("training.max_steps=2")
    for change in ("train_dataset.num_samples=8", "training.seed=1"):
        with pytest.raises(ConfigError, match=r"4 samples into epoch 1, of 6 samples .*others used twice"):
            train_tiny("training.resume=run", change)
    train_tiny("training.epochs=1", "training.save_dir=whole")
    result = train_tiny("training.resume=whole", "train_dataset.num_samples=8")
    assert load_checkpoint(result.folder / "last.pt")["progress"]["step"] == 3 + 4


class Learnable(nn.Module):
    """Weights that are learned (uncertainty weighting), and a counter of training steps in a buffer."""

    def __init__(self):
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.modes = []

    def forward(self, warped, fixed, pred_dvf, gt_dvf):
        self.modes.append((self.training, torch.is_grad_enabled()))
        if self.training:
            self.steps += 1
        terms = torch.stack([(warped - fixed).square().mean(), (pred_dvf - gt_dvf).square().mean()])
        return (terms * (-self.log_var).exp() + self.log_var).sum()


def test_what_a_loss_keeps_is_trained_and_saved(train_tiny, monkeypatch):
    made = []
    monkeypatch.setitem(LOSS_REGISTRY, "learnable", lambda: made.append(Learnable()) or made[-1])
    whole = train_tiny("loss={name: learnable}", "training.save_dir=whole")
    assert "the loss has 2 weights of its own" in train_tiny.output.getvalue()
    assert all(training is graded for training, graded in made[0].modes)
    kept = load_checkpoint(whole.folder / "last.pt")["loss"]
    assert kept["steps"] == 6
    assert (kept["log_var"].abs() > 3e-3).all()  # six steps of 1e-3

    train_tiny("loss={name: learnable}", "training.max_steps=4")
    rest = train_tiny("loss={name: learnable}", "training.resume=run")
    contents = [load_checkpoint(result.folder / "last.pt") for result in (rest, whole)]
    for key in ("model", "loss", "optimizer", "random"):
        assert_same(contents[0][key], contents[1][key])
    with pytest.raises(ConfigError, match="another loss, with weights or buffers"):
        train_tiny("loss={name: mse}", "training.resume=whole", "training.epochs=3")


class Detached(nn.Module):
    def forward(self, warped, fixed):
        return (warped.detach() - fixed).square().mean()


def test_a_loss_without_a_gradient_is_refused(train_tiny, monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY, "detached", Detached)
    with pytest.raises(ConfigError, match="Detached has no gradient"):
        train_tiny("loss={name: detached}")


class PerSample(nn.Module):
    def forward(self, warped, fixed):
        return (warped - fixed).abs().mean(dim=(1, 2, 3, 4))


class NotAPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 1)

    def forward(self, moving, fixed):
        return self.conv(torch.cat([moving, fixed], dim=1))


class Halving(nn.Module):
    """A network that halves its input as often as it is told, and doubles it again: a plugin's U-Net."""

    def __init__(self, times=4, strict=False, image_size=None, equal=False):
        super().__init__()
        assert not equal or len(set(image_size)) == 1
        self.times, self.strict = times, strict
        self.conv = nn.Conv3d(2, 3, 1)

    def forward(self, moving, fixed):
        pair = torch.cat([moving, fixed], dim=1)
        coarse = nn.functional.avg_pool3d(pair, 2**self.times)
        again = nn.functional.interpolate(coarse, scale_factor=2**self.times)
        if self.strict:
            again = again + pair
        return again[:, :1], self.conv(again)


class Mistaken(NotAPair):
    """Has a mistake that has nothing to do with the size."""

    def forward(self, moving, fixed):
        return self.missing(moving, fixed)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            "{name: halving, strict: true}",
            [16, 20, 16],
            r"model 'halving' cannot use image_size \[16, 20, 16\]: RuntimeError: The size of tensor a \(16\) must "
            r"match .*\. It takes image_size \[16, 32, 16\]",
        ),
        ("{name: halving, times: 3}", [9, 16, 20], r"must return \(warped, ddf\) .*It takes image_size \[16, 16, 24\]"),
        ("{name: halving, equal: true}", [16, 16, 32], r"AssertionError: .*It takes image_size \[32, 32, 32\]"),
    ],
)
def test_a_size_that_a_model_cannot_use_is_explained(train_tiny, monkeypatch, tmp_path, model, size, message):
    monkeypatch.setitem(MODEL_REGISTRY, "halving", Halving)
    with pytest.raises(ConfigError, match=message):
        train_tiny(f"model={model}", f"image_size={size}")
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_a_model_keeps_its_traceback(train_tiny, monkeypatch):
    monkeypatch.setitem(MODEL_REGISTRY, "mistaken", Mistaken)
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        train_tiny("model={name: mistaken}")


class Unreduced(nn.Module):
    def forward(self, warped, fixed):
        return (warped - fixed).square()


class Shapeless(DeepRegSynthetic):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"fixed": sample["fixed"][:, 1:]}


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model={name: not_a_pair}", ConfigError, r"must return \(warped, ddf\)"),
        ("loss={name: unreduced}", ConfigError, "one number"),
        ("loss={name: per_sample}", ConfigError, r"one number to minimise, not \(2,\)"),
        ("train_dataset.name=shapeless", DataError, r"moving \(1, 16, 16, 16\) and fixed \(1, 15, 16, 16\)"),
        ("loss={name: lncc_dice}", ConfigError, "label"),
    ],
)
def test_parts_that_do_not_fit_are_found_before_anything_is_written(
    train_tiny, monkeypatch, tmp_path, override, error, message
):
    monkeypatch.setitem(MODEL_REGISTRY, "not_a_pair", NotAPair)
    monkeypatch.setitem(LOSS_REGISTRY, "unreduced", Unreduced)
    monkeypatch.setitem(LOSS_REGISTRY, "per_sample", PerSample)
    monkeypatch.setitem(DATASET_REGISTRY, "shapeless", Shapeless)
    with pytest.raises(error, match=message):
        train_tiny(override)
    assert not (tmp_path / "run").exists()

"""The command line: whatever the user can put right ends with code 2 and a message, before anything is written."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from usreg.train import main
from usreg.training import load_checkpoint

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "quick_drawing")


def save_volume(path: Path, scale: float = 1.0) -> str:
    values = scale * np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path.name


@pytest.fixture
def manifest(tiny_file: Path) -> Path:
    """A manifest of one good case for training and one for validation, beside the tiny config."""
    folder = tiny_file.parent
    train = {key: save_volume(folder / f"{key}.nii.gz") for key in ("moving", "fixed")}
    val = {key: save_volume(folder / f"val_{key}.nii.gz") for key in ("moving", "fixed")}
    path = folder / "cases.json"
    path.write_text(json.dumps({"train": [train], "val": [val]}))
    return path


def custom(manifest: Path) -> list[str]:
    return [f"{split}_dataset={{name: custom_dataset, json_file: {manifest}}}" for split in ("train", "val")]


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expect a refusal that leaves nothing behind, and return its text."""
    before = set(Path().iterdir())
    assert main(list(arguments)) == 2
    assert set(Path().iterdir()) == before
    error = capsys.readouterr().err
    assert "error: " in error
    assert "Traceback" not in error
    return error


def test_trains(tiny_file, capsys):
    assert main(["training.epochs=1", "--config", str(tiny_file), "loss.dvf_weight=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "identity" in shown
    assert "\x1b" not in shown  # no control characters where the output is no terminal
    assert "\r" not in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_trains_on_files(tiny_file, manifest):
    assert main(["--config", str(tiny_file), *custom(manifest), "loss={name: lncc}", "training.epochs=1"]) == 0


@pytest.mark.parametrize("lists", [{"val": []}, {}])
@pytest.mark.parametrize("val_every", [0, 1])
def test_trains_on_files_without_validation(tiny_file, manifest, capsys, lists, val_every):
    manifest.write_text(json.dumps({"train": json.loads(manifest.read_text())["train"], **lists}))
    more = ["loss={name: lncc}", "training.epochs=1", f"training.val_every={val_every}"]
    assert main(["--config", str(tiny_file), *custom(manifest), *more]) == 0
    assert "no validation" in capsys.readouterr().out


def test_a_misspelt_validation_list_is_no_training_without_validation(tiny_file, manifest, capsys):
    lists = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"train": lists["train"], "vals": lists["val"]}))
    assert "Did you mean 'vals'" in refuse(capsys, "--config", str(tiny_file), *custom(manifest), "loss={name: lncc}")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["trainig.epochs=3"], ["trainig", "Did you mean 'training'"]),
        (["training.epoch=3"], ["training.epoch", "epochs", "command line"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "fast"]),
        (["optimizer.name=sgdd"], ["optimizer.name", "Did you mean 'SGD'", "AdamW"]),
        (["optimizer.name=lbfgs"], ["optimizer.name", "several passes"]),
        (["optimizer.momentum=0.9"], ["optimizer.momentum", "the optimizer Adam", "betas"]),
        (["optimizer={name: SGD, lr: 0.01, momentum: -1}"], ["SGD", "momentum"]),
        (["scheduler={name: cosinus}"], ["unknown scheduler", "Did you mean 'cosine'"]),
        (["scheduler={name: cosine, gamma: 0.5}"], ["scheduler.gamma", "eta_min"]),
        (["scheduler={name: plateau, metric: dyce}"], ["scheduler.metric", "Did you mean 'dice'"]),
        (["training.best=dyce"], ["training.best", "Did you mean 'dice'"]),
        (["training.best=[jac_det_mean]"], ["training.best", "jac_det_mean:max or jac_det_mean:min"]),
        (["training.best=[dice]"], ["training.best", "'dice' needs what", "epe"]),
        (["training.metric_every={hd96: 2}"], ["training.metric_every", "hd95"]),
        (["training.freeze=[encoder*]"], ["training.freeze", "encoder*", "network.0"]),
        (["training.freeze=['*']"], ["training.freeze holds all"]),
        (["training.init_from=absent"], ["absent"]),
        (["training.ema=1"], ["training.ema", "between 0 and 1"]),
        (["optimizer.lr=???"], ["optimizer.lr"]),
        (["training.epochs=-1"], ["training.epochs", "at least 1"]),
        (["image_size=[16]"], ["image_size", "[D, H, W]", "[H, W]"]),
        (["device=cuda:99"], ["cuda:99", "cpu"]),
        (["plugins=[no_such_module]"], ["no_such_module"]),
        (["loss.name=lnc"], ["lnc", "lncc"]),
        (["model={name: localnet}"], ["localnet3d"]),
        (["train_dataset.name=deepreg"], ["deepreg_synthetic"]),
        (["loss.kernel_size=4"], ["kernel_size", "odd"]),
        (["loss.window=9"], ["window"]),
        (["train_dataset.num_samples=0"], ["num_samples"]),
        (["model={name: globalnet3d}", "train_dataset.image_size=[8,8,8]"], ["built for images of [16, 16, 16]"]),
        (["training.resume=absent.pt"], ["absent.pt", "training.resume"]),
        (["training.save_dir=tiny.yaml/run"], ["tiny.yaml/run", "training.save_dir"]),
        (["epochs"], ["key=value"]),
    ],
    ids=lambda x: x[0] if isinstance(x, list) and "=" in x[0] else "",
)
def test_bad_settings(tiny_file, capsys, overrides, parts):
    error = refuse(capsys, "--config", str(tiny_file), *overrides)
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no configuration file"),
        ("[1, 2", "not a valid configuration file"),
        ("- 1\n- 2", "top level"),
        ("project: x", "missing"),
        ("project: !!python/object/apply:os.mkdir [ran]", "not a valid configuration file"),
    ],
)
def test_bad_config_files(tiny_file, capsys, content, part):
    file = tiny_file.with_name("other.yaml")
    if content is not None:
        file.write_text(content)
    assert part in refuse(capsys, "--config", str(file))


def change(manifest: Path, **keys: object) -> None:
    """Change the training case of a manifest; None removes a key."""
    content = json.loads(manifest.read_text())
    content["train"][0] = {k: v for k, v in (content["train"][0] | keys).items() if v is not None}
    manifest.write_text(json.dumps(content))


def corrupt(manifest: Path) -> None:
    volume = manifest.with_name("moving.nii.gz")
    volume.write_bytes(volume.read_bytes()[:-20])


def no_label(manifest: Path) -> None:
    labels = {f"{side}_label": save_volume(manifest.with_name(f"{side}_label.nii.gz")) for side in ("moving", "fixed")}
    save_volume(manifest.with_name("moving_label.nii.gz"), scale=8)
    change(manifest, **labels)


def lonely_label(manifest: Path) -> None:
    change(manifest, moving_label=save_volume(manifest.with_name("moving_label.nii.gz")))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda m: m.unlink(), ["cases.json"]),
        (lambda m: m.write_text("{"), ["cases.json"]),
        (lambda m: m.write_text('{"train": [], "val": []}'), ["cases.json", "train"]),
        (lambda m: change(m, fixed=None), ["fixed"]),
        (lambda m: change(m, fixed="absent.nii.gz"), ["absent.nii.gz"]),
        (corrupt, ["moving.nii.gz"]),
        (lambda m: m.with_name("fixed.nii.gz").write_bytes(b"no volume"), ["fixed.nii.gz"]),
        (no_label, ["moving_label", "whole numbers"]),
        (lonely_label, ["moving_label", "fixed_label"]),
    ],
    ids=[
        "no manifest", "no JSON", "empty", "missing key", "missing file", "cut short", "no NIfTI", "no label",
        "label without pair",
    ],
)  # fmt: skip
def test_bad_data(tiny_file, manifest, capsys, spoil, parts):
    spoil(manifest)
    error = refuse(capsys, "--config", str(tiny_file), *custom(manifest), "loss={name: lncc}")
    for part in parts:
        assert part in error


def test_a_missing_tracker_is_named_with_its_command(tiny_file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    error = refuse(capsys, "--config", str(tiny_file), "wandb.enabled=true")
    assert 'pip install "usreg[wandb]"' in error


def test_a_missing_library_is_named_with_its_command(tiny_file, capsys, monkeypatch):
    monkeypatch.setattr("usreg.train._run", lambda *_: __import__("accelerate_is_not_here"))
    with pytest.raises(ModuleNotFoundError):  # a library that is not usreg's is the user's own bug
        main([])

    def without_monai(*_):
        raise ModuleNotFoundError("No module named 'monai'", name="monai")

    monkeypatch.setattr("usreg.train._run", without_monai)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert "training needs monai" in error
    assert 'pip install "usreg[train]"' in error
    monkeypatch.setitem(sys.modules, "rich.logging", None)
    assert main([]) == 2
    assert "training needs rich" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "key=value" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_as_one_run(tiny_file):
    """Only the main process writes, a bad batch of one process is skipped by both, and none waits for ever."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "usreg.train",
    ]
    overrides = ["train_dataset.num_samples=7", "training.epochs=2", "plugins=[broken]", "device=null"]
    plugin = """
import math
from usreg.datasets import register_dataset
from usreg.datasets.deepreg_synthetic import DeepRegSynthetic

@register_dataset("broken")
class Broken(DeepRegSynthetic):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index == 5 and self.split == "train":
            sample["moving"][0, 0, 0, 0] = math.nan
        return sample
"""
    tiny_file.with_name("broken.py").write_text(plugin)
    done = subprocess.run(
        [*command, "--config", str(tiny_file), *overrides, "train_dataset.name=broken", "val_dataset.num_samples=3"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished in") == 1
    assert "2 processes" in done.stdout
    assert "2 skipped (NaN or Inf: 2 in the inputs)" in done.stdout
    assert [path.name for path in Path().glob("run*")] == ["run"]


@pytest.mark.slow
def test_two_processes_are_one_of_twice_the_batch(tiny_file):
    """With batch normalisation, weights of the loss, accumulated batches and averages; the order of sums differs."""
    plugin = """
import torch
from usreg.losses import register_loss

class Weighted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.log_var = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, warped, fixed, pred_dvf, gt_dvf):
        if self.training:
            self.seen += 1
        terms = torch.stack([(warped - fixed).square().mean(), (pred_dvf - gt_dvf).square().mean()])
        return (terms * (-self.log_var).exp() + self.log_var).sum()

register_loss("weighted")(lambda **_: Weighted())
"""
    tiny_file.with_name("weighted.py").write_text(plugin)
    settings = [
        "plugins=[weighted]", "loss={name: weighted}", "optimizer={name: SGD, lr: 1e-2, momentum: 0.9}",
        "model={name: localnet3d, num_channel_initial: 4, depth: 2, checkpointing: true}",
        "train_dataset.num_samples=8", "val_dataset.num_samples=3", "training.accumulate=2", "training.ema=0.9",
        "scheduler={name: cosine, warmup_steps: 1}", "training.best=[epe]",
    ]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "usreg.train"]
    done = subprocess.run(
        [*command, "--config", str(tiny_file), *settings, "training.batch_size=1", "training.save_dir=two"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert main(["--config", str(tiny_file), *settings, "training.batch_size=2", "training.save_dir=one"]) == 0
    one, two = (load_checkpoint(Path(name) / "last.pt") for name in ("one", "two"))
    for entry, rounding in (("model", 1e-5), ("loss", 1e-5)):
        for name, value in one[entry].items():
            torch.testing.assert_close(two[entry][name].float(), value.float(), rtol=1e-4, atol=rounding)
    assert (one["loss"]["log_var"] != 0).all()
    for name, value in one["ema"]["model"].items():
        torch.testing.assert_close(two["ema"]["model"][name], value, rtol=1e-4, atol=1e-5)
    tables = []
    for folder in ("one", "two"):
        with (Path(folder) / "metrics.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for first, second in zip(*tables, strict=True):
        for key in set(first) - {"samples_per_second"}:
            assert bool(first[key]) is bool(second[key]), key
            if first[key]:
                assert float(second[key]) == pytest.approx(float(first[key]), rel=1e-3, abs=1e-5), key


def launch_and_end(tiny_file, how, number, everybody):
    """Start two processes by a launcher, send it a signal in the middle, wait for the end of all; what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *how]
    settings = ["train_dataset.num_samples=40", "training.epochs=10000", "training.resume=auto", "device=null"]
    workers: list[int] = []
    with Path("log").open("w") as log, subprocess.Popen(
        [*command, "-m", "usreg.train", "--config", str(tiny_file), *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=log, stderr=log,
    ) as launcher:  # fmt: skip
        try:
            wait_until(lambda: Path("run/last.pt").exists() or launcher.poll() is not None)
            workers += children_of(launcher.pid)
            assert len(workers) == 2, Path("log").read_text()
            for process in [*workers, launcher.pid] if everybody else [launcher.pid]:
                os.kill(process, number)
            assert launcher.wait(60) != 0
            wait_until(lambda: not any(map(state_of, workers)))
        finally:
            launcher.kill()
            for worker in filter(state_of, workers):
                os.kill(worker, signal.SIGKILL)
    return Path("log").read_text()


def wait_until(true):
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, Path("log").read_text()
        time.sleep(0.05)


def children_of(process):
    """The processes that a process started and that still run."""
    found = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [child for child in found if state_of(child)[1:2] == [str(process)]]


def state_of(process):
    """State and parent of a process; empty where it has ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if words[0] in "ZX" else words[:2]


ALL_SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a session are read from /proc")
@pytest.mark.parametrize(
    ("how", "number", "everybody"),
    [([], signal.SIGTERM, False), ([ALL_SIGNALS], signal.SIGUSR1, True), ([], signal.SIGUSR1, False)],
    ids=["SIGTERM", "SIGUSR1 to all", "SIGUSR1 that ends the launcher only"],
)
def test_a_launcher_that_is_asked_to_stop_leaves_a_checkpoint_and_nobody_behind(tiny_file, how, number, everybody):
    said = launch_and_end(tiny_file, how, number, everybody)
    assert said.count("stopped after step") == 1
    step = load_checkpoint(Path("run/last.pt"))["progress"]["step"]
    assert f"stopped after step {step};" in said
    rest = ["train_dataset.num_samples=40", "training.resume=auto", "training.epochs=10000"]
    assert main(["--config", str(tiny_file), *rest, f"training.max_steps={step + 2}"]) == 0
    assert load_checkpoint(Path("run/last.pt"))["progress"]["step"] == step + 2


def test_processes_that_do_not_find_each_other_are_refused(tiny_file, capsys, monkeypatch):
    """As on a machine with a GPU, where a launcher does not say which process is which."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    error = refuse(capsys, "--config", str(tiny_file), "device=null")
    assert "2 processes were started and Accelerate joins 1" in error


def test_one_step_of_the_default_config_on_triton_has_the_loss_of_the_reference(tmp_path: Path) -> None:
    """The default config at a tiny size, in Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    size = [
        "image_size=[8, 8, 8]",
        "train_dataset.num_samples=1",
        "val_dataset.num_samples=1",
        "model.channels=[4, 8]",
        "model.strides=[2]",
    ]
    step = ["training.max_steps=1", "training.val_every=0", "training.batch_size=1", "training.num_workers=0"]
    losses = {}
    for backend in ("triton", "reference"):
        folder = tmp_path / backend
        command = [sys.executable, "-m", "usreg.train", *size, *step, "tensorboard.enabled=false"]
        done = subprocess.run(
            [*command, f"training.save_dir={folder}"],
            env={**os.environ, "USREG_BACKEND": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        header, row = (folder / "metrics.csv").read_text().splitlines()
        losses[backend] = float(row.split(",")[header.split(",").index("train_loss")])
    assert losses["triton"] == pytest.approx(losses["reference"], rel=1e-5)
    assert losses["triton"] < 0

"""Configuration: reading, overrides, checks of every key and value, and that a file runs no code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from usreg.config import Config, load_config, save_config
from usreg.errors import ConfigError

BASE: dict[str, Any] = {
    "project": "demo",
    "image_size": [16, 16, 16],
    "train_dataset": {"name": "deepreg_synthetic", "num_samples": 4},
    "val_dataset": {"name": "deepreg_synthetic", "num_samples": 2},
    "model": {"name": "localnet3d"},
    "loss": {"name": "lncc_dvf", "kernel_size": 5, "params": {"dvf_weight": 0.5}},
    "optimizer": {"lr": 1e-4},
    "training": {"epochs": 2, "batch_size": 1},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write BASE with some top-level sections replaced (None removes one); returns the file."""

    def write_config(**sections: Any) -> Path:
        content = {key: value for key, value in {**BASE, **sections}.items() if value is not None}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write_config


def test_defaults_are_those_of_the_reference(write: Callable[..., Path]) -> None:
    config = load_config(write())
    assert isinstance(config, Config)
    assert config.image_size == [16, 16, 16]
    assert (config.device, config.plugins) == (None, [])
    assert config.tensorboard.enabled
    assert vars(config.wandb) == {"enabled": False, "project": None, "run_name": None, "offline": False}
    assert vars(config.optimizer) == {"name": "Adam", "lr": 1e-4, "weight_decay": 0.0, "options": {}}
    assert vars(config.training) == {
        "epochs": 2,
        "batch_size": 1,
        "num_workers": 4,
        "amp": True,
        "amp_dtype": "float16",
        "val_every": 1,
        "seed": 42,
        "clip_grad_norm": 1.0,
        "accumulate": 1,
        "ema": None,
        "freeze": [],
        "init_from": None,
        "best": ["val_loss", "epe"],
        "keep": 0,
        "patience": None,
        "metric_every": {},
        "save_dir": None,
        "resume": None,
        "max_steps": None,
        "amp_init_scale": None,
    }
    assert config.loss == {"name": "lncc_dvf", "kernel_size": 5, "dvf_weight": 0.5}


def test_packaged_default_loads() -> None:
    assert load_config(None).train_dataset["name"] == "deepreg_synthetic"


def test_scientific_notation_is_a_float(tmp_path: Path, write: Callable[..., Path]) -> None:
    file = write()
    file.write_text(file.read_text().replace("lr: 0.0001", "lr: 1e-4"))
    assert "1e-4" in file.read_text()
    config = load_config(file, ["loss.smooth_nr=1e-3", "optimizer.weight_decay=1e-2"])
    assert (config.optimizer.lr, config.loss["smooth_nr"], config.optimizer.weight_decay) == (1e-4, 1e-3, 1e-2)


def test_empty_sections_mean_their_defaults(write: Callable[..., Path]) -> None:
    file = write()
    file.write_text(file.read_text() + "wandb:\ntensorboard:\nplugins:\n")
    config = load_config(file)
    assert (config.wandb.enabled, config.tensorboard.enabled, config.plugins) == (False, True, [])


def test_saved_configuration_loads_to_the_same(tmp_path: Path, write: Callable[..., Path]) -> None:
    config = load_config(write(), ["optimizer.name=adamw", "model.depth=2", "training.max_steps=7"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=7", lambda c: c.training.epochs == 7),
        ("train_dataset.json_file=/x/y z.json", None),
        ("image_size=[8,16,24]", lambda c: c.image_size == [8, 16, 24]),
        ("image_size[1]=32", lambda c: c.image_size == [16, 32, 16]),
        ("training.clip_grad_norm=null", lambda c: c.training.clip_grad_norm is None),
        ("training.resume=none", lambda c: c.training.resume is None),
        ("training.resume=auto", lambda c: c.training.resume == "auto"),
        ("optimizer.name=ADAMW", lambda c: c.optimizer.name == "AdamW"),
        ("loss={name: mse}", lambda c: c.loss == {"name": "mse"}),
        ("loss.params.dvf_weight=2", lambda c: c.loss["dvf_weight"] == 2.0),
        ("loss.dvf_weight=2", lambda c: c.loss["dvf_weight"] == 2.0),
        ("project=a=b", lambda c: c.project == "a=b"),
        ("val_dataset.num_samples=${train_dataset.num_samples}", lambda c: c.val_dataset["num_samples"] == 4),
        ("wandb.offline=true", lambda c: c.wandb.offline is True),
        ("device=cpu", lambda c: c.device == "cpu"),
    ],
)
def test_overrides(write: Callable[..., Path], override: str, read: Callable[[Config], bool] | None) -> None:
    file = write()
    if read is not None:
        assert read(load_config(file, [override]))
    else:
        overrides = ["train_dataset.name=custom_dataset", override]
        assert load_config(file, overrides).train_dataset == {"name": "custom_dataset", "json_file": "/x/y z.json"}


def test_overrides_apply_in_order(write: Callable[..., Path]) -> None:
    assert load_config(write(), ["training.epochs=3", "training.epochs=4"]).training.epochs == 4


def test_another_name_keeps_only_the_keys_it_knows(
    write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = write()
    config = load_config(file, ["loss.name=lncc", "loss.kernel_type=gaussian"])
    assert config.loss == {"name": "lncc", "kernel_size": 5, "kernel_type": "gaussian"}
    assert f"loss.kernel_size in {file} stays" in caplog.text
    assert f"loss.params.dvf_weight in {file} is dropped" in caplog.text
    with pytest.raises(ConfigError, match=r"loss\.dvf_weight on the command line is not a key of the loss 'lncc'"):
        load_config(file, ["loss.name=lncc", "loss.dvf_weight=1.0"])


BAD_OVERRIDES = {
    "training.epochs": "must have the form key=value, as in training.epochs=2",
    "=3": "must have the form key=value",
    "training..epochs=3": "must have the form key=value",
    "training.epoch=3": "training.epoch on the command line is not a key .* Did you mean 'epochs'. Valid: acc.*val_",
    "trainin.epochs=3": "trainin on the command line is not a key of the configuration. Did you mean 'training'",
    "training.epochs=many": "training.epochs on the command line is 'many'; it must be an integer",
    "training.epochs=1.5": "training.epochs .* is 1.5; it must be an integer",
    "training.epochs=true": "training.epochs .* is true; it must be an integer",
    "training.epochs=null": "training.epochs .* is null; it must be an integer",
    "training.epochs=0": "training.epochs .* is 0; it must be an integer of at least 1",
    "training.batch_size=0": "training.batch_size .* at least 1",
    "training.num_workers=-1": "training.num_workers .* at least 0",
    "training.val_every=-1": "training.val_every .* at least 0",
    "training.seed=-1": "training.seed .* at least 0",
    "training.max_steps=0": "training.max_steps .* above 0, or null",
    "training.clip_grad_norm=0": "training.clip_grad_norm .* above 0, or null",
    "training.amp_init_scale=.inf": "training.amp_init_scale .* above 0, or null",
    "training.amp_dtype=float8": "training.amp_dtype .* is 'float8'; it must be float16 or bfloat16",
    "training.epochs=[1": "cannot apply 'training.epochs=\\[1' from the command line",
    "training=3": "training on the command line is 3; it must be a section of keys",
    "training={epochs: 1}": "training.batch_size is missing .*it needs an integer",
    "optimizer.lr=0": "optimizer.lr on the command line is 0.0; it must be a finite number above 0",
    "optimizer.lr=.nan": "optimizer.lr .* above 0",
    "optimizer.weight_decay=-1": "optimizer.weight_decay .* 0 or more",
    "optimizer.name=sgdd": "optimizer.name on the command line: 'sgdd' is no optimizer .* Did you mean 'SGD'",
    "optimizer.momentum=1": "optimizer.momentum on the command line is not a key of the optimizer Adam",
    "training.ema=1": "training.ema .* between 0 and 1",
    "training.accumulate=0": "training.accumulate .* at least 1",
    "image_size=[16]": "image_size .* is \\[16\\]; it must be three positive integers .*, or two of slices",
    "image_size=[16,16,0]": "image_size .* three positive integers",
    "image_size=16": "image_size .* is 16; it must be a list of integers",
    "project=${nowhere}": "cannot resolve project of the configuration",
    "project.deeper=3": "project on the command line is {'deeper': 3}; it must be text or null",
    "wandb.enabled=perhaps": "wandb.enabled on the command line is 'perhaps'; it must be true or false",
    "device=gpu": "device on the command line is 'gpu'; it must be a device of this machine: cpu",
    "loss=lncc": "loss on the command line is 'lncc'; it must be a section of keys",
    "loss=null": "loss on the command line is null; it must be a section of keys",
    "loss={kernel_size: 3}": "loss .*needs a 'name', one of: dice, dice_smooth, folding, lncc",
    "loss.name=lnc": "loss on the command line: unknown loss 'lnc'. Did you mean 'lncc'. Known: dice, dice_smooth, ",
    "loss.kernel=3": "loss.kernel .* is not a key of the loss 'lncc_dvf'. Did you mean 'kernel_size'",
    "loss.kernel_size=nine": "loss.kernel_size .* is 'nine'; it must be an integer or a list of integers",
    "loss.kernel_size=[3,a]": "loss.kernel_size .* must be an integer or a list of integers",
    "loss.params=3": "loss.params must be a section of keys, not 3",
    "loss.params.kernel=3": "loss.params.kernel on the command line is not a key of the loss",
    "model.name=unet": "model on the command line: unknown model 'unet'",
    "model.depth=deep": "model.depth on the command line is 'deep'; it must be an integer",
    "train_dataset.split=val": "train_dataset.split .* is not a key of the dataset 'deepreg_synthetic'",
    "val_dataset={name: custom_dataset}": "val_dataset.json_file is missing",
    "plugins=my_module": "plugins .* is 'my_module'; it must be a list of texts",
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_override(write: Callable[..., Path], override: str) -> None:
    with pytest.raises(ConfigError, match=BAD_OVERRIDES[override]):
        load_config(write(), [override])


@pytest.mark.parametrize(
    "key", ["image_size", "train_dataset", "val_dataset", "model", "loss", "optimizer", "training"]
)
def test_missing_section_is_named_with_the_file(write: Callable[..., Path], key: str) -> None:
    missing = {"optimizer": "optimizer.lr", "training": "training.epochs"}.get(key, key)
    file = write(**{key: None})
    with pytest.raises(ConfigError, match=f"{missing} is missing in {file}"):
        load_config(file)


def test_errors_name_the_file(write: Callable[..., Path]) -> None:
    file = write(loss={"name": "lncc", "kernel_sise": 3})
    with pytest.raises(ConfigError, match=f"loss.kernel_sise in {file} is not a key of the loss 'lncc'. Did you mean"):
        load_config(file)
    file = write(training={"epochs": "x", "batch_size": 1})
    with pytest.raises(ConfigError, match=f"training.epochs in {file} is 'x'; it must be an integer"):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not a valid configuration file: .*line"),
        ("loss: {}\nloss: {}", "found duplicate key loss"),
        ("- 1\n- 2", "must hold keys and values at its top level, not a list"),
        ("just text", "is missing|not a key|not a valid configuration file"),
        ("3", "not a valid configuration file: it holds no keys"),
        ("", "image_size is missing"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)broken\.yaml.*({message})|({message}).*broken\.yaml"):
        load_config(file)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"])
def test_no_tag_of_a_file_runs_code(tmp_path: Path, write: Callable[..., Path], tag: str) -> None:
    trace = tmp_path / "ran"
    file = write()
    file.write_text(file.read_text().replace("project: demo", f"project: {tag} ['touch {trace}']"))
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load_config(file)
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load_config(write(), [f"project={tag} ['touch {trace}']"])
    assert not trace.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"device in .* is 'cuda'; it must be a device of this machine: cpu"):
        load_config(write(device="cuda"))


def test_large_learning_rate_warns(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    load_config(write())
    assert not caplog.records
    load_config(write(), ["optimizer.lr=2e-3"])
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "0.002 is above 0.001" in caplog.text


def test_question_marks_are_a_missing_key(write: Callable[..., Path]) -> None:
    file = write(train_dataset={"name": "custom_dataset", "json_file": "???"})
    with pytest.raises(ConfigError, match=f"train_dataset.json_file is missing in {file}: it needs text"):
        load_config(file)
    assert load_config(file, ["train_dataset.json_file=/x"]).train_dataset["json_file"] == "/x"

"""Every shipped config parses, and its parts can be built."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from usreg.config import load_config
from usreg.datasets import build_dataset
from usreg.errors import ConfigError
from usreg.losses import build_loss
from usreg.models import build_model
from usreg.registration.stages import load_stages

FOLDER = Path(str(resources.files("usreg"))) / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != "register")  # which is no training
NEED_FILES = {"mrus_prostate"}


def given_files(config: Path) -> list[str]:
    """What must be given on the command line."""
    return [f"{s}_dataset.json_file=cases.json" for s in ("train", "val")] if config.stem in NEED_FILES else []


def test_there_are_configs():
    assert {"deepreg_synthetic", "mrus_prostate"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_builds(path):
    config = load_config(path, given_files(path))
    build_model(config.model, image_size=config.image_size)
    build_loss(config.loss)
    if path.stem not in NEED_FILES:
        for split, section in (("train", config.train_dataset), ("val", config.val_dataset)):
            assert build_dataset(section, split=split, image_size=config.image_size)[0]["moving"].dim() == 4


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem in NEED_FILES], ids=lambda path: path.stem)
def test_the_files_must_be_given(path):
    with pytest.raises(ConfigError, match=r"train_dataset\.json_file"):
        load_config(path)


def test_the_registration_parses():
    config, stages = load_stages()
    assert [stage.stage for stage in stages] == ["affine", "greedy"]
    for stage in stages:
        build_loss(stage.loss)
    assert config.start == "headers"

"""The tables of docs/ name every key that the code takes, and every file of a registration."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from usreg.config import Config, OptimizerConfig, TensorBoardConfig, TrainingConfig, WandbConfig
from usreg.datasets import DATASET_REGISTRY
from usreg.losses import LOSS_REGISTRY
from usreg.metrics import METRIC_REGISTRY
from usreg.models import MODEL_REGISTRY

DOCS = Path(__file__).parent.parent / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
LOSSES = (DOCS / "custom_losses.md").read_text()
GIVEN_BY_THE_LOOP = {"split"}
DROP_RATES = {"drop_rate", "attn_drop_rate", "dropout_path_rate"}  # "drop rates" in the table


@pytest.mark.parametrize("section", [Config, OptimizerConfig, TrainingConfig, TensorBoardConfig, WandbConfig])
def test_every_key_of_the_config_is_documented(section: type) -> None:
    missing = [
        f.name for f in fields(section) if f"{f.name}`" not in CONFIGURATION and f"{f.name}." not in CONFIGURATION
    ]
    assert not missing


@pytest.mark.parametrize(
    ("registry", "page"),
    [(LOSS_REGISTRY, LOSSES), (MODEL_REGISTRY, CONFIGURATION), (DATASET_REGISTRY, CONFIGURATION)],
    ids=["losses", "models", "datasets"],
)
def test_every_component_and_its_keys_are_documented(registry, page: str) -> None:
    builtin = [name for name, factory in registry.items() if factory.__module__.startswith("usreg.")]
    assert builtin
    for name in builtin:
        assert f"`{name}`" in page
        keys = set(registry.accepted(name).parameters) - GIVEN_BY_THE_LOOP - DROP_RATES
        assert not [key for key in keys if f"`{key}`" not in page]


def test_every_metric_is_documented() -> None:
    assert not [name for name in METRIC_REGISTRY if f"`{name}`" not in CONFIGURATION]


def test_every_file_of_a_registration_is_in_the_overview() -> None:
    """Each row names a folder, and then its files."""
    page = (DOCS / "architecture.md").read_text()
    section = page.partition("\n## From a pair to its transform\n")[2].partition("\n## ")[0]
    named = set()
    for row in section.splitlines():
        folder = ""
        for name in re.findall(r"`([\w/.]+)`", row.rpartition(" | ")[2]):
            if name.endswith("/"):
                folder = name
            else:
                named.add(name if "/" in name else folder + name)
    registration = DOCS.parent / "usreg" / "registration"
    files = {str(file.relative_to(registration)) for file in registration.rglob("*.py") if file.name != "__init__.py"}
    assert named == files

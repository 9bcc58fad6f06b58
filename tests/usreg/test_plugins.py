"""Plugins: where they are found, what they may register, how their failures and their keys' types are reported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from usreg.config import load_config
from usreg.errors import ConfigError
from usreg.losses import LOSS_REGISTRY, register_loss


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a small configuration with some sections added; returns the file."""
    dataset = {"name": "synthetic_ellipsoids", "num_samples": 1}

    def write_config(**sections: Any) -> Path:
        content = {
            "image_size": [16, 16, 16],
            "train_dataset": dataset,
            "val_dataset": dataset,
            "model": {"name": "localnet3d"},
            "loss": {"name": "mse"},
            "optimizer": {"lr": 1e-4},
            "training": {"epochs": 1, "batch_size": 1},
            **sections,
        }
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write_config


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what plugins leave behind: modules, the import path, registered losses."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, losses = set(sys.modules), dict(LOSS_REGISTRY)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]
    LOSS_REGISTRY.clear()
    LOSS_REGISTRY.update(losses)


PLUGIN = """
from usreg.losses import register_loss
from torch import nn

@register_loss("{name}")
def make({argument}, **_):
    return nn.L1Loss()
"""


@pytest.mark.usefixtures("clean_imports")
def test_plugin_beside_the_file_and_in_the_current_directory(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "plugin_beside.py").write_text(PLUGIN.format(name="plugin_one", argument="scale: float = 1.0"))
    (elsewhere / "plugin_current.py").write_text(PLUGIN.format(name="plugin_two", argument="scale: int = 1"))
    monkeypatch.chdir(elsewhere)
    file = write(plugins=["plugin_beside", "plugin_current"], loss={"name": "plugin_one", "scale": 2})
    assert load_config(file).loss == {"name": "plugin_one", "scale": 2.0}
    with pytest.raises(ConfigError, match=r"loss\.scael .* is not a key of .* 'plugin_two'. Did you mean 'scale'"):
        load_config(file, ["loss={name: plugin_two, scael: 2}"])


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "cannot import 'plugin_bad': ModuleNotFoundError.* It is neither installed nor in "),
        ("import nowhere_at_all", "cannot import 'plugin_bad': ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", "cannot import 'plugin_bad': ZeroDivisionError: division by zero"),
        (
            "from .nowhere import x",
            "attempted relative import.* Import by full names instead, as in 'from usreg.losses",
        ),
        ("def broken(:", "cannot import 'plugin_bad': SyntaxError: .*plugin_bad.py, line 1"),
    ],
)
def test_plugin_that_fails_gives_the_cause(
    tmp_path: Path, write: Callable[..., Path], code: str | None, message: str
) -> None:
    if code is not None:
        (tmp_path / "plugin_bad.py").write_text(code)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(plugins=["plugin_bad"]))
    assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("clean_imports")
def test_two_plugins_of_one_name_are_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    for module in ("plugin_first", "plugin_second"):
        (tmp_path / f"{module}.py").write_text(PLUGIN.format(name="plugin_same", argument="scale=1"))
    with pytest.raises(ConfigError, match=r"already registered by plugin_first\.make; plugin_second\.make needs"):
        load_config(write(plugins=["plugin_first", "plugin_second"]))


@pytest.mark.parametrize("given", ["plugin_file.py", "folder/plugin_file"])
def test_plugin_given_as_a_file(write: Callable[..., Path], given: str) -> None:
    with pytest.raises(ConfigError, match="Give the name of the module, 'plugin_file', not of its file"):
        load_config(write(plugins=[given]))


def test_import_path_is_left_alone_without_plugins(write: Callable[..., Path]) -> None:
    before = list(sys.path)
    load_config(write())
    assert sys.path == before


@pytest.mark.usefixtures("clean_imports")
def test_types_come_from_the_signature(write: Callable[..., Path]) -> None:
    @register_loss("plugin_typed")
    def make(
        size: tuple[int, int, int] | None = None,
        folder: Path = Path(),
        mode: object = "a",
        weights: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None: ...

    def loss(**keys: Any) -> dict[str, Any]:
        return load_config(write(loss={"name": "plugin_typed", **keys})).loss

    assert loss(size=[1, 2, 3], folder="/x", mode=[1], other={"a": 1}) == {
        "name": "plugin_typed",
        "size": [1, 2, 3],
        "folder": "/x",
        "mode": [1],
        "other": {"a": 1},
    }
    assert loss(weights={"a": 1})["weights"] == {"a": 1.0}
    with pytest.raises(ConfigError, match=r"loss\.weights .* must be a section of keys or null"):
        loss(weights=3)

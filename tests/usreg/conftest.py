"""Fixtures of the usreg tests: tiny configs, and a fresh Accelerate and working directory where a run is trained."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from usreg.training import Result

TINY = """\
project: tiny
image_size: [16, 16, 16]
device: cpu
tensorboard: {enabled: false}
train_dataset: {name: deepreg_synthetic, num_samples: 6}
val_dataset: {name: deepreg_synthetic, num_samples: 2}
model: {name: unetreg3d, channels: [4, 8], strides: [2], num_res_units: 0}
loss: {name: lncc_dvf, kernel_size: 3}
optimizer: {lr: 1e-3}
training: {epochs: 2, batch_size: 2, num_workers: 0, save_dir: run}
"""
"""Three steps an epoch; a run of two epochs takes about a second."""


@pytest.fixture
def tiny_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file that trains in about a second; the working directory is temporary, so runs go there."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def train_tiny(tiny_file: Path, fresh_accelerate: None, quick_drawing: None) -> Callable[..., Result]:
    """Trains the tiny config with overrides, and returns the result; the output is on ``train_tiny.output``."""
    from rich.console import Console

    from usreg.config import load_config
    from usreg.training import Reporter, train

    output = io.StringIO()

    def run(*overrides: str) -> Result:
        return train(load_config(tiny_file, overrides), Reporter(Console(file=output, width=120)))

    run.output = output  # type: ignore[attr-defined]
    return run


@pytest.fixture
def quick_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files for the pictures, which take ten times as long as the training of the tiny config."""
    from usreg.training import final_report

    monkeypatch.setattr(final_report, "save_registration_figure", lambda path, *_, **__: path.touch())
    monkeypatch.setattr(final_report, "save_curves", lambda path, _: path.touch())


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps device and precision in process-wide state, which must not leak from one run to the next."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

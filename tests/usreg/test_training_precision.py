"""Loss scaling: an overflow lowers the scale and changes no weight, a bad batch changes neither."""

from __future__ import annotations

import math

import pytest
import torch

from usreg.config import Config, load_config
from usreg.training import prepare_run, setup
from usreg.training.console import Reporter, make_console
from usreg.training.interrupts import StopRequest
from usreg.training.trainer import Trainer

INITIAL_SCALE = 2.0**16

on_cuda = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


def scaled_accelerator(config: Config):
    """Accelerate refuses float16 on a CPU; torch itself has the scaler there, which is all that is tested."""
    accelerator = make_accelerator(config)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_SCALE)
    return accelerator


make_accelerator = setup.make_accelerator


@pytest.fixture(params=["cpu", on_cuda])
def trainer(request, tiny_file, fresh_accelerate, monkeypatch) -> Trainer:
    if request.param == "cpu":
        monkeypatch.setattr(setup, "make_accelerator", scaled_accelerator)
    overrides = [f"device={request.param}", "training.amp=true", f"training.amp_init_scale={INITIAL_SCALE}"]
    run = prepare_run(load_config(tiny_file, overrides))
    run.model.train()
    return Trainer(run, Reporter(make_console(quiet=True)))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.run.network.parameters()])


def test_overflow_and_bad_input(trainer):
    scaler = trainer.run.accelerator.scaler
    batch = next(trainer.run.train.epoch())
    batch = {k: v.to(trainer.run.accelerator.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    start = weights(trainer)

    assert trainer.step([batch], StopRequest()).bad is None
    assert not torch.equal(weights(trainer), start)
    assert scaler.get_scale() == INITIAL_SCALE

    start = weights(trainer)
    bad = batch | {"moving": torch.full_like(batch["moving"], math.nan)}
    assert trainer.step([bad], StopRequest()).bad == "inputs"
    assert torch.equal(weights(trainer), start)
    assert scaler.get_scale() == INITIAL_SCALE

    scaler.update(2.0**126)  # no gradient fits
    assert trainer.step([batch], StopRequest()).bad == "gradients"
    assert torch.equal(weights(trainer), start)
    assert scaler.get_scale() == 2.0**125

    scaler.update(INITIAL_SCALE)
    assert trainer.step([batch], StopRequest()).bad is None
    assert not torch.equal(weights(trainer), start)

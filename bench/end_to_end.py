"""Where the losses are used: a training step, and a registration that optimises a displacement field itself.

Ours and MONAI's run side by side from the same start, in turns, and must arrive at the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
from torch import nn

import usreg_kernels as uk
from bench.cases import WINDOW
from bench.timing import Times, interleave
from usreg.config import load_config
from usreg.datasets.synthetic import SyntheticEllipsoids
from usreg.losses.utils import MIN_SMOOTH_DR, MIN_SMOOTH_NR
from usreg.models.warp import warp
from usreg.training import LossCall, Trainer, prepare_run
from usreg.training.console import Reporter, make_console
from usreg.training.interrupts import StopRequest

OURS, MONAI = "USReg", "MONAI"
NAMES = (OURS, MONAI)

SMOOTHNESS_WEIGHT = 0.1
STEPS_PER_ROUND = 3


@dataclass(frozen=True)
class Training:
    """A training step with one of the losses.

    Attributes:
        step: times of whole steps, the loss's part included.
        loss: times of the loss's forward and backward pass alone, on the same volumes.
        last_loss: the training loss after all steps.
    """

    step: Times
    loss: Times
    last_loss: float


def training(size: int, rounds: int, device: str, folder: Path) -> dict[str, Training]:
    """Steps of the default config with ``lncc`` instead of its loss, volumes of size^3; the same with MONAI's class."""
    last: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name in NAMES:
        trainer, batch = _trainer(name, size, device, folder)

        def whole(name: str = name, trainer: Trainer = trainer, batch: dict = batch) -> None:
            last[name] = trainer.step(batch, StopRequest()).loss

        def alone(trainer: Trainer = trainer, batch: dict = batch) -> None:
            warped = batch["moving"].clone().requires_grad_()
            trainer.run.loss_call(warped, batch["dvf"], batch).backward()

        runs |= {f"step {name}": whole, f"loss {name}": alone}
    # One step a turn, or the faster one would train further in the same time.
    times = interleave(runs, rounds * STEPS_PER_ROUND, device=device)
    return {name: Training(times[f"step {name}"], times[f"loss {name}"], last[name]) for name in NAMES}


def _trainer(name: str, size: int, device: str, folder: Path) -> tuple[Trainer, dict]:
    settings = [
        f"image_size=[{size},{size},{size}]",
        f"loss={{name: lncc, kernel_size: {WINDOW}}}",
        f"device={device}",
        "tensorboard.enabled=false",
        "training.num_workers=0",
        "train_dataset.num_samples=2",
        "val_dataset.num_samples=1",
        f"training.save_dir={folder / name}",
    ]
    run = prepare_run(load_config(None, settings))
    if name == MONAI:
        smooth = {"smooth_nr": MIN_SMOOTH_NR, "smooth_dr": MIN_SMOOTH_DR}  # what `lncc` raises its defaults to
        run.loss_call = LossCall(LocalNormalizedCrossCorrelationLoss(3, WINDOW, **smooth))
    run.model.train()
    batch = send_to_device(next(run.train.epoch()), run.accelerator.device)
    return Trainer(run, Reporter(make_console(quiet=True))), batch


@dataclass(frozen=True)
class Registration:
    """What one of the two losses made of a pair of volumes.

    Attributes:
        times: of each iteration: warp, loss, backward, Adam.
        before: similarity (mean squared local correlation, 0 to 1, in float64) of moving and fixed.
        after: similarity of warped and fixed.
        field: the displacements (1, 3, D, H, W), voxels.
    """

    times: Times
    before: float
    after: float
    field: torch.Tensor


def registration(
    spatial: tuple[int, int, int], iterations: int, learning_rate: float, device: str
) -> dict[str, Registration]:
    """Adam on the displacement of every voxel, with LNCC and diffusion, from 0; ours and MONAI's in turns.

    Args:
        spatial: size of the volumes.
        iterations: of each of the two.
        learning_rate: Adam's, voxels: about what a displacement changes by in an iteration.
        device: ``"cpu"`` or ``"cuda"``.
    """
    sample = SyntheticEllipsoids(1, spatial)[0]
    moving, fixed = (sample[key][None].to(device) for key in ("moving", "fixed"))
    losses: dict[str, tuple[nn.Module, nn.Module]] = {
        OURS: (uk.LNCCLoss(kernel_size=WINDOW), uk.GradientSmoothnessLoss(scheme="central")),
        MONAI: (LocalNormalizedCrossCorrelationLoss(3, WINDOW), DiffusionLoss()),
    }
    fields = {name: torch.zeros(1, 3, *spatial, device=device, requires_grad=True) for name in NAMES}

    def iteration(name: str) -> Callable[[], None]:
        field, (similarity, smoothness) = fields[name], losses[name]
        adam = torch.optim.Adam([field], lr=learning_rate)

        def run() -> None:
            adam.zero_grad()
            loss = similarity(warp(moving, field), fixed) + SMOOTHNESS_WEIGHT * smoothness(field)
            loss.backward()
            adam.step()

        return run

    times = interleave({name: iteration(name) for name in NAMES}, iterations - 1, device=device)  # one is the warm-up
    before = _similarity(moving, fixed)
    return {
        name: Registration(times[name], before, _similarity(warp(moving, field.detach()), fixed), field.detach())
        for name, field in fields.items()
    }


def _similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of whole volumes in float64, by our fastest backend for it: the reference takes ten seconds a brain."""
    return -uk.lncc_loss(first.double(), second.double(), kernel_size=WINDOW).item()

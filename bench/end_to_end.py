"""Where the losses are used: a training step, and a registration that optimises a displacement field itself.

Ours and MONAI's run side by side from the same start, in turns, and must arrive at the same place. MONAI's LNCC sums
windows by convolutions. A GPU computes those in TF32 unless it is told otherwise, with 10 bits of each factor, and then
MONAI's variances may even be negative. A GPU also trains in half precision. So on a GPU both run twice: once in float32
without TF32, which is what is compared, and once as torch and the config have it, which is what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import usreg_kernels as uk
from bench import gpu
from bench.cases import WINDOW
from bench.contenders import import_failure, third_party_warnings_ignored
from bench.failures import Failure, attempt
from bench.gpu import Run
from bench.timing import Times, interleave

if TYPE_CHECKING:
    from usreg.training import Trainer

OURS, MONAI = "USReg", "MONAI"
NAMES = (OURS, MONAI)
OUR_LOSSES = "USReg losses, MONAI warp"
REGISTERED = (OURS, OUR_LOSSES, MONAI)
"""Registrations: our warp, losses and Adam; our losses, with MONAI's warp and torch's Adam; nothing of ours."""

SMOOTHNESS_WEIGHT = 0.1
STEPS_PER_ROUND = 3

LOSS_TOLERANCE = 1e-3
"""How far the training losses of the two may lie apart after the same steps in float32."""

QUALITY_TOLERANCE = 0.01
"""How far the final similarities of the two may lie apart: both are sums of the same terms in another order."""


def missing() -> str | None:
    """Why nothing here can run in this environment; None where it can. The functions below import these modules."""
    reasons = (import_failure(name) for name in ("accelerate", "monai.losses", "usreg.training"))
    return next((reason for reason in reasons if reason is not None), None)


def is_rounded(device: str) -> bool:
    """Whether training and convolutions there are not computed in float32."""
    return device == "cuda"


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions of float32 are computed in float32."""
    previous = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = previous


@dataclass(frozen=True)
class Training:
    """A training step with one of the losses.

    Attributes:
        step: times of whole steps, the loss's part included.
        loss: times of the loss's forward and backward pass only, on the same volumes.
        last_loss: the training loss after all timed steps.
        checked_loss: the same after as many steps in float32 without TF32; None where they failed.
    """

    step: Times
    loss: Times
    last_loss: float
    checked_loss: float | None


Trainings = dict[str, "Training | Failure"]


def training(size: int, rounds: int, device: str, folder: Path) -> Trainings:
    """Steps of the default config with ``lncc`` instead of its loss, volumes of size^3; the same with MONAI's class."""
    steps = rounds * STEPS_PER_ROUND
    checked: dict[str, float] = {}
    if is_rounded(device):
        with without_tf32():
            _, checked, _ = _train(size, steps, device, folder / "checked", amp=False)
    times, last, failures = _train(size, steps, device, folder / "timed", amp=True)
    found: Trainings = dict(failures)
    for name in NAMES:
        if name not in failures:
            check = checked.get(name) if is_rounded(device) else last[name]
            found[name] = Training(times[f"step {name}"], times[f"loss {name}"], last[name], check)
    return found


def wrong_training(found: Trainings) -> str | None:
    """What is wrong with ours; None where it agrees with MONAI's as far as both ran."""
    runs = {name: run for name, run in found.items() if isinstance(run, Training)}
    if OURS not in runs:
        return None
    checked = {name: run.checked_loss for name, run in runs.items() if run.checked_loss is not None}
    if OURS not in checked:
        return "ours failed in float32 without TF32"
    if any(not abs(loss - checked[OURS]) <= LOSS_TOLERANCE for loss in checked.values()):
        return f"the losses differ after the same steps in float32: {checked}"
    if not -1 - LOSS_TOLERANCE <= runs[OURS].last_loss <= 0:
        return f"the last loss of ours is {runs[OURS].last_loss}, and LNCC runs from -1 to 0"
    return None


def _train(
    size: int, steps: int, device: str, folder: Path, amp: bool
) -> tuple[dict[str, Times], dict[str, float], dict[str, Failure]]:
    """Times of ``step NAME`` and ``loss NAME``; by name, the loss after the last step, and failures."""
    last: dict[str, float] = {}
    runs: dict[str, Run] = {}
    failures: dict[str, Failure] = {}
    for name in NAMES:
        made = attempt(_runs_of_trainer, name, size, device, folder, amp, last)
        if isinstance(made, Failure):
            failures[name] = made
            gpu.survive(device, f"the training with {name} failed with {made}")
        else:
            runs |= made
    in_turns: dict[str, Failure] = {}
    # One step a turn, or the faster one would train further in the same time.
    times = interleave(runs, steps, device=device, failures=in_turns)
    failures |= {run.partition(" ")[2]: failure for run, failure in in_turns.items()}
    return times, last, failures


def _runs_of_trainer(
    name: str, size: int, device: str, folder: Path, amp: bool, last: dict[str, float]
) -> dict[str, Run]:
    from usreg.training.interrupts import StopRequest

    trainer, batch = _trainer(name, size, device, folder, amp)

    def whole() -> None:
        last[name] = trainer.step([batch], StopRequest()).loss

    def only_loss() -> None:
        warped = batch["moving"].clone().requires_grad_()
        trainer.run.loss_call(warped, batch["dvf"], batch).backward()

    return {f"step {name}": whole, f"loss {name}": only_loss}


def quick_settings(device: str, folder: Path, amp: bool) -> list[str]:
    """Settings of a training that only takes steps on one batch."""
    return [
        f"device={device}",
        "tensorboard.enabled=false",
        f"training.amp={str(amp).lower()}",
        "training.num_workers=0",
        "train_dataset.num_samples=2",
        "val_dataset.num_samples=1",
        f"training.save_dir={folder}",
    ]


def monai_lncc() -> nn.Module:
    """MONAI's LNCC with the smoothing terms that ``lncc`` raises its defaults to."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    from usreg.losses.utils import MIN_SMOOTH_DR, MIN_SMOOTH_NR

    loss: nn.Module = LocalNormalizedCrossCorrelationLoss(3, WINDOW, smooth_nr=MIN_SMOOTH_NR, smooth_dr=MIN_SMOOTH_DR)
    return loss


def _trainer(name: str, size: int, device: str, folder: Path, amp: bool) -> tuple[Trainer, dict[str, Any]]:
    from accelerate.utils import send_to_device

    from usreg.config import load_config
    from usreg.training import LossCall, Trainer, prepare_run
    from usreg.training.console import Reporter, make_console

    settings = [
        f"image_size=[{size},{size},{size}]",
        f"loss={{name: lncc, kernel_size: {WINDOW}}}",
        *quick_settings(device, folder / name, amp),
    ]
    run = prepare_run(load_config(None, settings))
    if name == MONAI:
        run.loss_call = LossCall(monai_lncc())
    run.model.train()
    batch = send_to_device(next(run.train.epoch()), run.accelerator.device)
    return Trainer(run, Reporter(make_console(quiet=True))), batch


@dataclass(frozen=True)
class Registration:
    """What one of the contenders made of a pair of volumes.

    Attributes:
        times: of each iteration: warp, loss, backward, Adam.
        before: similarity (mean squared local correlation, 0 to 1, in float64) of moving and fixed.
        after: similarity of warped and fixed.
        checked: the same after as many iterations without TF32; None where they failed.
        field: the displacements (1, 3, D, H, W), voxels.
    """

    times: Times
    before: float
    after: float
    checked: float | None
    field: torch.Tensor


Registrations = dict[str, "Registration | Failure"]


def registration(spatial: tuple[int, int, int], iterations: int, learning_rate: float, device: str) -> Registrations:
    """Adam on the displacement of every voxel, with LNCC and diffusion, from 0; all contenders in turns.

    Args:
        spatial: size of the volumes.
        iterations: of each of them.
        learning_rate: Adam's, voxels: about what a displacement changes by in an iteration.
        device: ``"cpu"`` or ``"cuda"``.
    """
    from usreg.datasets.synthetic import SyntheticEllipsoids

    sample = SyntheticEllipsoids(1, spatial)[0]
    moving, fixed = (sample[key][None].to(device) for key in ("moving", "fixed"))
    register = partial(_register, moving, fixed, iterations, learning_rate, device)
    checked: dict[str, float] = {}
    if is_rounded(device):
        with without_tf32():
            fields, times, _ = register()
        checked = {name: _similarity(fields[name], moving, fixed) for name in times}
    fields, times, failures = register()
    found: Registrations = dict(failures)
    before = _similarity(torch.zeros_like(fields[OURS]), moving, fixed)
    for name in times:
        after = _similarity(fields[name], moving, fixed)
        check = checked.get(name) if is_rounded(device) else after
        found[name] = Registration(times[name], before, after, check, fields[name])
    return found


def wrong_registration(found: Registrations) -> str | None:
    """What is wrong with ours; None where it arrives where MONAI's does, as far as both ran."""
    runs = {name: run for name, run in found.items() if isinstance(run, Registration)}
    if OURS not in runs:
        return None
    arrived = {f"{name} without TF32": run.checked for name, run in runs.items() if run.checked is not None}
    arrived[OURS] = runs[OURS].after
    if any(not abs(after - arrived[OURS]) <= QUALITY_TOLERANCE for after in arrived.values()):
        return f"the similarities differ after the same iterations: {arrived}"
    return None


def _register(
    moving: torch.Tensor, fixed: torch.Tensor, iterations: int, learning_rate: float, device: str
) -> tuple[dict[str, torch.Tensor], dict[str, Times], dict[str, Failure]]:
    """By name, the field, the times of the iterations but the first, and failures."""
    from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import Warp

    with third_party_warnings_ignored():
        block = Warp()
    ours = (uk.LNCCLoss(kernel_size=WINDOW), uk.GradientSmoothnessLoss(scheme="central"))
    steps: dict[str, tuple[Callable, nn.Module, nn.Module, Callable]] = {
        OURS: (uk.warp, *ours, uk.optim.FieldAdam),
        OUR_LOSSES: (block, *ours, torch.optim.Adam),
        MONAI: (block, LocalNormalizedCrossCorrelationLoss(3, WINDOW), DiffusionLoss(), torch.optim.Adam),
    }
    fields = {name: torch.zeros(1, 3, *fixed.shape[2:], device=fixed.device, requires_grad=True) for name in steps}

    def iteration(name: str) -> Callable[[], None]:
        field, (warp, similarity, smoothness, make_adam) = fields[name], steps[name]
        adam = make_adam([field], lr=learning_rate)

        def run() -> None:
            adam.zero_grad()
            loss = similarity(warp(moving, field), fixed) + SMOOTHNESS_WEIGHT * smoothness(field)
            loss.backward()
            adam.step()

        return run

    failures: dict[str, Failure] = {}
    runs = {name: iteration(name) for name in steps}
    times = interleave(runs, iterations - 1, device=device, failures=failures)  # one is the warm-up
    return {name: field.detach() for name, field in fields.items()}, times, failures


def _similarity(field: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor) -> float:
    """Of the warped and the fixed volume, in float64, by our fastest backend: the reference takes 10 s a brain."""
    warped = uk.warp(moving, field)
    return -uk.lncc_loss(warped.double(), fixed.double(), kernel_size=WINDOW).item()

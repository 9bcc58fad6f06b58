"""``python -m bench.accuracy``: the errors of LNCC in float32, ours and MONAI's, against the float64 reference.

The inputs are rounded to float32 first, so that all see the same numbers. Errors are relative: of the loss, and of
the gradient's L2 norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss

import usreg_kernels as uk
from bench.cases import Loss
from bench.hard_data import PAIRS

SHAPE = (1, 1, 40, 44, 48)
WINDOWS = (3, 5, 7, 9, 15)
OURS, MONAI = "ours", "MONAI"


@dataclass(frozen=True)
class Row:
    """The errors of one contender on one pair of volumes."""

    data: str
    window: int
    contender: str
    loss: float
    gradient: float


def rows(device: str = "cpu") -> Iterator[Row]:
    """All errors on a device."""
    for name, make in PAIRS.items():
        pred, target = (volume.float().contiguous().to(device) for volume in make(SHAPE))
        for window in WINDOWS:
            losses = {OURS: _ours(window), MONAI: LocalNormalizedCrossCorrelationLoss(3, window)}
            for contender, loss in losses.items():
                yield Row(name, window, contender, *errors(loss, window, pred, target))


def errors(loss: Loss, window: int, pred: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Relative errors of a loss (pred, target) against the float64 reference on the same numbers."""
    value, gradient = loss_and_gradient(loss, pred, target)
    with uk.use_backend("reference"):
        expected, wanted = loss_and_gradient(_ours(window), pred.double(), target.double())
    return ((value - expected).abs() / expected.abs()).item(), ((gradient - wanted).norm() / wanted.norm()).item()


def loss_and_gradient(loss: Loss, pred: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient to pred, in float64."""
    leaf = pred.detach().clone().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    assert leaf.grad is not None
    return value.detach().double(), leaf.grad.double()


def _ours(window: int) -> Loss:
    return lambda pred, target: uk.lncc_loss(pred, target, kernel_size=window)


def main() -> None:
    """Print the table."""
    print("| data | window | ours: loss | ours: gradient | MONAI: loss | MONAI: gradient |\n|---|---|---|---|---|---|")
    found = rows()
    for ours in found:
        monai = next(found)
        numbers = (ours.loss, ours.gradient, monai.loss, monai.gradient)
        print(f"| {ours.data} | {ours.window} | " + " | ".join(f"{number:.0e}" for number in numbers) + " |")


if __name__ == "__main__":
    main()

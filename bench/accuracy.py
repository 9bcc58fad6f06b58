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
from bench.outcomes import Error
from bench.steps import error_of, reference, step

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
                error = _errors(loss, window, pred, target)
                assert error.gradient is not None
                yield Row(name, window, contender, error.loss, error.gradient)


def _errors(loss: Loss, window: int, pred: torch.Tensor, target: torch.Tensor) -> Error:
    """Of a loss (pred, target) and its gradient to pred, on the same numbers."""
    inputs = [pred.clone().requires_grad_(), target]
    value = step(loss, *inputs)()
    return error_of(value, inputs[0].grad, reference(_ours(window), inputs))


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

"""``python -m bench.accuracy``: the errors of LNCC in float32, ours and MONAI's, against the float64 reference.

The inputs are rounded to float32 first, so that all see the same numbers. Errors are relative: of the loss, and of
the gradient's L2 norm.
"""

from __future__ import annotations

import torch

import usreg_kernels as uk
from bench.contenders import Loss, monai_lncc
from bench.hard_data import PAIRS

SHAPE = (1, 1, 40, 44, 48)
WINDOWS = (3, 5, 7, 9, 15)


def loss_and_gradient(loss: Loss, pred: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient to pred, in float64."""
    leaf = pred.detach().clone().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    assert leaf.grad is not None
    return value.detach().double(), leaf.grad.double()


def errors(loss: Loss, window: int, pred: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Relative errors of a loss (pred, target) against the float64 reference on the same numbers."""

    def reference(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return uk.lncc_loss(pred, target, kernel_size=window)

    value, gradient = loss_and_gradient(loss, pred, target)
    with uk.use_backend("reference"):
        expected, wanted = loss_and_gradient(reference, pred.double(), target.double())
    return ((value - expected).abs() / expected.abs()).item(), ((gradient - wanted).norm() / wanted.norm()).item()


def main() -> None:
    """Print the table."""
    names = "ours: loss | ours: gradient | MONAI: loss | MONAI: gradient"
    print(f"| data | window | {names} |\n|---|---|---|---|---|---|")
    for name, make in PAIRS.items():
        pred, target = (volume.float().contiguous() for volume in make(SHAPE))
        for window in WINDOWS:

            def ours(pred: torch.Tensor, target: torch.Tensor, window: int = window) -> torch.Tensor:
                return uk.lncc_loss(pred, target, kernel_size=window)

            found = [error for loss in (ours, monai_lncc(window)) for error in errors(loss, window, pred, target)]
            print(f"| {name} | {window} | " + " | ".join(f"{error:.0e}" for error in found) + " |")


if __name__ == "__main__":
    main()

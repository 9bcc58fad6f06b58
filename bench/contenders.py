"""What the kernels are compared with: MONAI's classes, and the best that plain PyTorch can do."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F

Loss = Callable[..., torch.Tensor]


def monai_lncc(kernel_size: int, kernel_type: str = "rectangular") -> Loss:
    """MONAI's LNCC, eager."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    return LocalNormalizedCrossCorrelationLoss(3, kernel_size, kernel_type)


def torch_lncc(kernel_size: int, smooth_dr: float = 1e-5) -> Loss:
    """LNCC with window means by separable average pooling of all five maps at once, compiled."""

    def window_mean(x: torch.Tensor) -> torch.Tensor:
        for axis in range(3):
            size = [kernel_size if a == axis else 1 for a in range(3)]
            x = F.avg_pool3d(x, size, stride=1, padding=[s // 2 for s in size])
        return x

    def loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        volume = float(kernel_size**3)
        maps = torch.stack([pred, target, pred * pred, target * target, pred * target], dim=2).flatten(1, 2)
        means = window_mean(maps).unflatten(1, (-1, 5))
        p, t, pp, tt, pt = means.unbind(2)
        cross = (pt - p * t) * volume
        var_p = ((pp - p * p) * volume).clamp(min=smooth_dr)
        var_t = ((tt - t * t) * volume).clamp(min=smooth_dr)
        return -(cross * cross / (var_p * var_t)).mean()

    return torch.compile(loss)


def eager_smoothness(dvf: torch.Tensor) -> torch.Tensor:
    """Forward differences as anybody would write them."""
    return sum(torch.diff(dvf, dim=axis).pow(2).mean() for axis in (2, 3, 4))  # type: ignore[return-value]


def monai_bending_energy(dvf: torch.Tensor) -> torch.Tensor:
    """MONAI's bending energy, eager."""
    from monai.losses import BendingEnergyLoss

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")
        return BendingEnergyLoss()(dvf)


def step(loss: Loss, *inputs: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One forward and backward pass, the gradient going to every input that needs one."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def run() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*inputs)
        value.backward()
        return value

    return run

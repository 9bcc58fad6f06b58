"""Greedy diffeomorphic registration: small smooth steps, composed.

Each iteration smooths the gradient of the similarity, takes Adam's direction, scales it so that its longest vector is a
fraction of a voxel, and composes the field with it. A step that short is a diffeomorphism, and so is their composition.
The smoothing of the field keeps it regular.

Sources: Yushkevich et al., "Fast automatic segmentation of hippocampal subfields and medial temporal lobe subregions in
3 Tesla and 7 Tesla T2-weighted MRI" (greedy), Alzheimer's & Dementia 2016; Jena et al., "FireANTs: adaptive Riemannian
optimization for multi-scale diffeomorphic matching", 2024 (Adam's direction for it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from usreg_kernels import compose_ddf, gaussian_smooth, warp
from usreg_kernels.optim import adam_step

from .convergence import Convergence
from .levels import Level, move_field

EPS, SMALLEST_EPS = 2e-4, 1e-30
"""Of Adam, as a part of the largest gradient with which a level begins, and where it begins without any.

A larger part would hold back what has a weak gradient, as labels have once their edges meet.
"""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the warped image, the fixed image and the field."""


@dataclass(frozen=True)
class Greedy:
    """How to register.

    Attributes:
        iterations: the most on each level, from coarse to fine.
        step: voxels of the level, the length of a step's longest vector.
        sigma_gradient, sigma_field: standard deviations of the smoothing of each step and of the field, in voxels of
            the level.
        betas: of Adam.
        tolerance: see :class:`Convergence`.
        seconds: the most that a level may take; None for any time.
    """

    iterations: Sequence[int] = (100, 70, 30)
    step: float = 0.5
    sigma_gradient: float = 1.0
    sigma_field: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    tolerance: float = 1e-7
    seconds: float | None = None


def register_greedy(
    fixed: Sequence[Level],
    moving: Sequence[Level],
    loss: Loss,
    settings: Greedy,
    ddf: torch.Tensor | None = None,
    report: Callable[[int, float], None] = lambda level, value: None,
) -> tuple[torch.Tensor, list[list[float]]]:
    """The field that warps the moving image to the fixed one.

    Args:
        fixed: from coarse to fine.
        moving: on the grids of the fixed levels.
        loss: to minimise, beside the overlap of the moving levels.
        settings: see there; an iteration count per level.
        ddf: (1, 3, D, H, W) on the coarsest level's grid: where to start from; zeros where it is missing.
        report: called after each iteration with the level's number and the loss.

    Returns:
        (1, 3, D, H, W) in voxels of the finest level, and the losses of each level.
    """
    if ddf is None:
        ddf = torch.zeros(1, 3, *fixed[0].grid.size, device=fixed[0].image.device)
    grid, losses = fixed[0].grid, []
    for number, (target, source, count) in enumerate(zip(fixed, moving, settings.iterations, strict=True)):
        ddf, grid = move_field(ddf, grid, target.grid), target.grid
        exp_avg, exp_avg_sq = torch.zeros_like(ddf), torch.zeros_like(ddf)
        step = torch.zeros((), device=ddf.device)
        convergence = Convergence(settings.tolerance, seconds=settings.seconds)
        eps = None
        for _ in range(count):
            leaf = ddf.detach().requires_grad_()
            value = loss(warp(source.image, leaf), target.image, leaf)
            if source.overlap is not None:
                value = value + source.overlap.of_field(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
            smoothed = gaussian_smooth(gradient, settings.sigma_gradient)
            eps = eps if eps is not None else relative_eps(smoothed)
            update = adam_step(
                *(smoothed, exp_avg, exp_avg_sq, step),
                lr=settings.step,
                betas=settings.betas,
                eps=eps,
                scale="longest",
                out=gradient.contiguous(),
            )
            ddf = gaussian_smooth(compose_ddf(ddf, update), settings.sigma_field)
            del leaf, gradient, smoothed, update  # the next iteration's lie where they did
            report(number, value.item())
            if convergence.is_reached(value.item()):
                break
        losses.append(convergence.losses)
    return ddf, losses


def relative_eps(gradient: torch.Tensor) -> float:
    """Adam's ``eps`` for a level that begins with this gradient.

    Where both images are empty the gradient is a trace of what lies around. Without this, Adam would make whole steps
    of it, and the field would drift there.
    """
    lowest, highest = gradient.aminmax()
    largest = max(-lowest.item(), highest.item())
    return max(SMALLEST_EPS, EPS * largest) if math.isfinite(largest) else SMALLEST_EPS

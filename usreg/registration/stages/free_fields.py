"""Registration by Adam on a field itself: a displacement with a penalty, or a stationary velocity.

Each iteration smooths the gradient of the loss, takes Adam's direction, scaled so that its longest vector is a part of
a voxel, adds it to the field, and smooths that. The displacement of a velocity is its integral over unit time, which is
a diffeomorphism up to discretisation; the integral of the negated velocity is the inverse (Arsigny et al., "A
log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006; Ashburner, NeuroImage 38, 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from usreg_kernels import (
    bending_energy_loss,
    compose_ddf,
    gaussian_smooth,
    gradient_smoothness_loss,
    integrate_velocity,
    warp,
)
from usreg_kernels.optim import FieldAdam

from .convergence import Convergence
from .greedy import relative_eps
from .levels import Level, move_field

BETAS = (0.9, 0.99)

PENALTIES = {"gradient": gradient_smoothness_loss, "bending": bending_energy_loss}

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of the warped image, the fixed image and the displacement field."""


@dataclass(frozen=True)
class FreeField:
    """How to register.

    Attributes:
        iterations: the most on each level, from coarse to fine.
        step: voxels of the level, the length of a step's longest vector.
        regulariser: ``gradient`` (mean squared differences of the field) or ``bending`` (bending energy).
        weight: of the regulariser beside the loss.
        sigma_gradient, sigma_field: standard deviations of the smoothing of the gradient and of the field, in voxels of
            the level.
        integration_steps: squarings of a velocity field's integration; 0: the field is the displacement.
        tolerance: see :class:`Convergence`.
        seconds: the most that a level may take; None for any time.
    """

    iterations: Sequence[int] = (100, 70, 30)
    step: float = 0.25
    regulariser: Literal["gradient", "bending"] = "gradient"
    weight: float = 2.0
    sigma_gradient: float = 0.5
    sigma_field: float = 0.0
    integration_steps: int = 0
    tolerance: float = 1e-7
    seconds: float | None = None

    def displacement(self, field: torch.Tensor) -> torch.Tensor:
        """The displacement of a field; its integral where that is a velocity."""
        if not self.integration_steps:
            return field
        return integrate_velocity(field, steps=self.integration_steps, padding_mode="border")


def register_free_field(
    fixed: Sequence[Level],
    moving: Sequence[Level],
    loss: Loss,
    settings: FreeField,
    field: torch.Tensor | None = None,
    before: torch.Tensor | None = None,
    in_plane: Callable[[torch.Tensor], torch.Tensor] = lambda field: field,
    report: Callable[[int, float], None] = lambda level, value: None,
) -> tuple[torch.Tensor, list[list[float]]]:
    """The field whose displacement warps the moving image to the fixed one.

    Args:
        fixed: from coarse to fine.
        moving: on the grids of the fixed levels.
        loss: to minimise, beside the regulariser.
        settings: see there; an iteration count per level.
        field: (1, 3, D, H, W) on the coarsest level's grid: where to start from; zeros where it is missing.
        before: (1, 3, D, H, W) in voxels of the finest level: a displacement that stays as it is, and that points meet
            after the one that is sought.
        in_plane: of a field, the part that the regulariser sees.
        report: called after each iteration with the level's number and the loss.

    Returns:
        (1, 3, D, H, W), the displacement or velocity in voxels of the finest level, and the losses of each level.
    """
    if field is None:
        field = torch.zeros(1, 3, *fixed[0].grid.size, device=fixed[0].image.device)
    penalty = PENALTIES[settings.regulariser]
    grid, losses = fixed[0].grid, []
    for number, (target, source, count) in enumerate(zip(fixed, moving, settings.iterations, strict=True)):
        field, grid = move_field(field, grid, target.grid).detach().clone().requires_grad_(), target.grid
        known = None if before is None else move_field(before, fixed[-1].grid, grid)
        adam = FieldAdam([field], lr=settings.step, betas=BETAS, scale="longest")
        convergence = Convergence(settings.tolerance, seconds=settings.seconds)
        is_first = True
        for _ in range(count):
            ddf = settings.displacement(field)
            if known is not None:
                ddf = compose_ddf(known, ddf)
            value = loss(warp(source.image, ddf), target.image, ddf)
            if settings.weight:
                value = value + settings.weight * penalty(in_plane(field))
            (gradient,) = torch.autograd.grad(value, field)
            field.grad = gaussian_smooth(gradient, settings.sigma_gradient)
            if is_first:
                adam.param_groups[0]["eps"], is_first = relative_eps(field.grad), False
            adam.step()
            if settings.sigma_field:
                with torch.no_grad():
                    field.copy_(gaussian_smooth(field, settings.sigma_field))
            report(number, value.item())
            if convergence.is_reached(value.item()):
                break
        losses.append(convergence.losses)
    return field.detach(), losses

"""Rigid and affine registration: the matrix is optimised in the world, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from usreg_kernels import warp

from ...spatial import Affine, Grid
from ...spatial.grid import Points
from .convergence import Convergence
from .levels import Level

SHORTEST = 0.05
"""The last step on a level, as a part of the first."""

Model = Literal["translation", "rigid", "affine"]


@dataclass(frozen=True)
class Linear:
    """How to register.

    Attributes:
        model: ``translation``, ``rigid`` (rotation and translation) or ``affine``.
        iterations: the most on each level, from coarse to fine.
        step: about how far a corner of the box moves in an iteration at the start, voxels of the level.
        tolerance: see :class:`Convergence`.
        seconds: the most that a level may take; None for any time.
    """

    model: Model = "affine"
    iterations: Sequence[int] = (100, 50)
    step: float = 0.5
    tolerance: float = 1e-6
    seconds: float | None = None


class _Parameters:
    """A matrix by numbers of which each moves the corners of the box by about a millimetre.

    Points turn and stretch about the centre of the fixed box; with a normal only in the plane across it.
    """

    def __init__(
        self, model: Model, grid: Grid, start: Affine, device: torch.device, normal: Points | None = None
    ) -> None:
        self.model = model
        self.centre = torch.from_numpy(grid.centre).to(device)
        self.radius = float(np.linalg.norm(grid.corners - grid.centre, axis=1).mean())
        self.start = torch.from_numpy(start.matrix).to(device)
        count = {"translation": 3, "rigid": 6, "affine": 12}[model]
        self.values = torch.zeros(count, dtype=torch.float64, device=device, requires_grad=True)
        across = np.zeros((3, 3)) if normal is None else np.outer(normal, normal)
        self.in_plane = torch.from_numpy(np.eye(3) - across).to(device)
        self.about = torch.from_numpy(np.eye(3) if normal is None else across).to(device)

    def matrix(self) -> torch.Tensor:
        """(4, 4), from mm of the fixed image's world to mm of the moving one's."""
        turn = torch.eye(3, dtype=torch.float64, device=self.values.device)
        if self.model == "rigid":
            turn = torch.linalg.matrix_exp(_cross(self.about @ self.values[3:] / self.radius))
        elif self.model == "affine":
            turn = turn + self.in_plane @ self.values[3:].view(3, 3) @ self.in_plane / self.radius
        shift = self.centre + self.in_plane @ self.values[:3] - turn @ self.centre
        last = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64, device=turn.device)
        return self.start @ torch.cat([torch.cat([turn, shift[:, None]], dim=1), last])


class _Adam:
    """Adam, whose steps get shorter along half a cosine.

    ``torch.optim`` has it, and imports torch's compiler when it is made: seconds, for twelve numbers.
    """

    BETAS = (0.9, 0.99)
    EPS = 1e-8

    def __init__(self, first: float, count: int) -> None:
        self.first, self.count, self.step = first, max(1, count), 0
        self.mean: torch.Tensor | float = 0.0
        self.square: torch.Tensor | float = 0.0

    def move(self, values: torch.Tensor, gradient: torch.Tensor) -> None:
        """Change the values in place, against their gradient."""
        (one, two), left = self.BETAS, (1 + math.cos(math.pi * self.step / self.count)) / 2
        length = self.first * (SHORTEST + (1 - SHORTEST) * left)
        self.step += 1
        self.mean = one * self.mean + (1 - one) * gradient
        self.square = two * self.square + (1 - two) * gradient.square()
        root = (self.square / (1 - two**self.step)).sqrt() + self.EPS
        with torch.no_grad():
            values -= length * self.mean / (1 - one**self.step) / root


def _cross(vector: torch.Tensor) -> torch.Tensor:
    """(3, 3): the matrix whose product is the cross product with a vector."""
    x, y, z = vector
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def register_linear(
    fixed: Sequence[Level],
    moving: Sequence[Level],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: Linear,
    start: Affine,
    report: Callable[[int, float], None] = lambda level, value: None,
    normal: Points | None = None,
) -> tuple[Affine, list[list[float]]]:
    """The matrix that maps the fixed image's world to the moving image's.

    Args:
        fixed: from coarse to fine.
        moving: the moving image on levels of its own grid.
        loss: of the warped and the fixed image.
        settings: see there; an iteration count per level.
        start: where to start from.
        report: called after each iteration with the level's number and the loss.
        normal: (3,) across images of one slice, of length 1: the matrix changes in their plane only.

    Returns:
        The transform with the lowest loss on the finest level, which may be ``start``, and the losses of each level.
    """
    first, losses = start, []
    for number, (target, source, count) in enumerate(zip(fixed, moving, settings.iterations, strict=True)):
        told = partial(report, number)
        start, values = _register_level(target, source, loss, settings, (start, first), count, told, normal)
        losses.append(values)
    return start, losses


def _register_level(
    fixed: Level,
    moving: Level,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: Linear,
    starts: Sequence[Affine],
    count: int,
    report: Callable[[float], None],
    normal: Points | None,
) -> tuple[Affine, list[float]]:
    """From the better one of ``starts``: what a coarse level finds may be worse than nothing on a finer one."""
    image = fixed.image
    to_voxels = torch.from_numpy(np.linalg.inv(moving.grid.affine)).to(image.device)
    to_world = torch.tensor(fixed.grid.affine, device=image.device)

    def loss_of(matrix: torch.Tensor) -> torch.Tensor:
        affine = (to_voxels @ matrix @ to_world)[:3].to(image.dtype)
        return loss(warp(moving.image, affine=affine, size=fixed.grid.size), image)

    def first_loss(start: Affine) -> float:
        return loss_of(torch.from_numpy(start.matrix).to(image.device)).item()

    start = starts[0] if starts[0] is starts[-1] else min(starts, key=first_loss)
    parameters = _Parameters(settings.model, fixed.grid, start, image.device, normal)
    spacing = float(fixed.grid.spacing.mean())
    adam = _Adam(settings.step * spacing, count)
    convergence = Convergence(settings.tolerance, seconds=settings.seconds)
    best, best_matrix = float("inf"), start.matrix
    for _ in range(count):
        matrix = parameters.matrix()
        value = loss_of(matrix)
        (gradient,) = torch.autograd.grad(value, parameters.values)
        if value.item() < best:
            best, best_matrix = value.item(), matrix.detach().cpu().numpy()
        adam.move(parameters.values, gradient)
        report(value.item())
        if convergence.is_reached(value.item()):
            break
    return Affine(best_matrix), convergence.losses

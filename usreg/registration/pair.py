"""The registration of a pair: from two volumes to a transform, stage by stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..losses import build_loss
from ..spatial import Affine, Chain, DisplacementField, Grid, resample
from ..training.loss_call import LossCall
from .greedy import Greedy, register_greedy
from .inverse import invert_field, miss_of
from .levels import make_levels, move_field
from .linear import Linear, register_linear
from .stages import GreedyStage, LinearStage, Stage
from .stopping import stop_asked

Progress = Callable[[int, int, int, float], None]
"""Called after each iteration with the numbers of stage, level and iteration, and the loss."""


@dataclass(frozen=True)
class Volume:
    """An image in the world.

    Attributes:
        voxels: (C, D, H, W) float32; axes in any order.
        grid: of the same axes.
    """

    voxels: torch.Tensor
    grid: Grid


@dataclass
class StageReport:
    """What a stage did.

    Attributes:
        stage: its name.
        losses: of each level's iterations.
        seconds: that it took.
    """

    stage: str
    losses: list[list[float]]
    seconds: float


@dataclass
class Registration:
    """What a registration found.

    Attributes:
        affine: from mm of the fixed image's world to mm of the moving one's; an affine is the last to meet a point.
        field: the displacement on the fixed image's grid, mm, which a point meets first; None without a deformable
            stage.
        inverse_field: the field that undoes it, on the same grid.
        ddf: ``field`` in voxels of the fixed image, (1, 3, D, H, W).
        inverse_miss: mean distance, voxels, by which the two fields in a row miss the identity.
        stages: what each stage did.
        stopped: whether it was asked to stop before its end.
    """

    affine: Affine
    field: DisplacementField | None = None
    inverse_field: DisplacementField | None = None
    ddf: torch.Tensor | None = None
    inverse_miss: float | None = None
    stages: list[StageReport] = dataclasses.field(default_factory=list)
    stopped: bool = False

    @property
    def transform(self) -> Chain:
        """From points of the fixed image's world to points of the moving one's."""
        return Chain([self.affine] if self.field is None else [self.field, self.affine])


def register_pair(
    fixed: Volume,
    moving: Volume,
    stages: Sequence[Stage],
    *,
    quantiles: Sequence[float] = (0.005, 0.995),
    start: Affine | None = None,
    device: str = "cpu",
    progress: Progress = lambda stage, level, iteration, loss: None,
) -> Registration:
    """Register the moving image to the fixed one.

    Args:
        fixed, moving: of one channel.
        stages: from :func:`usreg.registration.stages.load_stages`.
        quantiles: of the intensities that become 0 and 1.
        start: the affine to start from; the identity of the world where it is missing.
        device: of the computation.
        progress: see :data:`Progress`.

    Raises:
        DataError: an image is constant or not finite, or the two do not overlap in the world.
    """
    start = start or Affine(np.eye(4))
    target = _normalised("fixed", fixed, quantiles, device)
    source = _normalised("moving", moving, quantiles, device)
    _check_overlap(fixed.grid, moving.grid, start)
    found, ddf = Registration(start), None
    for number, stage in enumerate(stages):
        began = time.perf_counter()
        loss = LossCall(build_loss(stage.loss))
        count = _Counter(number, progress)
        if isinstance(stage, LinearStage):
            if ddf is not None:
                raise DataError("a linear stage cannot follow a deformable one: put it first")
            found.affine, losses = _linear(stage, loss, target, source, found.affine, count)
        else:
            ddf, losses = _greedy(stage, loss, target, source, found.affine, ddf, count)
        found.stages.append(StageReport(stage.stage, losses, time.perf_counter() - began))
        if stop_asked():
            found.stopped = True
            break
    if ddf is not None:
        _store_field(found, ddf, fixed.grid)
    return found


@dataclass
class _Counter:
    """Counts the iterations of a stage's levels for the progress."""

    stage: int
    progress: Progress
    level: int = -1
    iteration: int = 0

    def __call__(self, level: int, loss: float) -> None:
        self.iteration = self.iteration + 1 if level == self.level else 1
        self.level = level
        self.progress(self.stage, level, self.iteration, loss)


def _linear(
    stage: LinearStage, loss: LossCall, fixed: Volume, moving: Volume, start: Affine, count: Any
) -> tuple[Affine, list[list[float]]]:
    settings = Linear(stage.stage, stage.iterations, stage.step, stage.tolerance, stage.seconds)  # type: ignore[arg-type]
    targets, sources = (make_levels(volume.voxels[None], volume.grid, stage.levels) for volume in (fixed, moving))
    nothing = fixed.voxels.new_zeros(1, 3, 1, 1, 1)

    def similarity(warped: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return loss(warped, nothing.expand(1, 3, *image.shape[2:]), {"fixed": image})

    return register_linear(targets, sources, similarity, settings, start, count)


def _greedy(
    stage: GreedyStage,
    loss: LossCall,
    fixed: Volume,
    moving: Volume,
    affine: Affine,
    ddf: torch.Tensor | None,
    count: Any,
) -> tuple[torch.Tensor, list[list[float]]]:
    on_fixed = resample(moving.voxels, moving.grid, fixed.grid, affine)
    targets, sources = (make_levels(voxels[None], fixed.grid, stage.levels) for voxels in (fixed.voxels, on_fixed))
    settings = Greedy(
        stage.iterations,
        stage.step,
        stage.sigma_gradient,
        stage.sigma_field,
        tolerance=stage.tolerance,
        seconds=stage.seconds,
    )
    first, last = targets[0].grid, targets[-1].grid
    if ddf is not None:
        ddf = move_field(ddf, fixed.grid, first)

    def similarity(warped: torch.Tensor, image: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        return loss(warped, field, {"fixed": image})

    ddf, losses = register_greedy(targets, sources, similarity, settings, ddf, count)
    return move_field(ddf, last, fixed.grid), losses


def _store_field(found: Registration, ddf: torch.Tensor, grid: Grid) -> None:
    inverse, _ = invert_field(ddf)
    found.ddf, found.inverse_miss = ddf.cpu(), miss_of(ddf, inverse)
    found.field, found.inverse_field = (_in_mm(one, grid) for one in (ddf, inverse))


def _in_mm(ddf: torch.Tensor, grid: Grid) -> DisplacementField:
    """A field in voxels of its own grid as one in mm."""
    matrix = torch.tensor(grid.affine[:3, :3]).to(ddf)
    return DisplacementField(grid, (matrix @ ddf[0].flatten(1)).reshape(3, *grid.size).cpu())


def _normalised(name: str, volume: Volume, quantiles: Sequence[float], device: str) -> Volume:
    """Intensities from 0 to 1, on the device."""
    voxels = volume.voxels.float()
    if len(voxels) != 1:
        raise DataError(f"the {name} image has {len(voxels)} channels; one is needed")
    if bad := int(voxels.numel() - voxels.isfinite().sum()):
        raise DataError(f"{bad} of {voxels.numel()} voxels of the {name} image are NaN or infinite; replace them")
    low, high = (float(value) for value in np.quantile(voxels.numpy(), quantiles))
    if high <= low:
        low, high = float(voxels.min()), float(voxels.max())
    if high <= low:
        raise DataError(f"the {name} image is constant ({low:g} everywhere): there is nothing to register")
    return Volume(((voxels - low) / (high - low)).clamp(0, 1).to(device), volume.grid)


def _check_overlap(fixed: Grid, moving: Grid, start: Affine) -> None:
    """Raise DataError where nothing of the fixed box lies in the moving one."""
    placed = Grid(fixed.size, start.matrix @ fixed.affine)
    if placed.overlap(moving) == 0:
        distance = float(np.linalg.norm(placed.centre - moving.centre))
        raise DataError(
            f"the two images do not overlap in the world: the centres of their boxes are {distance:.1f} mm apart; "
            "start=centres brings the centres together first, or give an initial transform"
        )

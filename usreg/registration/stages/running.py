"""The stages of a registration, one after another, each with its loss and within its time."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from usreg_kernels import compose_ddf

from ...errors import ConfigError
from ...spatial import Affine
from ..inputs.sides import Side
from ..transforms import starts
from ..transforms.inverse import invert_field
from .free_fields import FreeField, register_free_field
from .greedy import Greedy, register_greedy
from .levels import Level, move_field
from .linear import Linear, register_linear
from .settings import DisplacementStage, GreedyStage, IterativeStage, LinearStage, PlacingStage, Stage, VelocityStage
from .similarity import Similarity
from .stopping import stop_asked, stop_at

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int, float], None]
"""Called after each iteration with the numbers of stage, level and iteration, and the loss."""

Losses = list[list[float]]
"""Of each level's iterations."""


@dataclass
class StageReport:
    """What a stage did.

    Attributes:
        stage: its name.
        losses: of each level's iterations.
        seconds: that it took.
        number: of the stage in the config, from 0.
    """

    stage: str
    losses: Losses
    seconds: float
    number: int


@dataclass
class State:
    """The pair on its device, and what is found so far.

    Attributes:
        fixed, moving: with all that was given.
        affine: of the world, which a point meets last.
        ddf: (1, 3, D, H, W) voxels of the fixed image, which a point meets first; None for 0.
        inverse: of ``ddf``, where a stage knows it.
        stages: what each stage did.
        stopped: whether the registration was asked to stop.
    """

    fixed: Side
    moving: Side
    affine: Affine
    ddf: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    stages: list[StageReport] = dataclasses.field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Work:
    """A stage with its loss, which ``centres`` and ``moments`` do not have."""

    number: int
    stage: Stage
    similarity: Similarity | None = None

    def needs(self, side: Side) -> Side:
        """The side with the channels that the loss needs."""
        return side if self.similarity is not None and self.similarity.uses_labels else side.without_labels()


def prepare_stages(stages: Sequence[Stage], fixed: Side, moving: Side, deformed: bool = False) -> list[Work]:
    """Build and try out the loss of each stage.

    Args:
        stages: to run.
        fixed, moving: the pair.
        deformed: whether the start has a field; stages without one are then left out, which is logged.

    Raises:
        ConfigError: a loss cannot be used here, or a stage without a field follows on one with a field.
    """
    work, field_of = [], None
    for number, stage in enumerate(stages):
        if isinstance(stage, PlacingStage | LinearStage):
            if field_of is not None:
                raise ConfigError(f"stage {number} ({stage.stage}) cannot follow on {field_of}: put it before that one")
            if deformed:
                logger.warning("stage %d (%s) is left out: the start is a field already", number, stage.stage)
                continue
        else:
            field_of = f"stage {number} ({stage.stage})"
        if isinstance(stage, PlacingStage):
            work.append(Work(number, stage))
            continue
        where = f"stage {number} ({stage.stage})"
        similarity = Similarity(stage.loss, fixed, moving, stage.labels_weight or 0.0, where)
        work.append(Work(number, stage, similarity))
        similarity.try_out(work[-1].needs(fixed), max(stage.levels))
    return work


def run_stages(state: State, work: Sequence[Work], progress: Progress, seconds: float | None = None) -> None:
    """Run all stages; the state changes in place.

    Args:
        state: where to start from.
        work: see :func:`prepare_stages`.
        progress: see there.
        seconds: the most that all may take. What is left out then is logged.
    """
    end = None if seconds is None else time.perf_counter() + seconds
    for one in work:
        began = time.perf_counter()
        if end is not None and began >= end:
            logger.warning("stage %d (%s) is left out: the %g seconds are over", one.number, one.stage.stage, seconds)
            continue
        own = getattr(one.stage, "seconds", None)
        ends = [limit for limit in (end, None if own is None else began + own) if limit is not None]
        with stop_at(min(ends, default=None)):
            losses = _run_stage(state, one, _Counter(one.number, progress))
        state.stages.append(StageReport(one.stage.stage, losses, time.perf_counter() - began, one.number))
        if stop_asked():
            state.stopped = True
            return


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


def _run_stage(state: State, work: Work, count: _Counter) -> Losses:
    stage, fixed, moving = work.stage, work.needs(state.fixed), work.needs(state.moving)
    if isinstance(stage, PlacingStage):
        state.affine = _placed(stage, fixed, moving, state.affine)
        return []
    assert work.similarity is not None
    if isinstance(stage, LinearStage):
        settings = Linear(stage.stage, stage.iterations, stage.step, stage.tolerance)  # type: ignore[arg-type]
        levels = _levels(stage, work.similarity, fixed, moving)
        normal = starts.normal_of(fixed.grid)
        state.affine, losses = register_linear(*levels, work.similarity, settings, state.affine, count, normal)
        return losses
    levels = _levels(stage, work.similarity, fixed, moving.on(fixed.grid, state.affine))
    if isinstance(stage, GreedyStage):
        return _greedy(state, stage, work.similarity, *levels, count)
    return _free_field(state, stage, work.similarity, *levels, count)


def _levels(stage: IterativeStage, loss: Similarity, fixed: Side, moving: Side) -> tuple[list[Level], list[Level]]:
    """Both sides on the stage's levels, with the channels that its loss compares."""
    return loss.described(fixed.levels(stage.levels)), loss.described(moving.levels(stage.levels, moving=True))


def _placed(stage: PlacingStage, fixed: Side, moving: Side, affine: Affine) -> Affine:
    if stage.stage == "centres":
        shift = moving.grid.centre - affine(fixed.grid.centre[None])[0]
        return starts.shifted(affine, shift)
    return starts.by_moments(fixed, moving, affine, stage.axes)


def _greedy(
    state: State,
    stage: GreedyStage,
    loss: Similarity,
    fixed: Sequence[Level],
    moving: Sequence[Level],
    count: Any,
) -> Losses:
    settings = Greedy(stage.iterations, stage.step, stage.sigma_gradient, stage.sigma_field, tolerance=stage.tolerance)
    grid = state.fixed.grid
    ddf = None if state.ddf is None else move_field(state.ddf, grid, fixed[0].grid)
    ddf, losses = register_greedy(fixed, moving, loss, settings, ddf, count)
    state.ddf, state.inverse = move_field(ddf, fixed[-1].grid, grid), None
    return losses


def _free_field(
    state: State,
    stage: VelocityStage | DisplacementStage,
    loss: Similarity,
    fixed: Sequence[Level],
    moving: Sequence[Level],
    count: Any,
) -> Losses:
    """A displacement goes on from the field so far. A velocity begins at 0; its field comes before the one so far."""
    is_velocity = isinstance(stage, VelocityStage)
    settings = FreeField(
        stage.iterations,
        stage.step,
        stage.regulariser,  # type: ignore[arg-type]
        stage.weight,
        stage.sigma_gradient,
        stage.sigma_field,
        stage.integration_steps if isinstance(stage, VelocityStage) else 0,
        stage.tolerance,
    )
    grid, known = state.fixed.grid, state.ddf
    first = None if known is None else move_field(known, grid, fixed[0].grid)
    before = None if known is None else move_field(known, grid, fixed[-1].grid)
    field, losses = register_free_field(
        fixed,
        moving,
        loss,
        settings,
        field=None if is_velocity else first,
        before=before if is_velocity else None,
        in_plane=loss.plane_field,
        report=count,
    )
    field = move_field(field, fixed[-1].grid, grid)
    if not is_velocity:
        state.ddf, state.inverse = field, None
        return losses
    ddf, inverse = settings.displacement(field), settings.displacement(-field)
    if known is not None:
        back = state.inverse if state.inverse is not None else invert_field(known)[0]
        ddf, inverse = compose_ddf(known, ddf), compose_ddf(inverse, back)
    state.ddf, state.inverse = ddf, inverse
    return losses

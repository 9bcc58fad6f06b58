"""The registration of a pair: from two volumes to a transform, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError
from ..spatial import Affine, Chain, DisplacementField, Transform
from .inputs.intensities import Scaling
from .inputs.preparing import Volume, check_pair, make_side
from .inputs.sides import Side
from .stages.running import Progress, StageReport, State, Work, prepare_stages, run_stages
from .stages.settings import Stage
from .transforms import starts
from .transforms.inverse import invert_both_ways, miss_of

__all__ = ["PreparedPair", "Progress", "Registration", "StageReport", "Volume", "prepare_pair", "register_pair"]


@dataclass
class Registration:
    """What a registration found.

    Attributes:
        affine: from mm of the fixed image's world to mm of the moving one's; an affine is the last to meet a point.
        field: the displacement on the fixed image's grid, mm, which a point meets first; None without a deformable
            stage.
        inverse_field: the field that undoes it, on the same grid.
        ddf: ``field`` in voxels of the fixed image, (1, 3, D, H, W).
        inverse_miss: mean distance, voxels, by which the two fields in a row miss the identity, in the worse order.
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


@dataclass
class PreparedPair:
    """A pair that is checked and ready to be registered.

    Attributes:
        state: the pair on its device, at its start.
        work: the stages with their losses.
        seconds: the most that all stages may take; None for any time.
    """

    state: State
    work: Sequence[Work]
    seconds: float | None = None

    def run(self, progress: Progress = lambda stage, level, iteration, loss: None) -> Registration:
        """Run all stages, once; see :data:`Progress`."""
        state = self.state
        run_stages(state, self.work, progress, self.seconds)
        found = Registration(state.affine, stages=state.stages, stopped=state.stopped)
        if state.ddf is not None:
            if state.inverse is None:
                inverse, *missed = invert_both_ways(state.ddf)
            else:
                inverse = state.inverse
                missed = [miss_of(state.ddf, inverse), miss_of(inverse, state.ddf)]
            found.ddf, found.inverse_miss = state.ddf.cpu(), max(missed)
            grid = state.fixed.grid
            found.field, found.inverse_field = (starts.field_in_mm(one, grid) for one in (state.ddf, inverse))
        return found


def register_pair(
    fixed: Volume,
    moving: Volume,
    stages: Sequence[Stage],
    *,
    progress: Progress = lambda stage, level, iteration, loss: None,
    **settings: Any,
) -> Registration:
    """Register the moving image to the fixed one.

    Args:
        fixed, moving: see :func:`prepare_pair`.
        stages: the same.
        progress: see :data:`Progress`.
        settings: the other arguments of :func:`prepare_pair`.

    Raises:
        UsageError: see :func:`prepare_pair`; before any work.
    """
    return prepare_pair(fixed, moving, stages, **settings).run(progress)


def prepare_pair(
    fixed: Volume,
    moving: Volume,
    stages: Sequence[Stage],
    *,
    quantiles: Sequence[float] = (0.005, 0.995),
    start: Transform | None = None,
    device: str = "cpu",
    scaling: Mapping[str, Scaling] | None = None,
    fixed_mask: Volume | None = None,
    moving_mask: Volume | None = None,
    fixed_label: Volume | None = None,
    moving_label: Volume | None = None,
    seconds: float | None = None,
) -> PreparedPair:
    """Check a pair, and prepare its registration.

    Args:
        fixed, moving: with equally many channels; both volumes, or both of one slice (2-D).
        stages: from :func:`usreg.registration.stages.load_stages`. Linear stages that follow on a deformable start
            are left out, which is logged.
        quantiles: of the intensities that become 0 and 1.
        start: where to start from; where it is missing, the identity of the world.
        device: of the computation.
        scaling: of ``"fixed"`` and ``"moving"``, in place of ``quantiles``.
        fixed_mask, moving_mask: above 0 is what counts, on any grid in the world of their image. The losses weigh each
            voxel by the product of the fixed mask and the warped moving one.
        fixed_label, moving_label: whole numbers, on any grid in the world of their image, for stages with a
            ``labels_weight`` and for losses that compare labels.
        seconds: the most that all stages together may take; the result is then what is found so far.

    Raises:
        DataError: an image is constant or not finite, the two do not overlap in the world or do not fit together, or a
            mask is empty.
        ConfigError: a loss cannot be used with what is given.
    """
    scaling = scaling or dict.fromkeys(("fixed", "moving"), Scaling(tuple(quantiles)))
    target = make_side("fixed", fixed, scaling["fixed"], fixed_mask, fixed_label, moving_label)
    source = make_side("moving", moving, scaling["moving"], moving_mask, moving_label, fixed_label)
    check_pair(target, source)
    start = start if start is not None else starts.at_headers(fixed.grid, moving.grid)
    check_start(target, source, start)
    affine, ddf = starts.as_field_and_affine(start, fixed.grid)
    work = prepare_stages(stages, target, source, deformed=ddf is not None)
    state = State(target.to(device), source.to(device), affine, None if ddf is None else ddf.to(device))
    return PreparedPair(state, work, seconds)


def check_start(fixed: Side, moving: Side, start: Transform) -> None:
    """Raise DataError where the start leaves nothing to compare."""
    if starts.share_inside(fixed.grid, moving.grid, start) == 0:
        distance = float(abs(start(fixed.grid.centre[None]) - moving.grid.centre).max())
        raise DataError(
            f"the two images do not overlap in the world: the centres of their boxes are {distance:.1f} mm apart; "
            "start=centres brings the centres together first, or give an initial transform"
        )
    if fixed.mask is not None and moving.mask is not None:
        there = Side(moving.mask, moving.grid).on(fixed.grid, start).image
        if not bool(((there > 0) & (fixed.mask > 0)).any()):
            raise DataError(
                "the fixed mask and the moving mask do not overlap at the start of the registration: nothing would "
                "count; start=centres or start=moments brings the images together first, or give other masks"
            )

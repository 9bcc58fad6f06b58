"""``usreg.register``: the registration of a pair as a Python function."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..spatial import Affine, Chain, DisplacementField
from ..transformation.chains import TransformLike
from .inputs.given import ImageLike, PointsLike, chosen_device, find_start, make_inputs, prepare_given, read_pair
from .outputs.results import Results, make_results
from .pair import Progress, Registration
from .reports.measures import measure
from .reports.report import make_report
from .stages.settings import load_stages


@dataclass(frozen=True)
class Registered:
    """What :func:`register` returns.

    Attributes:
        registration: what the stages found.
        results: images, labels and points on the fixed image's grid, before and after.
        report: seconds and losses of the stages, and measures before and after, as ``report.json`` has them.
    """

    registration: Registration
    results: Results
    report: dict[str, Any]

    @property
    def warped(self) -> torch.Tensor:
        """(C, D, H, W): the moving image on the fixed image's grid; 0 outside of the moving one."""
        return self.results.warped

    @property
    def warped_label(self) -> torch.Tensor | None:
        """(D, H, W) int32: the moving label, nearest neighbour; None without one."""
        return self.results.warped_label

    @property
    def transform(self) -> Chain:
        """From points of the fixed image's world to points of the moving one's: the field, then the affine."""
        return self.registration.transform

    @property
    def affine(self) -> Affine:
        """The affine of the transform."""
        return self.registration.affine

    @property
    def field(self) -> DisplacementField | None:
        """The field of the transform on the fixed image's grid, mm; None without a deformable stage."""
        return self.registration.field

    @property
    def inverse_field(self) -> DisplacementField | None:
        """What undoes the field, on the same grid."""
        return self.registration.inverse_field


def register(
    fixed: ImageLike,
    moving: ImageLike,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    fixed_label: ImageLike | None = None,
    moving_label: ImageLike | None = None,
    fixed_landmarks: PointsLike | None = None,
    moving_landmarks: PointsLike | None = None,
    landmarks_space: str | None = None,
    initial: TransformLike | Sequence[TransformLike] | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress = lambda stage, level, iteration, loss: None,
) -> Registered:
    """Register a moving image to a fixed one, as ``python -m usreg.register`` does; nothing is written.

    Args:
        fixed: the image whose grid the results have: a file, a tuple (array, affine), MONAI's MetaTensor (C, X, Y, Z)
            or a :class:`~usreg.registration.pair.Volume`. Arrays are (X, Y), (X, Y, Z) or (C, X, Y, Z); the affine
            (4, 4) maps indices in the order of the array's axes to mm, RAS.
        moving: the image that is warped; the same.
        config: YAML file of stages and settings; the packaged default when left out.
        overrides: ``key=value`` texts that replace settings, as on the command line.
        fixed_mask, moving_mask: above 0 is what counts, on any grid in the world of their image.
        fixed_label, moving_label: whole numbers; for Dice before and after, and for stages with a ``labels_weight``.
        fixed_landmarks, moving_landmarks: files or arrays (N, 3) of the same places, for ``start=landmarks``.
        landmarks_space: ``lps``, ``ras`` or ``voxel``, of landmarks that do not say it themselves; ``lps`` without it.
        initial: a transform to start from, or several, or their files.
        checkpoint: of a trained network, whose prediction is the start: a run's folder, or a file.
        progress: called after each iteration with the numbers of stage, level and iteration, and the loss.

    Raises:
        UsageError: (or its subclasses ConfigError, DataError) what is given cannot be used; found before any work where
            that is possible.
    """
    settings, stages = load_stages(config, overrides)
    device = chosen_device(settings.device)
    pair = read_pair(
        settings,
        fixed,
        moving,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        fixed_label=fixed_label,
        moving_label=moving_label,
        fixed_landmarks=fixed_landmarks,
        moving_landmarks=moving_landmarks,
        landmarks_space=landmarks_space,
    )
    start = find_start(pair, settings, initial, checkpoint, device)
    prepared = prepare_given(pair, settings, stages, start.transform, device)
    began = time.perf_counter()
    found = prepared.run(progress)
    seconds = time.perf_counter() - began
    inputs = make_inputs(pair, start)
    results = make_results(inputs, found)
    report = make_report(
        found,
        settings,
        stages,
        measure(inputs, found, results),
        command=(),
        files={},
        volumes={"fixed": pair.fixed, "moving": pair.moving},
        start=start.name,
        device=device,
        seconds=seconds,
    )
    return Registered(found, results, report)

"""What is wrong, and what is doubtful, with each case of a manifest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..datasets.case_checks import check_case, world_landmarks
from ..datasets.case_files import SIDES
from ..datasets.intensities import describe_shared_modality, shares_modality
from ..datasets.reading import Reading
from ..errors import DataError
from ..io.header import VolumeHeader
from ..io.manifest import IMAGES, LABELS, MASKS, Case, read_case
from ..io.manifest_files import EXAMPLE, read_lists
from ..metrics.label_volumes import mean_dice, stretch, structures
from ..spatial import Grid

T = TypeVar("T")

SPLITS = ("train", "val", "test")

_LITTLE = 0.5  # share of the fixed image in the moving one, below which a case is worth a look


@dataclass
class CaseReport:
    """What was found about one case.

    Attributes:
        where: place in the manifest.
        name: the case's name.
        grids: of the images that could be read, by ``moving`` and ``fixed``; axes x, y, z of the file's array.
        distance: mm between the middles of the two boxes.
        overlap: the share of the fixed image's box that lies in the moving one's.
        labels: number of structures, by side.
        dice: mean Dice before registration, in the world of the headers; NaN where there are no labels.
        stretched_dice: the same with the moving image's box stretched onto the fixed one's, as samples without a shared
            grid have it.
        tre: mean distance of the landmarks in mm before registration; NaN where there are none.
        problems: why training would refuse the case.
        doubts: what may be wrong.
    """

    where: str
    name: str
    grids: dict[str, Grid] = field(default_factory=dict)
    distance: float = math.nan
    overlap: float = math.nan
    labels: dict[str, int] = field(default_factory=dict)
    dice: float = math.nan
    stretched_dice: float = math.nan
    tre: float = math.nan
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The result of an action, or None, and the text of its DataError among the problems."""
        try:
            return action()
        except DataError as error:
            if (text := str(error)) not in self.problems:
                self.problems.append(text)
            return None


def check_manifest(
    path: Path,
    reading: Reading | None = None,
    landmarks_space: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    image_channels: int = 1,
) -> list[CaseReport]:
    """Read every file of every case of a manifest, and report on each case.

    Args:
        path: the manifest.
        reading: what the dataset's keys ``header`` and ``nan`` say.
        landmarks_space: of landmarks that do not state it, as ``custom_dataset`` takes it.
        progress: is told, before each case, how many are done, and how many there are.
        image_channels: that the images must have, as ``custom_dataset`` takes it.

    Raises:
        DataError: the manifest itself cannot be read, or has no cases.
    """
    content = read_lists(path)
    entries = [
        (f"{split}[{index}]", entry)
        for split in SPLITS
        if isinstance(content.get(split), list)
        for index, entry in enumerate(content[split])
    ]
    if not entries:
        raise DataError(f"{path}: has no cases, only {sorted(content)}; a manifest is {EXAMPLE}")
    seen: dict[tuple[Path, ...], str] = {}
    reports: list[CaseReport] = []
    for where, entry in entries:
        if progress is not None:
            progress(len(reports), len(entries))
        reports.append(_report(path.parent, where, entry, reading or Reading(), landmarks_space, seen, image_channels))
    return reports


def _report(
    folder: Path,
    where: str,
    entry: Any,
    reading: Reading,
    space: str | None,
    seen: dict[tuple[Path, ...], str],
    image_channels: int,
) -> CaseReport:
    report = CaseReport(where, where)
    case = report.attempt(lambda: read_case(folder, where, entry))
    if case is None:
        return report
    report.name = case.name
    _check_repeated(report, case, seen)
    headers = _headers(report, case, reading)
    if len(report.grids) == 2:
        moving, fixed = (report.grids[side] for side in SIDES)
        report.distance = float(np.linalg.norm(moving.centre - fixed.centre))
        report.overlap = fixed.overlap(moving)
        if report.overlap < _LITTLE:
            report.doubts.append(
                f"{where}: {100 * report.overlap:.0f} % of the fixed image is in the moving one; are their headers in "
                "one world?"
            )
    if shares_modality(case):
        report.doubts.append(f"{where}: {describe_shared_modality(case)}")
    if not report.problems:
        report.doubts += report.attempt(lambda: check_case(case, space, reading, image_channels)) or []
    _check_slices(report)
    _check_voxels(report, case, headers, reading)
    _check_landmarks(report, case, space)
    return report


def _check_slices(report: CaseReport) -> None:
    flat = {side for side, grid in report.grids.items() if 1 in grid.size}
    if len(flat) == 1 and len(report.grids) == 2:
        side = flat.pop()
        report.problems.append(f"{report.where}.{side}: is a single slice, and the other image a volume")
    elif flat:
        report.doubts.append(f"{report.where}: is a pair of slices: it trains with an image_size like [1, H, W] only")


def _check_repeated(report: CaseReport, case: Case, seen: dict[tuple[Path, ...], str]) -> None:
    pair = tuple(case.files[key] for key in IMAGES)
    if pair[0] == pair[1]:
        report.doubts.append(f"{case.where}: moving and fixed are one file")
    other = seen.setdefault(pair, case.where)
    if other == case.where:
        return
    text = f"{case.where}: is the same pair as {other}"
    if other.partition("[")[0] == case.where.partition("[")[0]:
        report.doubts.append(text)
    else:
        report.problems.append(f"{text}; keep it in one list")


def _headers(report: CaseReport, case: Case, reading: Reading) -> dict[str, VolumeHeader]:
    headers = {}
    for key in (*IMAGES, *LABELS, *MASKS):
        if key not in case.files:
            continue
        header = report.attempt(_at(case, key, partial(reading.header_of, case, key)))
        if header is None:
            continue
        headers[key] = header
        report.doubts += [f"{case.where}.{key}: {case.files[key]}: {doubt}" for doubt in header.doubts]
        if key in IMAGES:
            report.grids[key] = Grid(header.shape, header.affine)
    return headers


def _check_voxels(report: CaseReport, case: Case, headers: dict[str, VolumeHeader], reading: Reading) -> None:
    """Read every volume, of which only the labels are kept."""
    labels: dict[str, torch.Tensor] = {}
    for key in headers:
        read = report.attempt(_at(case, key, partial(reading.volume_of, case, key)))
        if read is None:
            continue
        voxels = read[0].as_tensor()
        for channel in voxels if key in IMAGES else ():
            low, high = float(channel.min()), float(channel.max())
            if low != high:
                continue
            what = "voxels" if len(voxels) == 1 else "voxels of a channel"
            report.problems.append(
                f"{case.where}.{key}: {case.files[key]}: all {what} have the value {low:g}; there is nothing to "
                "register"
            )
        if key in LABELS:
            labels[key] = voxels
            report.labels[key] = len(structures(voxels))
            if not report.labels[key]:
                report.doubts.append(f"{case.where}.{key}: {case.files[key]}: is empty")
    if len(labels) < 2:
        return
    moving, fixed = (labels[key] for key in LABELS)
    grids = [Grid(headers[key].shape, headers[key].affine) for key in LABELS]
    if lonely := sorted({*structures(moving)} ^ {*structures(fixed)}):
        listed = ", ".join(map(str, lonely[:10]))
        report.doubts.append(f"{case.where}: only one of the two labels has the structure(s) {listed}")
    report.dice = mean_dice(moving, grids[0], fixed, grids[1])
    report.stretched_dice = mean_dice(moving, grids[0], fixed, grids[1], stretch(*grids))


def _check_landmarks(report: CaseReport, case: Case, space: str | None) -> None:
    points = {}
    for side in SIDES:
        key = f"{side}_landmarks"
        if case.has(key) and side in report.grids:
            in_world = partial(world_landmarks, case, key, report.grids[side], space)
            if (found := report.attempt(_at(case, key, in_world))) is not None:
                points[side] = found
    if len(points) == 2 and len(points["moving"]) == len(points["fixed"]):
        report.tre = float(np.linalg.norm(points["moving"] - points["fixed"], axis=1).mean())


def _at(case: Case, key: str, action: Callable[[], T]) -> Callable[[], T]:
    """The action, with the case and the key in front of the text of its error, as training shows it."""

    def named() -> T:
        try:
            return action()
        except DataError as error:
            raise DataError(f"{case.where}.{key}: {error}") from error

    return named

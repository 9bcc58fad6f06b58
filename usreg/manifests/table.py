"""The reports on a manifest's cases as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..spatial import Grid
from .checking import CaseReport

_SIDES = ("moving", "fixed")
_HEAD = ("case", "list", "moving", "fixed", "boxes", "labels", "Dice", "stretched", "TRE")
_NONE = "-"
_SAME = 1e-3  # part of a voxel size by which isotropic voxels may differ


def as_table(reports: Sequence[CaseReport]) -> str:
    """One row per case, then all problems and doubts, then a summary. Columns:

    moving, fixed: voxels along the file's axes, mm per voxel, directions of the axes; boxes: mm between their middles,
    share of the fixed one in the moving one; labels: structures of moving and fixed; Dice before registration in the
    world of the headers, and with the boxes stretched onto each other; TRE: mm before registration.
    """
    rows = [_HEAD, *(_row(report) for report in reports), _means(reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    for title, texts in (
        ("wrong", [text for report in reports for text in report.problems]),
        ("doubtful", [text for report in reports for text in report.doubts]),
    ):
        if texts:
            lines += ["", f"{title}:", *(f"  {text}" for text in texts)]
    wrong = sum(bool(report.problems) for report in reports)
    doubtful = sum(bool(report.doubts) for report in reports)
    lines += ["", f"{len(reports)} case(s): {wrong} wrong, {doubtful} doubtful"]
    return "\n".join(lines)


def _row(report: CaseReport) -> tuple[str, ...]:
    split = report.where.partition("[")[0]
    boxes = _NONE if math.isnan(report.distance) else f"{report.distance:.1f} mm, {100 * report.overlap:.0f} %"
    labels = [str(report.labels.get(f"{side}_label", _NONE)) for side in _SIDES]
    return (
        report.name + (" !" if report.problems else " ?" if report.doubts else ""),
        split,
        *(_grid(report.grids.get(side)) for side in _SIDES),
        boxes,
        "/".join(labels) if report.labels else _NONE,
        _number(report.dice, 3),
        _number(report.stretched_dice, 3),
        _number(report.tre, 2, " mm"),
    )


def _means(reports: Sequence[CaseReport]) -> tuple[str, ...]:
    values = [[getattr(report, name) for report in reports] for name in ("dice", "stretched_dice", "tre")]
    means = [_mean(column) for column in values]
    return ("mean", "", "", "", "", "", _number(means[0], 3), _number(means[1], 3), _number(means[2], 2, " mm"))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _number(value: float, digits: int, unit: str = "") -> str:
    return _NONE if math.isnan(value) else f"{value:.{digits}f}{unit}"


def _grid(grid: Grid | None) -> str:
    if grid is None:
        return _NONE
    spacing = grid.spacing
    isotropic = np.ptp(spacing) <= _SAME * spacing.max()
    sizes = " x ".join(f"{mm:.3g}" for mm in (spacing[:1] if isotropic else spacing))
    return f"{' x '.join(map(str, grid.size))}, {sizes} mm, {grid.orientation}"

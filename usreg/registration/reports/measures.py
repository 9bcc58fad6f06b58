"""How good a registration is: similarity, overlap, distances in mm, and the regularity of the field."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from usreg_kernels import compose_ddf, warp

from ...metrics.field import folding_ratio, log_jacobian_std
from ...metrics.intensity import global_ncc
from ...metrics.surface import mean_distance, percentile_95, surface_distances
from ...spatial import DisplacementField, Grid, vector_lengths
from ..outputs.results import Inputs, Results, without_flat_axes
from ..pair import Registration

Measure = dict[str, Any]
"""``before`` and ``after``, a number or None each; perhaps ``unit``, ``labels`` (the same by label) and more."""

MEANINGS = {
    "ncc": "correlation of the two images where both are, 1 at best; the mean over the channels",
    "overlap": "part of the fixed image that the moving one reaches",
    "dice": "overlap of the labels, 1 at best",
    "hd95": "95th percentile of the distance of the labels' surfaces",
    "asd": "mean distance of the labels' surfaces",
    "tre": "mean distance of the landmarks from where they should be",
    "neg_jac_ratio": "part of the voxels where the field folds, 0 at best",
    "log_jac_std": "standard deviation of the logarithm of the Jacobian determinant: 0 where no volume changes",
    "inverse_consistency": "mean distance by which field and inverse field miss the identity, in the worse order",
}
"""The measures of a report. "Before" is with the start of the registration."""

LOWER_IS_BETTER = ("hd95", "asd", "tre")
HIGHER_IS_BETTER = ("ncc", "dice")


def measure(inputs: Inputs, found: Registration, results: Results) -> dict[str, Measure]:
    """All measures for which the inputs are there, in the order of :data:`MEANINGS`."""
    measures = _similarity(inputs, results)
    if results.fixed_label is not None and results.label_before is not None and results.warped_label is not None:
        measures |= label_measures(results.fixed_label, results.label_before, results.warped_label, inputs.fixed.grid)
    if inputs.fixed_points is not None and inputs.moving_points is not None:
        misses = [
            np.linalg.norm(transform(inputs.fixed_points) - inputs.moving_points, axis=1)
            for transform in (inputs.start, found.transform)
        ]
        measures["tre"] = _entry(float(misses[0].mean()), float(misses[1].mean()), "mm")
        measures["tre"]["landmarks"] = [_entry(float(b), float(a)) for b, a in zip(*misses, strict=True)]
    if found.ddf is not None and results.jacobian is not None:
        measures |= _field_measures(found, results.jacobian)
    return measures


def _similarity(inputs: Inputs, results: Results) -> dict[str, Measure]:
    fixed = inputs.fixed.voxels
    pairs = [(results.before, results.seen_before), (results.warped, results.seen)]
    ncc = [_ncc(fixed[:, seen], image[:, seen]) for image, seen in pairs]
    overlap = [seen.double().mean().item() for _, seen in pairs]
    return {"ncc": _entry(ncc[0], ncc[1]), "overlap": _entry(overlap[0], overlap[1])}


def _ncc(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean over the channels (C, N)."""
    if not one.numel():
        return math.nan
    return global_ncc(one[:, None].double(), other[:, None].double()).mean().item()


def label_measures(fixed: torch.Tensor, before: torch.Tensor, after: torch.Tensor, grid: Grid) -> dict[str, Measure]:
    """Dice, HD95 and the mean surface distance of each label that both images have, and their means.

    Args:
        fixed, before, after: (X, Y, Z) whole numbers; 0 is background.
        grid: of all three.
    """
    there = set(before.unique().tolist()) | set(after.unique().tolist())
    labels = sorted((set(fixed.unique().tolist()) & there) - {0})
    boxes = [find_objects(volume.numpy()) for volume in (fixed, before, after)]

    def compare(label: int) -> list[tuple[float, float, float]]:
        found = []
        for moving, moving_boxes in ((before, boxes[1]), (after, boxes[2])):
            box = _common_box(_box(boxes[0], label), _box(moving_boxes, label))
            found.append(_compare(fixed[box] == label, moving[box] == label, grid))
        return found

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        compared = list(pool.map(compare, labels))
    measures = {}
    for number, (name, unit) in enumerate((("dice", ""), ("hd95", "mm"), ("asd", "mm"))):
        table = {
            str(label): _entry(one[number], other[number]) for label, (one, other) in zip(labels, compared, strict=True)
        }
        measures[name] = {**_entry(_mean(table, "before"), _mean(table, "after"), unit), "labels": table}
    return measures


def _compare(fixed: torch.Tensor, moving: torch.Tensor, grid: Grid) -> tuple[float, float, float]:
    """Dice, HD95 and ASD of two masks (X, Y, Z) that were cut out of a grid; flat axes do not count."""
    sizes = int(fixed.sum()), int(moving.sum())
    if 0 in sizes:
        return 0.0, math.nan, math.nan
    dice = 2 * int((fixed & moving).sum()) / sum(sizes)
    kept = [axis for axis, length in enumerate(grid.size) if length > 1]
    moving, fixed = (mask.reshape([mask.shape[axis] for axis in kept]) for mask in (moving, fixed))
    axes = grid.affine[:3, :3] if len(kept) == 3 else np.diag(grid.spacing[kept])
    distances = surface_distances(moving, fixed, axes)
    return dice, percentile_95(distances).item(), mean_distance(distances).item()


def _box(boxes: list[Any], label: int) -> tuple[slice, ...] | None:
    return boxes[label - 1] if 0 < label <= len(boxes) else None


def _common_box(one: tuple[slice, ...] | None, other: tuple[slice, ...] | None) -> tuple[slice, ...]:
    """The smallest box that holds both, one voxel wider where there is room: surfaces are found by their neighbours."""
    boxes = [box for box in (one, other) if box is not None]
    starts = [min(part.start for part in parts) for parts in zip(*boxes, strict=True)]
    stops = [max(part.stop for part in parts) for parts in zip(*boxes, strict=True)]
    return tuple(slice(max(0, start - 1), stop + 1) for start, stop in zip(starts, stops, strict=True))


def _field_measures(found: Registration, jacobian: torch.Tensor) -> dict[str, Measure]:
    assert found.ddf is not None
    ddf = without_flat_axes(found.ddf)
    folding = _entry(None, folding_ratio(ddf).item())
    folding["voxels"] = int((jacobian <= 0).sum())
    measures = {"neg_jac_ratio": folding, "log_jac_std": _entry(None, log_jacobian_std(ddf).item())}
    if found.field is not None and found.inverse_field is not None:
        fields = found.field, found.inverse_field
        mean, largest = map(max, zip(inverse_consistency(*fields), inverse_consistency(*fields[::-1]), strict=True))
        measures["inverse_consistency"] = {**_entry(None, mean, "mm"), "largest": _number(largest)}
    return measures


def inverse_consistency(field: DisplacementField, inverse: DisplacementField) -> tuple[float, float]:
    """Mean and largest distance in mm from each voxel to where inverse and field in a row take it.

    Points that leave the grid on the way do not count: nothing is known there.
    """
    matrix = torch.tensor(field.grid.affine[:3, :3]).to(field.displacement)
    size = field.grid.size
    first, second = (
        (torch.linalg.inv(matrix) @ one.displacement.flatten(1)).reshape(1, 3, *size) for one in (inverse, field)
    )
    stays = warp(torch.ones_like(first[:, :1]), first, padding_mode="zeros")[0, 0] >= 1
    missed = vector_lengths((matrix @ compose_ddf(second, first)[0].flatten(1)).reshape(3, *size), dim=0)[stays]
    return (missed.mean().item(), missed.max().item()) if missed.numel() else (math.nan, math.nan)


def _mean(table: dict[str, Measure], when: str) -> float:
    values: NDArray[np.float64] = np.array([entry[when] for entry in table.values() if entry[when] is not None])
    return float(values.mean()) if values.size else math.nan


def _entry(before: float | None, after: float | None, unit: str = "") -> Measure:
    return {"before": _number(before), "after": _number(after), **({"unit": unit} if unit else {})}


def _number(value: float | None) -> float | None:
    """None for what is no number, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None

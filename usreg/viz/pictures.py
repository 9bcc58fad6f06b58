"""Pictures of a registration: mid-slices of the images and of the field, and the course of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from usreg_kernels import jacobian_determinant

from ..spatial import Grid
from ..spatial.grid import DIRECTIONS

Array = NDArray[np.float32]

_PLANES = ("axial", "coronal", "sagittal")
_AXES = "zyx"
_WORLD_PLANES = ("sagittal", "coronal", "axial")
"""The planes across x, y and z of the world."""
_COLUMNS = (
    "moving",
    "fixed",
    "warped",
    "|moving - fixed|",
    "|warped - fixed|",
    "displacement grid",
    "Jacobian determinant",
)
_GRID_LINES = 16  # about as many per axis
MOVING_COLOUR, FIXED_COLOUR, FOLD_COLOUR = "#ff9d2e", "#37c8ff", "#111111"
_CELL_INCHES = 1.9
_DPI = 150


def save_registration_figure(
    path: str | Path,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    warped: torch.Tensor,
    ddf: torch.Tensor,
    title: str,
    *,
    moving_label: torch.Tensor | None = None,
    fixed_label: torch.Tensor | None = None,
    warped_label: torch.Tensor | None = None,
    spacing: Sequence[float] | torch.Tensor | None = None,
    affine: torch.Tensor | None = None,
) -> None:
    """Write a PNG of one case: the middle axial, coronal and sagittal slice (rows) of what went in and came out.

    Of an image with an axis of one voxel, only the slice across that axis is drawn.

    Columns: moving, fixed and warped image, the absolute difference before and after, the grid of the fixed image
    drawn at ``x + ddf(x)``, and the field's Jacobian determinant (blue below 1, red above, black where it folds).

    Args:
        path: the file; its folder must exist.
        moving: (D, H, W), as the other images, or (C, D, H, W), of which the first channel is drawn; leading
            dimensions of size 1 are dropped.
        fixed: (D, H, W).
        warped: (D, H, W).
        ddf: (3, D, H, W) in voxels, channels z, y, x.
        title: one line above the picture.
        moving_label: (L, D, H, W) in [0, 1]; the outline of its first channel is drawn, as of the other labels.
        fixed_label: (L, D, H, W).
        warped_label: (L, D, H, W).
        spacing: mm per voxel z, y, x, for the slices' proportions; 1 without.
        affine: (4, 4) from voxels of the fixed image to mm in the world, RAS; gives the spacing, the names of the
            planes and the places of the slices in mm.
    """
    images = [_volume(image[:1] if image.dim() == 4 else image) for image in (moving, fixed, warped)]
    labels = [None if label is None else _volume(label, 4)[0] for label in (moving_label, fixed_label, warped_label)]
    field = _volume(ddf, 4)
    jacobian = jacobian_determinant(torch.from_numpy(field)[None])[0, 0].numpy()
    grid = None if affine is None else Grid(images[0].shape, affine.cpu().numpy())
    voxel = np.ones(3) if spacing is None else np.asarray(spacing, dtype=float)
    voxel = voxel if grid is None else grid.spacing
    differences = [np.abs(image - images[1]) for image in (images[0], images[2])]

    across = _drawn_axes(images[0].shape)
    figure, axes, below = _empty_figure(images[0].shape, voxel, across)
    grey = {"cmap": "gray", "vmin": min(i.min() for i in images), "vmax": max(i.max() for i in images)}
    heat = {"cmap": "magma", "vmin": 0.0, "vmax": max(float(d.max()) for d in differences) or 1.0}
    for axis, row in zip(across, axes, strict=True):
        aspect = _aspect(axis, voxel)
        for column, image in enumerate(images):
            row[column].imshow(_slice(image, axis), aspect=aspect, origin="lower", **grey)
        for column, difference in enumerate(differences, start=3):
            shown = row[column].imshow(_slice(difference, axis), aspect=aspect, origin="lower", **heat)
        _draw_outlines(row[:3], labels, axis)
        _draw_grid(row[5], field, axis, aspect)
        determinant = _draw_jacobian(row[6], jacobian, axis, aspect)
    names = _row_names(images[0].shape, grid)
    _finish(axes, [names[axis] for axis in across])
    figure.suptitle(title, fontsize=12, fontweight="bold")
    _draw_legend(below[0], labels)
    _draw_colour_bar(figure, shown, below[1], "intensity difference")
    _draw_colour_bar(figure, determinant, below[2], "volume ratio")
    figure.savefig(path, dpi=_DPI)


def _volume(tensor: torch.Tensor, dimensions: int = 3) -> Array:
    """A float32 array on the CPU of the last so many dimensions, those before having size 1."""
    array = tensor.detach().float().cpu().numpy()
    return array.reshape(array.shape[-dimensions:])


def _slice(volume: Array, axis: int) -> Array:
    """The middle slice across ``axis`` of a volume (D, H, W)."""
    return np.take(volume, volume.shape[axis] // 2, axis=axis)


def _aspect(axis: int, voxel: NDArray[np.float64]) -> float:
    """Height over width of a voxel in the slices across ``axis``."""
    vertical, horizontal = np.delete(voxel, axis)
    return float(vertical / horizontal)


def _drawn_axes(shape: Sequence[int]) -> list[int]:
    """The axes that slices are drawn across: those whose slices have an extent, or all where none has."""
    return [axis for axis in range(3) if min(np.delete(shape, axis)) > 1] or list(range(3))


def _empty_figure(
    shape: Sequence[int], voxel: NDArray[np.float64], across: Sequence[int]
) -> tuple[Figure, Any, list[Axes]]:
    """The figure, its axes (planes, columns), and below them those of the legend and of the two colour bars."""
    extents = np.asarray(shape) * voxel
    heights, widths = zip(*(np.delete(extents, axis) for axis in across), strict=True)
    width = max(widths)
    inches = _CELL_INCHES * np.array([len(_COLUMNS), sum(heights) / width])
    figure = Figure(figsize=(inches[0] + 0.4, inches[1] + 1.2), layout="constrained")
    grid = figure.add_gridspec(len(across) + 1, len(_COLUMNS), height_ratios=[*heights, 0.06 * width])
    rows = [[figure.add_subplot(grid[row, column]) for column in range(len(_COLUMNS))] for row in range(len(across))]
    below = [figure.add_subplot(grid[-1, columns]) for columns in (slice(0, 3), slice(3, 5), slice(6, 7))]
    return figure, np.array(rows), below


def _draw_outlines(row: Sequence[Axes], labels: Sequence[Array | None], axis: int) -> None:
    moving, fixed, warped = labels
    drawn = [(row[0], moving, MOVING_COLOUR), (row[1], fixed, FIXED_COLOUR)]
    drawn += [(row[2], fixed, FIXED_COLOUR), (row[2], warped, MOVING_COLOUR)]
    for ax, label, colour in drawn:
        if label is not None and (_slice(label, axis) > 0.5).any():
            ax.contour(_slice(label, axis), levels=[0.5], colors=[colour], linewidths=1.2)


def _draw_legend(ax: Axes, labels: Sequence[Array | None]) -> None:
    """Say what the outlines are, where there are any."""
    ax.set_axis_off()
    named = {"moving label, warped with the image": MOVING_COLOUR, "fixed label": FIXED_COLOUR}
    if any(label is not None for label in labels):
        lines = [Line2D([], [], color=colour, label=name) for name, colour in named.items()]
        ax.legend(handles=lines, loc="upper center", ncols=len(lines), fontsize=9, frameon=False)


def _draw_grid(ax: Axes, field: Array, axis: int, aspect: float) -> None:
    """The lines of a regular grid of the fixed image, where the field sends them in the plane of the slice."""
    vertical, horizontal = (_slice(field[component], axis) for component in range(3) if component != axis)
    rows, columns = np.indices(vertical.shape)
    y, x = rows + vertical, columns + horizontal
    for line in range(0, vertical.shape[0], -(-vertical.shape[0] // _GRID_LINES)):
        ax.plot(x[line], y[line], color="#2b4c7e", linewidth=0.7)
    for line in range(0, vertical.shape[1], -(-vertical.shape[1] // _GRID_LINES)):
        ax.plot(x[:, line], y[:, line], color="#2b4c7e", linewidth=0.7)
    ax.set_xlim(-0.5, vertical.shape[1] - 0.5)
    ax.set_ylim(-0.5, vertical.shape[0] - 0.5)
    ax.set_aspect(aspect)


def _draw_jacobian(ax: Axes, jacobian: Array, axis: int, aspect: float) -> AxesImage:
    reach = max(0.1, float(np.abs(np.clip(jacobian, 0, 2) - 1).max()))
    plane = _slice(jacobian, axis)
    norm = TwoSlopeNorm(vcenter=1.0, vmin=1 - reach, vmax=1 + reach)
    shown = ax.imshow(plane, cmap="RdBu_r", norm=norm, aspect=aspect, origin="lower")
    folded = np.ma.masked_where(plane > 0, np.ones_like(plane))
    ax.imshow(folded, cmap=ListedColormap([FOLD_COLOUR]), aspect=aspect, origin="lower")
    return shown


def _row_names(shape: Sequence[int], grid: Grid | None) -> list[str]:
    """For each axis, the plane that its middle slice is in, and where that is: in mm where the grid is known."""
    middle = [length // 2 for length in shape]
    if grid is None:
        return [f"{plane}\n{axis} = {at}" for plane, axis, at in zip(_PLANES, _AXES, middle, strict=True)]
    place = grid.to_world([middle])[0]
    world = [next(axis for axis, ends in enumerate(DIRECTIONS) if letter in ends) for letter in grid.orientation]
    return [f"{_WORLD_PLANES[axis]}\n{'xyz'[axis]} = {place[axis]:.0f} mm" for axis in world]


def _finish(axes: Any, rows: Sequence[str]) -> None:
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_color("#bbbbbb")
    for ax, name in zip(axes[0], _COLUMNS, strict=True):
        ax.set_title(name, fontsize=10)
    for row, name in zip(axes, rows, strict=True):
        row[0].set_ylabel(name, fontsize=10)


def _draw_colour_bar(figure: Figure, shown: AxesImage, ax: Axes, label: str) -> None:
    bar = figure.colorbar(shown, cax=ax, orientation="horizontal")
    bar.set_label(label, fontsize=9)
    bar.outline.set_visible(False)
    ax.tick_params(labelsize=8)

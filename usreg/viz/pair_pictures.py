"""Pictures of one registered pair: before and after, checkerboards, the deformation, and the losses."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..spatial import DisplacementField, Grid, vector_lengths
from .pictures import FIXED_COLOUR, FOLD_COLOUR, MOVING_COLOUR
from .planes import Plane, Viewer

if TYPE_CHECKING:
    from ..registration.outputs.results import Results
    from ..registration.pair import Registration, Volume

_CELL_INCHES = 2.3
_DPI = 110
_GREY = "#666666"
_SQUARES = 8  # of a checkerboard, along the longer side
_GRID_LINES = 24  # about as many along the longer side
_QUANTILES = (0.005, 0.995)
_SAMPLES = 500_000  # voxels, about, that the quantiles are taken of

EMPTY: Mapping[Any, Any] = {}
Draw = Callable[[Axes, Plane], None]


@dataclass(frozen=True)
class PairVolumes:
    """What is drawn, all of it on one grid, (X, Y, Z) each.

    Attributes:
        grid: the fixed image's.
        fixed, before, warped: the fixed image, and the moving one by the start and by the result.
        fixed_label, label_before, warped_label: whole numbers, 0 is background; None where there are none.
        field: the displacement in mm; None without a deformable stage.
        jacobian: its determinant.
    """

    grid: Grid
    fixed: NDArray[Any]
    before: NDArray[Any]
    warped: NDArray[Any]
    fixed_label: NDArray[Any] | None = None
    label_before: NDArray[Any] | None = None
    warped_label: NDArray[Any] | None = None
    field: DisplacementField | None = None
    jacobian: NDArray[Any] | None = None

    @classmethod
    def of(cls, fixed: Volume, found: Registration, results: Results) -> PairVolumes:
        """Of a registration."""
        return cls(
            grid=fixed.grid,
            fixed=fixed.voxels[0].numpy(),
            before=results.before[0].numpy(),
            warped=results.warped[0].numpy(),
            fixed_label=_array(results.fixed_label),
            label_before=_array(results.label_before),
            warped_label=_array(results.warped_label),
            field=found.field,
            jacobian=_array(results.jacobian),
        )

    def viewer(self) -> Viewer:
        """Through the middle of the labels where there are any, else of the image."""
        label = self.fixed_label if self.fixed_label is not None else self.warped_label
        if label is None or not label.any():
            return Viewer(self.grid)
        ends = [np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        return Viewer(self.grid, [(float(end[0]) + float(end[-1])) / 2 for end in ends])


def _array(tensor: torch.Tensor | None) -> NDArray[Any] | None:
    return None if tensor is None else tensor.numpy()


def draw_before_after(volumes: PairVolumes) -> bytes:
    """A PNG: fixed, moving and warped image with the labels' outlines, and the images laid over each other."""
    view = volumes.viewer()
    fixed, before, warped = (_scaled(image) for image in (volumes.fixed, volumes.before, volumes.warped))

    def image(voxels: NDArray[Any], *outlines: tuple[NDArray[Any] | None, str]) -> Draw:
        def draw(ax: Axes, plane: Plane) -> None:
            _show(ax, view, plane, voxels)
            for label, colour in outlines:
                _outline(ax, view, plane, label, colour)

        return draw

    def overlay(voxels: NDArray[Any]) -> Draw:
        def draw(ax: Axes, plane: Plane) -> None:
            magenta, green = view.slice(voxels, plane), view.slice(fixed, plane)
            ax.imshow(np.stack([magenta, green, magenta], axis=-1))

        return draw

    labels = {
        "fixed": (volumes.fixed_label, FIXED_COLOUR),
        "before": (volumes.label_before, MOVING_COLOUR),
        "after": (volumes.warped_label, MOVING_COLOUR),
    }
    columns = {
        "fixed": image(fixed, labels["fixed"]),
        "moving, before": image(before, labels["fixed"], labels["before"]),
        "moving, after": image(warped, labels["fixed"], labels["after"]),
        "fixed and moving, before": overlay(before),
        "fixed and moving, after": overlay(warped),
    }
    notes = [("fixed, in the overlays", "#00b300"), ("moving, in the overlays", "#d000d0")]
    if volumes.warped_label is not None:
        notes = [("fixed labels", FIXED_COLOUR), ("moving labels", MOVING_COLOUR), *notes]
    figure = _panels(view, columns)
    _legend(figure, notes)
    return _png(figure)


def draw_checkerboards(volumes: PairVolumes) -> bytes:
    """A PNG: squares of the fixed and of the moving image in turn, before and after. Edges go on where they match."""
    view = volumes.viewer()
    fixed, before, warped = (_scaled(image) for image in (volumes.fixed, volumes.before, volumes.warped))
    side = max(np.array(view.grid.size) * view.grid.spacing) / _SQUARES
    squares = [np.arange(n) * mm // side for n, mm in zip(volumes.grid.size, volumes.grid.spacing, strict=True)]
    board = (squares[0][:, None, None] + squares[1][:, None] + squares[2]) % 2

    def mixed(moving: NDArray[Any]) -> Draw:
        return lambda ax, plane: _show(ax, view, plane, np.where(board == 0, fixed, moving))

    return _png(_panels(view, {"before": mixed(before), "after": mixed(warped)}))


def draw_deformation(volumes: PairVolumes) -> bytes:
    """A PNG: a grid of the fixed image where the field sends it, the field's length, and its Jacobian determinant.

    The affine is not part of it. Needs a field.
    """
    assert volumes.field is not None
    assert volumes.jacobian is not None
    view = volumes.viewer()
    field, jacobian = volumes.field, volumes.jacobian
    length = vector_lengths(field.displacement, dim=0).numpy()
    reach = max(0.1, float(np.abs(np.clip(jacobian, 0, 2) - 1).max()))
    shown: dict[str, Any] = {}

    def lengths(ax: Axes, plane: Plane) -> None:
        shown["displacement, mm"] = _show(ax, view, plane, length, cmap="viridis", vmin=0, vmax=length.max() or 1)

    def determinants(ax: Axes, plane: Plane) -> None:
        norm = TwoSlopeNorm(vcenter=1.0, vmin=1 - reach, vmax=1 + reach)
        shown["volume after / before"] = _show(ax, view, plane, jacobian, cmap="PuOr", norm=norm)
        _mark_folds(ax, view, plane, jacobian)

    columns: dict[str, Draw] = {
        "deformed grid": lambda ax, plane: _draw_grid(ax, view, plane, field),
        "length of the displacement": lengths,
        "Jacobian determinant": determinants,
    }
    figure = _panels(view, columns, bars={1: "displacement, mm", 2: "volume after / before"}, shown=shown)
    folded = int((jacobian <= 0).sum())
    _legend(figure, [(f"folded voxels: {folded} of {jacobian.size}", FOLD_COLOUR)])
    return _png(figure)


def draw_losses(stages: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> bytes:
    """A PNG with a panel for each stage: the loss of each iteration, the levels one after another.

    Args:
        stages: the name of each, and the losses of its levels.
    """
    figure = Figure(figsize=(max(4.0, 3.4 * len(stages)), 2.6), layout="constrained")
    for ax, (name, levels) in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        start = 0
        for number, losses in enumerate(levels):
            iterations = np.arange(start, start + len(losses)) + 1
            ax.plot(iterations, losses, linewidth=1.5, color=FIXED_COLOUR if number % 2 else "#2b4c7e")
            if start:
                ax.axvline(start + 0.5, color="#bbbbbb", linewidth=0.8, linestyle="--")
            start += len(losses)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("iteration, level after level", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("loss", fontsize=8)
    return _png(figure)


def _panels(
    view: Viewer, columns: Mapping[str, Draw], bars: Mapping[int, str] = EMPTY, shown: Mapping[str, Any] = EMPTY
) -> Figure:
    """A figure with a row for each plane and a column for each drawing; colour bars below some columns."""
    extents = [view.extent(plane) for plane in view.planes]
    width = max(extent[1] for extent in extents)
    heights = [extent[0] / width for extent in extents]
    extra = 0.5 if bars else 0.0
    size = (_CELL_INCHES * len(columns) + 0.5, _CELL_INCHES * sum(heights) + 0.7 + extra)
    figure = Figure(figsize=size, layout="constrained")
    ratios = heights + ([0.06] if bars else [])
    cells = figure.add_gridspec(len(ratios), len(columns), height_ratios=ratios)
    for row, plane in enumerate(view.planes):
        for column, (title, draw) in enumerate(columns.items()):
            ax = figure.add_subplot(cells[row, column])
            draw(ax, plane)
            _tidy(ax, view, plane, letters=column == 0)
            if row == 0:
                ax.set_title(title, fontsize=10)
            if column == 0:
                ax.set_ylabel(view.title(plane), fontsize=9, labelpad=8)
    for column, label in bars.items():
        ax = figure.add_subplot(cells[-1, column])
        bar = figure.colorbar(shown[label], cax=ax, orientation="horizontal")
        bar.set_label(label, fontsize=8)
        bar.outline.set_visible(False)
        ax.tick_params(labelsize=8)
    return figure


def _tidy(ax: Axes, view: Viewer, plane: Plane, letters: bool) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlim(-0.5, view.grid.size[plane.columns] - 0.5)
    ax.set_ylim(view.grid.size[plane.rows] - 0.5, -0.5)
    ax.set_aspect(view.aspect(plane))
    for spine in ax.spines.values():
        spine.set_color("#cccccc")
    if letters:
        places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
        sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
        for letter, place, (horizontal, vertical) in zip(plane.letters, places, sides, strict=True):
            look: dict[str, Any] = {
                "ha": horizontal,
                "va": vertical,
                "fontsize": 8,
                "fontweight": "bold",
                "color": "white",
            }
            shade = {"boxstyle": "circle,pad=0.15", "facecolor": "#00000099", "edgecolor": "none"}
            ax.text(*place, letter, transform=ax.transAxes, bbox=shade, **look)


def _scaled(image: NDArray[Any]) -> NDArray[np.float32]:
    """Intensities from 0 to 1, by quantiles."""
    low, high = np.quantile(image.ravel()[:: 1 + image.size // _SAMPLES], _QUANTILES)
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)


def _show(ax: Axes, view: Viewer, plane: Plane, volume: NDArray[Any], **look: Any) -> Any:
    return ax.imshow(view.slice(volume, plane), **(look or {"cmap": "gray", "vmin": 0, "vmax": 1}))


def _outline(ax: Axes, view: Viewer, plane: Plane, label: NDArray[Any] | None, colour: str) -> None:
    """The outlines of the structures of a label, each in its box."""
    if label is None:
        return
    cut, lines = np.pad(view.slice(label, plane), 1), []
    for number in np.unique(cut[cut != 0]):
        inside = cut == number
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0] - 1, rows[-1] + 2), slice(columns[0] - 1, columns[-1] + 2)
        outlines = contour_generator(z=inside[box].astype(float)).lines(0.5)
        corner = np.array([box[1].start - 1, box[0].start - 1])  # x, y, without the margin
        lines += [np.asarray(outline) + corner for outline in outlines]
    ax.add_collection(LineCollection(lines, colors=colour, linewidths=1.1))


def _draw_grid(ax: Axes, view: Viewer, plane: Plane, field: DisplacementField) -> None:
    """The lines of a regular grid, where the field sends them in the plane of the slice."""
    vectors = np.stack([view.slice(component, plane) for component in field.displacement.numpy()])  # mm
    ddf = np.tensordot(np.linalg.inv(view.grid.affine[:3, :3]), vectors, axes=1)
    down, right = ddf[plane.rows], ddf[plane.columns]
    rows, columns = np.indices(down.shape)
    places = np.stack([columns + right, rows + down], axis=-1)
    height, width = view.extent(plane)
    step = max(height, width) / _GRID_LINES
    every = [max(1, round(step / view.grid.spacing[axis])) for axis in (plane.rows, plane.columns)]
    lines = [*places[:: every[0]], *places[:, :: every[1]].swapaxes(0, 1)]
    ax.add_collection(LineCollection(lines, colors="#2b4c7e", linewidths=0.7))


def _mark_folds(ax: Axes, view: Viewer, plane: Plane, jacobian: NDArray[Any]) -> None:
    """Folded voxels in black, with a ring around each where they are few."""
    cut = view.slice(jacobian, plane)
    ax.imshow(np.ma.masked_where(cut > 0, np.ones_like(cut)), cmap=ListedColormap([FOLD_COLOUR]))
    rows, columns = np.nonzero(cut <= 0)
    if 0 < len(rows) <= 50:
        ax.plot(columns, rows, "o", markersize=7, markerfacecolor="none", markeredgecolor=FOLD_COLOUR)


def _legend(figure: Figure, notes: Sequence[tuple[str, str]]) -> None:
    lines = [Line2D([], [], color=colour, linewidth=3, label=text) for text, colour in notes]
    figure.legend(
        handles=lines, loc="outside lower center", ncols=len(lines), fontsize=9, frameon=False, labelcolor=_GREY
    )


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, dpi=_DPI, format="png", pil_kwargs={"optimize": True})
    return content.getvalue()

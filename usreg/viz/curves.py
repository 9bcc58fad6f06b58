"""The course of a training run: losses and metrics over the epochs, from the run's CSV file."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import DataError

_IDENTITY = "identity_"
_BOOKKEEPING = ("step", "skipped", "val_skipped")  # columns that say nothing as curves
_PANEL_INCHES = (3.0, 2.2)
_COLUMNS = 4

Series = tuple[list[float], list[float]]


def save_curves(path: str | Path, csv_path: str | Path) -> None:
    """Write a PNG with one panel for the losses and one per metric.

    Args:
        path: the picture.
        csv_path: one row per epoch under a header. ``epoch`` is the horizontal axis; columns whose name holds ``loss``
            share the first panel; ``identity_X`` is drawn dashed in the panel of the metric ``X``. Empty cells are
            epochs without a value; a column without any number is left out.

    Raises:
        DataError: the file has no ``epoch`` column or no row.
    """
    series = _read(Path(csv_path))
    losses = [name for name in series if "loss" in name]
    others = [name for name in series if name not in losses and name not in _BOOKKEEPING]
    metrics = [name for name in others if not name.startswith(_IDENTITY)]
    panels = ([losses] if losses else []) + [[name] for name in metrics]
    columns = min(_COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, names in zip(axes, panels, strict=False):
        _draw_panel(ax, names, series)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.savefig(path, dpi=150)


def _draw_panel(ax: Axes, names: list[str], series: dict[str, Series]) -> None:
    for name in names:
        label = name.replace("_", " ") if "loss" in name else "model"
        ax.plot(*series[name], marker="o", markersize=2.5, linewidth=1.4, label=label)
        if identity := series.get(_IDENTITY + name):
            ax.plot(*identity, color="#888888", linestyle="--", linewidth=1.2, label="identity")
    ax.set_title("loss" if "loss" in names[0] else names[0].replace("_", " "), fontsize=10)
    ax.set_xlabel("epoch", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(ax.lines) > 1:
        ax.legend(fontsize=7, frameon=False)


def _read(csv_path: Path) -> dict[str, Series]:
    """By column, the epochs and the values of the rows in which it has a number."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "epoch" not in rows[0]:
        raise DataError(f"{csv_path}: a header with 'epoch' and at least one row are needed to draw curves")
    series: dict[str, Series] = {}
    for name in rows[0]:
        pairs = [(_number(row["epoch"]), _number(row[name])) for row in rows]
        pairs = [pair for pair in pairs if all(math.isfinite(value) for value in pair)]
        if name != "epoch" and pairs:
            series[name] = ([x for x, _ in pairs], [y for _, y in pairs])
    return series


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan

"""Results as pictures: one line per contender, named at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench import accuracy
from bench.cases import WINDOW
from bench.results import Entry, Results

OURS_COLOUR = "#c2410c"
COLOURS = ("#1d4ed8", "#0891b2", "#15803d", "#65a30d", "#7e22ce", "#a16207", "#be185d")
REFERENCE_COLOUR = "#9ca3af"

LABEL_DISTANCE = 0.052
"""Between two labels at the ends of lines, as a share of the axis' height."""

Value = Callable[[Entry], float]
Points = list[tuple[float, float]]


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw what the results hold, and errors where the device is there to compute them; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    volumes = _volumes(results)
    scaling = [entry for entry in volumes if entry["window"] == WINDOW]
    windows = _most_windows(volumes)
    title = f"LNCC, forward and backward, float32\n{results.machine}"
    drawn = {
        "speed": _lines(scaling, _voxels, _milliseconds, f"{title}, window {WINDOW}", ("voxels", "time per run, ms")),
        "memory": _lines(scaling, _voxels, _megabytes, f"{title}, window {WINDOW}", ("voxels", "extra memory, MB")),
        "windows": _lines(
            windows, lambda e: e["window"], _milliseconds, _window_title(title, windows), ("window", "time per run, ms")
        ),
    }
    if results.device == "cpu" or torch.cuda.is_available():  # results of a GPU may be published elsewhere
        drawn["accuracy"] = _accuracy(results)
    paths = {name: folder / f"bench-{results.device}-{name}.png" for name in drawn}
    for name, figure in drawn.items():
        figure.savefig(paths[name], dpi=150)
    return list(paths.values())


def _volumes(results: Results) -> list[Entry]:
    chosen = {"kind": "loss", "op": "lncc", "pass": "forward+backward", "dtype": "float32"}
    return [entry for entry in results.select(**chosen) if len(entry["shape"]) == 5 and not entry["wrong"]]


def _most_windows(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of the shape that was measured with the most windows."""
    shapes = [entry["shape"] for entry in entries]
    best = max(shapes, key=lambda shape: len({e["window"] for e in entries if e["shape"] == shape}), default=None)
    return [entry for entry in entries if entry["shape"] == best]


def _window_title(title: str, entries: Sequence[Entry]) -> str:
    return f"{title}, {' x '.join(map(str, entries[0]['shape']))}" if entries else title


def _voxels(entry: Entry) -> float:
    return float(entry["voxels"])


def _milliseconds(entry: Entry) -> float:
    return 1e3 * entry.seconds


def _megabytes(entry: Entry) -> float:
    return float(entry["peak_extra_bytes"] or 0) / 1e6


def _lines(entries: Sequence[Entry], x: Value, y: Value, title: str, labels: tuple[str, str]) -> Figure:
    """Log-log lines of y over x, one per contender."""
    series: dict[str, Points] = {}
    mine = set()
    for entry in entries:
        if y(entry) > 0:
            series.setdefault(entry["contender"], []).append((x(entry), y(entry)))
            mine |= {entry["contender"]} if entry["ours"] else set()
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    ax = figure.subplots()
    ax.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1])
    ax.set_title(title, fontsize=9, loc="left")
    colours = iter(COLOURS * (1 + len(series) // len(COLOURS)))
    ends = []
    for name, points in series.items():
        reference = name in mine and name.endswith("reference")
        colour = REFERENCE_COLOUR if reference else OURS_COLOUR if name in mine else next(colours)
        points.sort()
        ax.plot(
            *zip(*points, strict=True),
            color=colour,
            marker="o",
            markersize=4,
            linewidth=2.4 if colour == OURS_COLOUR else 1.3,
            linestyle="--" if "compiled" in name else ":" if reference else "-",
        )
        ends.append((name, colour, points[-1]))
    _tick(ax, sorted({px for points in series.values() for px, _ in points}))
    _label_ends(ax, ends)
    return figure


def _tick(ax: Axes, values: Sequence[float]) -> None:
    """Ticks where something was measured."""
    ax.xaxis.set_major_locator(FixedLocator(list(values)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e6:.2g} M" if v >= 1e5 else f"{v:g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _label_ends(ax: Axes, ends: Sequence[tuple[str, str, tuple[float, float]]]) -> None:
    """Names to the right of the axes, at the heights of the lines' ends, moved apart where they would overlap.

    Lines that end earlier have theirs beside their last points.
    """
    low, high = (math.log(limit) for limit in ax.get_ylim())
    last = max((x for _, _, (x, _) in ends), default=0.0)
    for x in {end[0] for _, _, end in ends}:
        group = sorted((end for end in ends if end[2][0] == x), key=lambda end: end[2][1])
        heights = _apart([(math.log(y) - low) / (high - low) for _, _, (_, y) in group])
        column = 1.04 if x == last else ax.transAxes.inverted().transform(ax.transData.transform((x, 1.0)))[0] + 0.03
        for height, (name, colour, end) in zip(heights, group, strict=True):
            ax.annotate(
                name,
                end,
                xytext=(column, height),
                textcoords="axes fraction",
                color=colour,
                fontsize=8,
                va="center",
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
                fontweight="bold" if colour == OURS_COLOUR else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 3, "relpos": (0, 0.5)},
            )


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising heights with at least :data:`LABEL_DISTANCE` between them, none above 1 if there is room."""
    placed: list[float] = []
    for height in heights:
        placed.append(max([height] + [lower + LABEL_DISTANCE for lower in placed[-1:]]))
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_DISTANCE
    return placed


def _accuracy(results: Results) -> Figure:
    """Errors in float32 on data on which low precision fails, for every window."""
    found = list(accuracy.rows(results.device))
    names = list(dict.fromkeys(row.data for row in found))
    figure = Figure(figsize=(8.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, part in zip(panels, ("loss", "gradient"), strict=True):
        for contender, colour, shift in ((accuracy.OURS, OURS_COLOUR, -0.14), (accuracy.MONAI, COLOURS[0], 0.14)):
            points = [
                (getattr(row, part), names.index(row.data) + shift) for row in found if row.contender == contender
            ]
            ax.scatter(*zip(*points, strict=True), s=16, color=colour, alpha=0.75, linewidths=0, label=contender)
        ax.set_xscale("log")
        ax.set_xlabel(f"relative error of the {part}", fontsize=8)
        ax.axvline(1.0, color=REFERENCE_COLOUR, linewidth=0.8)
        ax.text(1.0, 0.4, " 100 %", fontsize=7, color=REFERENCE_COLOUR, va="center")
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), [name.replace(", aligned", ",\naligned") for name in names])
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=8, frameon=False, loc="upper right")
    windows = ", ".join(map(str, accuracy.WINDOWS))
    figure.suptitle(f"LNCC in float32 against float64, one point for each window of {windows}", fontsize=9)
    return figure

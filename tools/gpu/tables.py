"""Measurements and the tables of the summary. Nothing here imports torch, which a broken library may bring down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BY_COUNTS, MEASURED = "by counts", "measured"
"""Ways to choose a tile: what the library takes by itself, and what it measures with ``USREG_LNCC_TILES``."""

MOST_KERNELS = 6
LONGEST_NAME = 60


@dataclass(frozen=True)
class Row:
    """One measurement. Times are in seconds; None where there is nothing to measure.

    Attributes:
        problem: why there are no times: the backend declines, memory is short, or a failure.
        failed: whether the problem is a fault.
    """

    op: str
    variant: str
    shape: str
    dtype: str
    backend: str
    forward: float | None = None
    step: float | None = None
    loop: float | None = None
    launch: float | None = None
    saved_bytes: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0
    kernels: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    failed: bool = False

    @property
    def backward(self) -> float | None:
        """Seconds of backward: the step without forward."""
        return None if self.step is None or self.forward is None else self.step - self.forward

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two backends, or two runs, are compared by."""
        return self.op, self.variant, self.shape, self.dtype


def cell(text: str) -> str:
    """Text that a table can hold."""
    return " ".join(text.replace("|", "/").split())


def microseconds(seconds: float | None) -> str:
    """For tables."""
    return "–" if seconds is None else f"{1e6 * seconds:.1f}"


def line(row: Row, peak: float) -> str:
    """A row of the table, Markdown."""
    cells = [f"{row.op} {row.variant}".strip(), row.shape, row.dtype, row.backend]
    if row.problem is not None:
        return f"| {' | '.join(cells)} | {cell(row.problem)} | | | | |"
    backward = row.backward
    shares = [
        "–" if not seconds else f"{size / seconds / peak:.0%}"
        for size, seconds in ((row.forward_bytes, row.forward), (row.backward_bytes, backward))
    ]
    device = row.step if row.step is not None else row.forward
    overhead = "–" if not row.loop or device is None else f"{max(0.0, 1 - device / row.loop):.0%}"
    cells += [microseconds(row.forward), microseconds(backward), " / ".join(shares), overhead]
    return f"| {' | '.join(cells)} | {row.saved_bytes / 1e6:.1f} |"


HEADER = (
    "| call | shape | dtype | backend | forward, µs | backward, µs | share of the memory's peak, forward / backward "
    "| launch overhead | saved, MB |\n|---|---|---|---|---|---|---|---|---|"
)


def load(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """What :mod:`tools.gpu.kernel_times` wrote: all of it, and the rows."""
    content = json.loads(file.read_text())
    return content, [Row(**row) for row in content["rows"]]


def times_table(content: dict[str, Any], rows: Iterable[Row]) -> str:
    """All measurements as a table."""
    return "\n".join([HEADER, *(line(row, content["peak"]) for row in rows)])


def pairs(rows: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows of the same call and backend that both have times."""
    known = {(row.key, row.backend): row for row in others if row.problem is None}
    return [
        (row, known[row.key, row.backend]) for row in rows if row.problem is None and (row.key, row.backend) in known
    ]


def faster_backends(rows: Iterable[Row]) -> list[tuple[tuple[str, str, str, str], str, float]]:
    """Per call that two backends measured: the faster one, and how many times as long the other takes."""
    by_key: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row.problem is None:
            by_key.setdefault(row.key, []).append(row)
    found = []
    for key, same in by_key.items():
        if len(same) > 1:
            first, second, *_ = sorted((whole(row), row.backend) for row in same)
            found.append((key, first[1], second[0] / first[0]))
    return found


def whole(row: Row) -> float:
    """Seconds of a step; of forward where there is no gradient."""
    seconds = row.step if row.step is not None else row.forward
    assert seconds is not None
    return seconds


def faster_table(found: Iterable[tuple[tuple[str, str, str, str], str, float]]) -> str:
    """What :func:`faster_backends` found."""
    lines = ["| call | shape | dtype | faster | the other takes, times |\n|---|---|---|---|---|"]
    for (op, variant, shape, dtype), name, ratio in found:
        lines.append(f"| {f'{op} {variant}'.strip()} | {shape} | {dtype} | {name} | {ratio:.2f} |")
    return "\n".join(lines)


def recompute_table(pairs: Iterable[tuple[Row, Row]]) -> str:
    """Steps that keep no maps, beside those that do."""
    lines = [
        "| call | shape | dtype | backend | step with saved maps, µs | step with recompute, µs | ratio | saved, MB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for again, saved in pairs:
        cells = [f"{saved.op} {saved.variant}", saved.shape, saved.dtype, saved.backend]
        cells += [microseconds(whole(saved)), microseconds(whole(again)), f"{whole(again) / whole(saved):.2f}"]
        lines.append(f"| {' | '.join(cells)} | {saved.saved_bytes / 1e6:.1f} |")
    return "\n".join(lines)


def kernels_table(rows: Iterable[Row]) -> str:
    """The longest kernels of a step, with their share of it."""
    lines = ["| call | shape | backend | kernels: µs (share) |\n|---|---|---|---|"]
    for row in rows:
        total = sum(row.kernels.values()) or 1.0
        longest = sorted(row.kernels.items(), key=lambda item: -item[1])[:MOST_KERNELS]
        cells = [
            f"{cell(name)[:LONGEST_NAME]} {1e6 * seconds:.1f} ({seconds / total:.0%})" for name, seconds in longest
        ]
        lines.append(f"| {f'{row.op} {row.variant}'.strip()} | {row.shape} | {row.backend} | {'; '.join(cells)} |")
    return "\n".join(lines)


def tiles_table(found: dict[str, list[Row]]) -> str:
    """Per launch: the tile by counts, the one that the library measured, and the fastest of all."""
    lines = [
        "| launch | by counts, µs | measured, µs | fastest, µs | its tile | by counts / fastest |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in _by_launch(found).items():
        if BY_COUNTS not in times:
            continue
        best = min(times, key=lambda tile: times[tile])
        cells = [microseconds(times.get(tile)) for tile in (BY_COUNTS, MEASURED, best)]
        lines.append(f"| {name} | {' | '.join(cells)} | {best} | {times[BY_COUNTS] / times[best]:.2f} |")
    return "\n".join(lines)


def programs_table(found: dict[str, list[Row]]) -> str:
    """Per launch: the times with a multiple of the programs that the plan counts on."""
    factors = sorted(found, key=float)
    head = f"| launch | {' | '.join(f'x {factor}, µs' for factor in factors)} |\n|---|{'---|' * len(factors)}"
    lines = [
        f"| {name} | {' | '.join(microseconds(times.get(factor)) for factor in factors)} |"
        for name, times in _by_launch(found).items()
    ]
    return "\n".join([head, *lines])


def _by_launch(found: dict[str, list[Row]]) -> dict[str, dict[str, float]]:
    """Seconds by launch (shape, variant, pass) and way."""
    launches: dict[str, dict[str, float]] = {}
    for way, rows in found.items():
        for row in rows:
            for name, seconds in (("forward", row.forward), ("backward", row.backward)):
                if row.problem is None and seconds is not None:
                    launches.setdefault(f"{row.shape}, {row.variant}, {name}", {})[way] = seconds
    return launches


def worst(found: dict[str, list[Row]]) -> tuple[str, float] | None:
    """The launch whose tile by counts loses most, and its time over that of the fastest tile."""
    losses = {
        name: times[BY_COUNTS] / min(times.values()) for name, times in _by_launch(found).items() if BY_COUNTS in times
    }
    return max(losses.items(), key=lambda item: item[1]) if losses else None


def load_tiles(file: Path) -> dict[str, dict[str, list[Row]]]:
    """What :mod:`tools.gpu.tiles` wrote."""
    content: dict[str, Any] = json.loads(file.read_text())
    return {part: {way: [Row(**row) for row in rows] for way, rows in ways.items()} for part, ways in content.items()}

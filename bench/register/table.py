"""The results as a table in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.register.contenders import CONTENDERS
from bench.register.pairs import HIPPOCAMPUS

BEFORE = "before"
"""In the place of a contender: the images where their headers put them."""

FIRST = 10
"""Pairs of the hippocampus whose mean stands beside that of all."""


def table(report: dict[str, Any]) -> str:
    """A table per data set, and who is absent.

    Args:
        report: what ``python -m bench.register`` writes. Pairs count as even and odd by their place in the data set.
    """
    machine = report["machine"]
    lines = [f"{machine['processor']}, {machine['threads']} threads, {machine['date']}. {report['note']}".strip()]
    order = [BEFORE, *(contender.name for contender in CONTENDERS)]
    for dataset in dict.fromkeys(row["dataset"] for row in report["results"]):
        rows = [row for row in report["results"] if row["dataset"] == dataset]
        lines += ["", f"### {dataset.capitalize()}", ""]
        several = len({row["pair"] for row in rows}) > 1
        dice = [f"Dice, first {FIRST}", "even pairs", "odd pairs"] if several and dataset == HIPPOCAMPUS else []
        times = ["seconds a pair", "of processors", "extra memory, MB"]
        header = ["contender", "pairs", "Dice", *dice, "lowest Dice", "folded", *times]
        lines += [_row(header), _row(["---"] * len(header))]
        for name in sorted({row["contender"] for row in rows}, key=order.index):
            lines.append(_row(_cells(name, [row for row in rows if row["contender"] == name], bool(dice))))
    if report["absent"]:
        lines += ["", "Did not take part:", ""]
        lines += [f"- {one['contender']}, {one['dataset']}: {one['reason']}" for one in report["absent"]]
    return "\n".join(lines)


def _cells(name: str, rows: Sequence[dict[str, Any]], is_split: bool) -> list[str]:
    values = [row["dice"] for row in rows]
    parts = [values[:FIRST], values[::2], values[1::2]] if is_split else []
    return [
        name,
        str(len(rows)),
        *(f"{np.mean(part):.4f}" for part in (values, *parts)),
        f"{min(values):.3f}",
        _of(rows, "folded", np.mean, "{:.1e}"),
        _of(rows, "seconds", np.mean, "{:.3g}") + (" (busy)" if any(row.get("busy") for row in rows) else ""),
        _of(rows, "processor_seconds", np.mean, "{:.3g}"),
        _of(rows, "peak_extra_megabytes", max, "{:.0f}"),
    ]


def _of(rows: Sequence[dict[str, Any]], key: str, mean: Callable[..., Any], form: str) -> str:
    return form.format(mean([row[key] for row in rows])) if key in rows[0] else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

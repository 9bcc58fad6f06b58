"""The results as a table in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.register.contenders import CONTENDERS
from bench.register.pairs import HIPPOCAMPUS

BEFORE = "before"
"""In the place of a contender: the images where their headers put them."""

ORDER = [BEFORE, *(contender.name for contender in CONTENDERS)]
"""Of the rows."""

FIRST = 10
"""Pairs of the hippocampus whose mean stands beside that of all."""


def table(report: dict[str, Any]) -> str:
    """A table per data set, and who is absent.

    Args:
        report: what ``python -m bench.register`` writes. Pairs count as even and odd by their place in the data set.
    """
    lines = [_machine(report)]
    for dataset in dict.fromkeys(row["dataset"] for row in report["results"]):
        rows = [row for row in report["results"] if row["dataset"] == dataset]
        lines += ["", f"### {dataset.capitalize()}", ""]
        several = len({row["pair"] for row in rows}) > 1
        dice = [f"Dice, first {FIRST}", "even pairs", "odd pairs"] if several and dataset == HIPPOCAMPUS else []
        times = ["seconds a pair", "of processors", "extra memory, MB"]
        header = ["contender", "pairs", "Dice", *dice, "lowest Dice", "folded", *times]
        lines += [_row(header), _row(["---"] * len(header))]
        for name in sorted({row["contender"] for row in rows}, key=ORDER.index):
            lines.append(_row(_cells(name, [row for row in rows if row["contender"] == name], bool(dice))))
    if report["absent"]:
        lines += ["", "Did not take part:", ""]
        lines += [f"- {one['contender']}, {one['dataset']}: {one['reason']}" for one in report["absent"]]
    return "\n".join(lines)


def summary(report: dict[str, Any]) -> str:
    """One table of all data sets: Dice and seconds a pair."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["results"]:
        rows.setdefault((row["contender"], row["dataset"]), []).append(row)
    datasets = list(dict.fromkeys(row["dataset"] for row in report["results"]))
    header = ["contender", *(f"{dataset}: {what}" for dataset in datasets for what in ("Dice", "seconds a pair"))]
    lines = [_row(header), _row(["---"] * len(header))]
    for name in sorted({contender for contender, _ in rows}, key=ORDER.index):
        found = [rows.get((name, dataset), []) for dataset in datasets]
        lines.append(_row([name, *(cell for pairs in found for cell in (_dice(pairs), _seconds(pairs)))]))
    return "\n".join([*lines, "", _machine(report)])


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"{machine['processor']}, {machine['threads']} threads, {machine['date']}. {report['note']}".strip()


def _dice(rows: Sequence[dict[str, Any]]) -> str:
    return f"{np.mean([row['dice'] for row in rows]):.3f}" if rows else "–"


def _seconds(rows: Sequence[dict[str, Any]]) -> str:
    busy = " (busy)" if any(row.get("busy") for row in rows) else ""
    return _time(rows, "seconds") + busy if rows else "–"


def _time(rows: Sequence[dict[str, Any]], key: str) -> str:
    """The mean of times; nothing where there are none."""
    if key not in rows[0]:
        return ""
    mean = np.mean([row[key] for row in rows])
    return f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"


def _cells(name: str, rows: Sequence[dict[str, Any]], is_split: bool) -> list[str]:
    values = [row["dice"] for row in rows]
    parts = [values[:FIRST], values[::2], values[1::2]] if is_split else []
    return [
        name,
        str(len(rows)),
        *(f"{np.mean(part):.4f}" for part in (values, *parts)),
        f"{min(values):.3f}",
        _of(rows, "folded", np.mean, "{:.1e}"),
        _seconds(rows),
        _time(rows, "processor_seconds"),
        _of(rows, "peak_extra_megabytes", max, "{:.0f}"),
    ]


def _of(rows: Sequence[dict[str, Any]], key: str, mean: Callable[..., Any], form: str) -> str:
    return form.format(mean([row[key] for row in rows])) if key in rows[0] else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

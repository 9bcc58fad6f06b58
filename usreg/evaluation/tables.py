"""The tables that an evaluation prints."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from ..training.console import LOST
from .results import CASES, SUMMARY, Results, Summary, direction

_MOST_LABELS = 8
"""Structures that have rows of their own in the printed table; the files have all."""


def show(results: Results, console: Console, worst: int) -> None:
    """Print the summary and the worst cases, and where the files are."""
    console.print(summary_table(results))
    metric = results.ranking_metric()
    if metric is not None and worst > 0:
        console.print(worst_table(results, metric, worst))
    if results.folder is not None:
        console.print(f"{results.folder}/: {CASES}, {SUMMARY}", markup=False, soft_wrap=True)


def summary_table(results: Results) -> Table:
    """A row per metric: mean and standard deviation before and after for each method, with a p value for each."""
    methods = list(results.methods)
    cases = len(results.methods[methods[0]])
    table = Table(
        title=f"{cases} cases of the list '{results.split}': mean ± standard deviation",
        caption="p: Wilcoxon's signed-rank test, two-sided, not corrected for the number of metrics",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("metric", no_wrap=True)
    table.add_column("before", justify="right")
    for name in methods:
        table.add_column(name, justify="right")
        table.add_column(f"p vs {'before' if name == methods[0] else methods[0]}", justify="right")
    rows: dict[str, list[Summary]] = {}
    for row in results.summary():
        rows.setdefault(row.metric, []).append(row)
    if any(row.lost for found in rows.values() for row in found):
        table.caption = f"{table.caption}\n{LOST}"
    labels = sum("_label" in metric for metric in rows if metric.startswith("dice"))
    for metric, found in rows.items():
        if labels > _MOST_LABELS and "_label" in metric:
            continue
        sign = {1: " ↑", -1: " ↓"}.get(direction(metric), "")
        cells = [_pair(found[0].before)]
        for row in found:
            lost = f" ({row.lost} lost)" if row.lost else ""
            cells += [_pair(row.after) + lost, _p(row.p_before if row.method == methods[0] else row.p_first)]
        table.add_row(metric + sign, *cells)
    return table


def worst_table(results: Results, metric: str, count: int) -> Table:
    """The worst cases of each method by a metric."""
    table = Table(title=f"worst cases by {metric}", title_justify="left")
    table.add_column("method")
    table.add_column("case")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for method in results.methods:
        for case in results.worst(method, metric, count):
            pair = (one.get(metric, math.nan) for one in (case.before, case.after))
            table.add_row(method, case.case, *map(_number, pair))
    return table


def _pair(spread: tuple[float, float]) -> str:
    mean, deviation = spread
    return _number(mean) if math.isnan(deviation) else f"{mean:.3g} ± {deviation:.2g}"


def _number(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.4g}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"

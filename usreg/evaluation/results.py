"""The numbers of an evaluation: by case, their summary, and what is worst."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from ..training.console import HIGHER_IS_BETTER, LOWER_IS_BETTER

CASES = "cases.csv"
SUMMARY = "summary.csv"

RANKING = ("dice", "tre", "epe", "ncc")
"""Metrics by which cases are ranked: the first one that there is."""


@dataclass(frozen=True)
class CaseResult:
    """The metrics of a case.

    Attributes:
        case: its name.
        before: by metric, without registration; NaN where a case has none.
        after: the same after it.
    """

    case: str
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """A metric of a method over all cases that have it.

    Attributes:
        method: its name.
        metric: its name.
        cases: how many have it.
        lost: how many values, of cases and structures, there are before and not after: a structure that the warp lost
            has no surface distance. The mean after is over the rest.
        before: mean and standard deviation without registration.
        after: the same after it.
        p_before: of Wilcoxon's signed-rank test, two-sided, of after against before; None without two cases.
        p_first: the same of this method against the first one, over the cases that both have; None for the first.
    """

    method: str
    metric: str
    cases: int
    lost: int
    before: tuple[float, float]
    after: tuple[float, float]
    p_before: float | None
    p_first: float | None


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        split: the list of the cases: ``"test"``, ``"val"`` or ``"train"``.
        methods: by name, the cases in the order of the list; the same cases for every method.
        folder: where the files are; None where nothing was written.
    """

    split: str
    methods: Mapping[str, Sequence[CaseResult]]
    folder: Path | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that some case has, before or after, in the order of the registry."""
        named = {
            name: None
            for cases in self.methods.values()
            for case in cases
            for name, value in case.after.items()
            if math.isfinite(value) or math.isfinite(case.before.get(name, math.nan))
        }
        return list(named)

    def values(self, method: str, metric: str, *, before: bool = False) -> NDArray[np.float64]:
        """(N,) of a method's cases, NaN where a case has none."""
        cases = self.methods[method]
        return np.array([(case.before if before else case.after).get(metric, math.nan) for case in cases])

    def summary(self) -> list[Summary]:
        """Of every metric and method."""
        first = next(iter(self.methods))
        rows = []
        for metric in self.metrics:
            for method in self.methods:
                before, after = self.values(method, metric, before=True), self.values(method, metric)
                other = None if method == first else paired_p(after, self.values(first, metric))
                count = int(np.isfinite(after).sum())
                p_before = paired_p(after, before)
                lost = self.lost(method, metric)
                rows.append(Summary(method, metric, count, lost, _spread(before), _spread(after), p_before, other))
        return rows

    def lost(self, method: str, metric: str) -> int:
        """How many values of a metric, of cases and structures, a method has before and not after."""
        count = 0
        for case in self.methods[method]:
            labels = [name for name in case.before if name.startswith(f"{metric}_label")] or [metric]
            pairs = [(case.before.get(name, math.nan), case.after.get(name, math.nan)) for name in labels]
            count += sum(math.isfinite(before) and not math.isfinite(after) for before, after in pairs)
        return count

    def ranking_metric(self) -> str | None:
        """The metric that says which cases are worst."""
        return next((name for name in (*RANKING, *self.metrics) if name in self.metrics and direction(name)), None)

    def worst(self, method: str, metric: str, count: int) -> list[CaseResult]:
        """The worst cases of a method, the worst first; cases without a value are left out."""
        sign = direction(metric) or 1
        having = [case for case in self.methods[method] if math.isfinite(case.after.get(metric, math.nan))]
        return sorted(having, key=lambda case: sign * case.after[metric])[:count]

    def write(self, folder: Path) -> None:
        """Write ``cases.csv``, a row per method, case and metric, and ``summary.csv``."""
        with (folder / CASES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("method", "case", "metric", "before", "after"))
            for method, cases in self.methods.items():
                for case in cases:
                    for metric in self.metrics:
                        pair = (one.get(metric, math.nan) for one in (case.before, case.after))
                        writer.writerow((method, case.case, metric, *map(_cell, pair)))
        with (folder / SUMMARY).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            names = ("before_mean", "before_sd", "after_mean", "after_sd", "p_before", "p_first")
            writer.writerow(("method", "metric", "cases", "lost", *names))
            for row in self.summary():
                numbers = (*row.before, *row.after, row.p_before, row.p_first)
                writer.writerow((row.method, row.metric, row.cases, row.lost, *map(_cell, numbers)))


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    return 1 if metric.startswith(HIGHER_IS_BETTER) else -1 if metric.startswith(LOWER_IS_BETTER) else 0


def paired_p(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Wilcoxon's signed-rank test, two-sided, of values (N,) of the same cases; None below two cases.

    Cases without a value in one of the two are left out, and, as in Wilcoxon's paper (1945), those without a
    difference; without any difference the result is 1.
    """
    difference = (one - other)[np.isfinite(one) & np.isfinite(other)]
    if len(difference) < 2:
        return None
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    return float(scipy.stats.wilcoxon(difference).pvalue)


def _spread(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample: divided by N - 1) of the values that are numbers."""
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else math.nan
    return mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"

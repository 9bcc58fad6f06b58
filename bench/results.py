"""Results of a run, as pytest-benchmark's JSON holds them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IDENTITY = ("kind", "op", "contender", "pass", "shape", "dtype", "window", "scheme", "device")
"""Of ``extra_info``: what makes two entries of different runs the same measurement."""

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Entry:
    """One contender's part in one comparison.

    Attributes:
        seconds: median.
        low, high: the quartiles around it.
        rounds: runs that were timed.
        info: ``extra_info``, see ``bench/conftest.py``.
    """

    seconds: float
    low: float
    high: float
    rounds: int
    info: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.info.get(name)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles over the median."""
        return (self.high - self.low) / 2 / self.seconds

    @property
    def key(self) -> Key:
        """The same in every run."""
        return tuple(str(self[name]) for name in IDENTITY)

    @property
    def case(self) -> Key:
        """The same for all contenders of a comparison."""
        return tuple(str(self[name]) for name in IDENTITY if name != "contender")


@dataclass(frozen=True)
class Results:
    """A run.

    Attributes:
        path: its file.
        date: day on which it ran.
        entries: in the order in which they ran, so that small volumes come first.
        absent: who did not take part in a comparison, without times: :data:`IDENTITY` and ``reason``.
    """

    path: Path
    date: str
    entries: list[Entry]
    absent: list[Entry] = field(default_factory=list)

    def select(self, **wanted: Any) -> list[Entry]:
        """The entries whose information holds these values."""
        return [entry for entry in self.entries if all(entry[name] == value for name, value in wanted.items())]

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self.entries[0]["device"])

    @property
    def machine(self) -> str:
        """What computed."""
        first = self.entries[0]
        if self.device == "cuda":
            return str(first["gpu"])
        return f"{first['processor']} ({first['cpu_capability'] or 'no CPU library'}, {first['threads']} threads)"

    @property
    def provenance(self) -> str:
        """Machine, date, code and libraries in a line."""
        first = self.entries[0]
        versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
        return f"{self.machine}, {self.date}, revision {first['revision']}, {versions}"

    @property
    def file_name(self) -> str:
        """The name under which the results are committed: date, device, machine."""
        machine = self.entries[0]["gpu"] if self.device == "cuda" else self.entries[0]["processor"]
        return f"{self.date}-{self.device}-{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"


def load(path: Path) -> Results:
    """Read a file that ``--benchmark-json`` wrote.

    Raises:
        ValueError: it holds no result of this benchmark.
    """
    content = json.loads(path.read_text())
    entries = [
        Entry(stats["median"], stats["q1"], stats["q3"], stats["rounds"], benchmark["extra_info"])
        for benchmark in content.get("benchmarks", [])
        if "kind" in benchmark["extra_info"]
        for stats in [benchmark["stats"]]
    ]
    if not entries:
        raise ValueError(
            f"{path} holds no result: make one with `pytest bench --benchmark-only --benchmark-json={path}`"
        )
    absent = [Entry(math.nan, math.nan, math.nan, 0, info) for info in content.get("absent", [])]
    return Results(path, content["datetime"][:10], entries, absent)


def write_summary(results: Results, path: Path) -> None:
    """Write the results without the single times, which make nine tenths of the file."""
    content = json.loads(results.path.read_text())
    for benchmark in content["benchmarks"]:
        benchmark["stats"].pop("data", None)
    path.write_text(json.dumps(content, indent=1) + "\n")


def by_case(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The contenders of each comparison."""
    cases: dict[Key, list[Entry]] = {}
    for entry in entries:
        cases.setdefault(entry.case, []).append(entry)
    yield from cases.values()


def ours(entries: Iterable[Entry]) -> Entry | None:
    """Our backend that runs where none is asked for: the first in the order of contenders, not the luckiest.

    One whose result is wrong is none.
    """
    return next((entry for entry in entries if entry["ours"] and not entry["wrong"]), None)

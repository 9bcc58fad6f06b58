"""What got slower since an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from bench.results import Entry, Results

TOLERANCE = 0.1


@dataclass(frozen=True)
class Change:
    """One of our measurements in two runs.

    Attributes:
        ratio: new time over old time, after the machine's own change is taken out.
    """

    old: Entry
    new: Entry
    ratio: float

    def is_slower(self, tolerance: float) -> bool:
        """By more than the tolerance, and by more than the runs scatter: the middle halves of the two lie apart."""
        drift = self.new.seconds / self.old.seconds / self.ratio
        return self.ratio > 1 + tolerance and self.new.low / drift > self.old.high


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        drift: new time over old time of the contenders that are not ours, whose code is the same in both runs: a
            machine that is slower today slows them too.
        changes: of our measurements that both runs have, the worst first.
        wrong: of our measurements in the new run, those whose results are wrong; their times say nothing.
    """

    drift: float
    changes: list[Change]
    wrong: list[Entry]


def compare_runs(old: Results, new: Results) -> Comparison:
    """Match the measurements of two runs.

    Raises:
        ValueError: none of ours is in both.
    """
    before = {entry.key: entry for entry in old.entries if not entry["wrong"]}
    right = [entry for entry in new.entries if not entry["wrong"]]
    pairs = [(before[entry.key], entry) for entry in right if entry.key in before]
    drift = median([now.seconds / then.seconds for then, now in pairs if not now["ours"]] or [1.0])
    changes = [Change(then, now, now.seconds / then.seconds / drift) for then, now in pairs if now["ours"]]
    if not changes:
        raise ValueError(f"{old.path} and {new.path} have no measurement of ours in common")
    wrong = [entry for entry in new.entries if entry["wrong"]]
    return Comparison(drift, sorted(changes, key=lambda change: -change.ratio), wrong)


def describe(old: Results, new: Results, tolerance: float = TOLERANCE) -> tuple[str, list[Change]]:
    """The comparison in words, and what got slower."""
    comparison = compare_runs(old, new)
    slower = [change for change in comparison.changes if change.is_slower(tolerance)]
    lines = [f"{new.provenance}\nagainst {old.provenance}"]
    if old.machine != new.machine:
        lines.append("Not the same machine: the ratios say little.")
    lines += [f"WRONG, and not compared: {_title(entry)}" for entry in comparison.wrong]
    lines.append(f"Other contenders took {comparison.drift:.2f} of their earlier time; that is taken out.")
    lines.append(f"{len(slower)} of {len(comparison.changes)} measurements got slower by more than {tolerance:.0%}:")
    lines += [_line(change) for change in slower]
    faster = [change for change in reversed(comparison.changes) if change.ratio < 1 - tolerance]
    lines.append(f"{len(faster)} got faster:")
    lines += [_line(change) for change in faster]
    return "\n".join(lines), slower


def _line(change: Change) -> str:
    old, new = change.old, change.new
    return f"  {change.ratio:.2f} x  {_title(new)}: {1e3 * old.seconds:.3g} ms, now {1e3 * new.seconds:.3g} ms"


def _title(entry: Entry) -> str:
    shape = " x ".join(map(str, entry["shape"]))
    names = ("pass", "dtype", "window", "scheme")
    details = [f"window {entry[n]}" if n == "window" else str(entry[n]) for n in names if entry[n] is not None]
    return ", ".join([f"{entry['op']}, {entry['contender']}", shape, *details])

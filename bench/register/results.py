"""What ``python -m bench.register`` measured, as its JSON file holds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""A contender's registration of a pair: ``contender``, ``dataset``, ``pair``, ``dice``; and, of all but "before",
``folded``, ``seconds``, ``processor_seconds``, ``peak_extra_megabytes`` and ``busy``."""

IDENTITY = ("contender", "dataset", "pair")


class Report:
    """The content of the file, which grows contender by contender.

    Args:
        machine: ``processor``, ``threads`` and ``date``.
        note: what a reader must know of the run.
        path: a file to begin with, of the same processor and number of threads; what is measured again is replaced.

    Raises:
        ValueError: the file is of another machine.
    """

    def __init__(self, machine: dict[str, Any], note: str = "", path: Path | None = None) -> None:
        self.content: dict[str, Any] = {"machine": machine, "note": note, "results": [], "absent": []}
        if path is None or not path.exists():
            return
        known = load(path)
        for key in ("processor", "threads"):
            if known["machine"][key] != machine[key]:
                raise ValueError(f"{path} is of {key} {known['machine'][key]}, and this is {machine[key]}")
        self.content |= {name: known[name] for name in ("results", "absent")}
        self.content["note"] = note or known["note"]

    def add(self, rows: Sequence[Row]) -> None:
        """Rows, in place of those of the same contender and pair; such a contender is no longer absent."""
        new = {_identity(row) for row in rows}
        self.content["results"] = [row for row in self.content["results"] if _identity(row) not in new] + list(rows)
        here = {(row["contender"], row["dataset"]) for row in rows}
        kept = [one for one in self.content["absent"] if (one["contender"], one["dataset"]) not in here]
        self.content["absent"] = kept

    def leave_out(self, contender: str, dataset: str, reason: str) -> None:
        """A contender that did not take part, and why; what an earlier run found of it is dropped."""
        for name in ("results", "absent"):
            kept = [o for o in self.content[name] if (o["contender"], o["dataset"]) != (contender, dataset)]
            self.content[name] = kept
        self.content["absent"].append({"contender": contender, "dataset": dataset, "reason": reason})

    def write(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content, indent=1) + "\n")


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


def load(path: Path) -> dict[str, Any]:
    """Read a file of this benchmark.

    Raises:
        ValueError: it is none.
    """
    content = json.loads(path.read_text())
    if not {"machine", "note", "results", "absent"} <= content.keys():
        raise ValueError(f"{path} holds no registrations of whole pairs: make it with `make bench-register`")
    return content

"""metrics.csv: one row per epoch, rewritten as a whole so that columns may appear late."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError


class MetricsFile:
    """The table behind metrics.csv. A value that an epoch does not have is an empty cell, never 0.

    Args:
        path: the file, written by :meth:`add`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def take_over(self, path: Path, before_epoch: int) -> None:
        """Begin with the rows of another run's file (or of this one) for the epochs before ``before_epoch``.

        Epochs are counted from 1 in the file, ``before_epoch`` from 0, as in a checkpoint: a row is kept where its
        epoch was complete. Nothing happens where the file does not exist.

        Raises:
            DataError: the file exists and is not a table with a column ``epoch``.
        """
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        try:
            self.rows = [row for row in rows if int(row["epoch"]) <= before_epoch]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is not the metrics table of a run: it has no whole number in 'epoch'") from error

    def add(self, values: Mapping[str, float | int | None]) -> None:
        """Append an epoch's row and write the file; ``None`` gives an empty cell."""
        self.rows.append({key: "" if value is None else f"{value:.6g}" for key, value in values.items()})
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        temporary = self.path.with_name(f".{self.path.name}.new")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)

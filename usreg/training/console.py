"""What a run shows: progress, tables and messages; plain lines where the output is no terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .evaluation import Evaluation
from .run_folder import CONTENTS

PIPED_WIDTH = 120
"""Columns of output that is no terminal, where COLUMNS does not say otherwise."""

HIGHER_IS_BETTER = ("ncc", "dice")
LOWER_IS_BETTER = ("mse", "mae", "epe", "hd95", "asd", "tre", "neg_jac_ratio")
LOST = "lost: values that the identity has and the warp has lost, with a structure; the mean is over the rest"
"""Of a table."""
"""Metrics with a direction, by the beginning of their names; a change in another metric is neither good nor bad."""


TOGETHER = ("dice", "tre", "neg_jac_ratio", "log_jac_std")
"""What a table begins with: overlap can rise while landmarks drift apart and the field folds."""


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that keeps tables readable in a file or a pipe."""
    console = Console(stderr=stderr, quiet=quiet, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


class Rate:
    """Samples per second since the start of an epoch."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._samples = 0

    def add(self, samples: int) -> None:
        """Count samples that were worked through."""
        self._samples += samples

    @property
    def value(self) -> float:
        """Samples per second so far."""
        return self._samples / max(time.perf_counter() - self._start, 1e-9)


class StepBar:
    """The progress bar over all steps of a run; does nothing where there is no terminal."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def update(self, title: str, loss: float, rate: float) -> None:
        """Advance by one step and show its epoch, loss and samples per second."""
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task, advance=1, description=title, numbers=f"loss {loss:.4f}  {rate:.1f} samples/s"
            )

    def label(self, title: str) -> None:
        """Show what goes on without advancing."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=title)


class Reporter:
    """Prints a run's course.

    Args:
        console: where to; the terminal by default. The processes beside the main one get a quiet console.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()

    def note(self, text: str) -> None:
        """Print a line, unbroken however long, so that a path in it can be copied."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line that asks for attention."""
        self.console.print(Text(text, style="yellow"), soft_wrap=True)

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[StepBar]:
        """A progress bar with loss, rate and remaining time while the block runs."""
        if not self.console.is_terminal:
            yield StepBar(None, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield StepBar(progress, progress.add_task("", total=total, completed=done, numbers=""))

    def finished(self, folder: Path, seconds: float, notes: list[str], evaluation: Evaluation | None) -> None:
        """Print the final panel: what is in the run's folder, how the run went, and its last validation."""
        files = Table.grid(padding=(0, 2))
        best = {path.name: f"the best checkpoint by {path.stem[5:]}" for path in sorted(folder.glob("best_*.pt"))}
        for name, purpose in {**CONTENTS, **best}.items():
            if (folder / name).exists():
                files.add_row(name, Text(purpose, style="dim"))
        parts: list[RenderableType] = [Text(f"{folder}/"), files, *map(Text, notes)]
        if evaluation is not None:
            parts.append(metrics_table("last validation", evaluation))
        self.console.print(Panel(Group(*parts), title=f"finished in {duration(seconds)}", expand=False))


def metrics_table(title: str, evaluation: Evaluation) -> Table:
    """A table of a validation's metrics beside those of the identity field, which leaves every voxel where it is."""
    loss = "none" if evaluation.loss is None else f"{evaluation.loss:.4f}"
    table = Table(title=f"{title}, loss {loss}", title_justify="left")
    table.add_column("metric")
    table.add_column("identity", justify="right")
    table.add_column("registered", justify="right")
    table.add_column("change", justify="right")
    for name, value in sorted(evaluation.metrics.items(), key=lambda item: _place(item[0])):
        before, lost = evaluation.identity.get(name), evaluation.lost.get(name, 0)
        change = Text(f"{lost} lost", style="red") if lost else _change(name, before, value)
        table.add_row(name, _number(before), _number(value), change)
    if evaluation.lost:
        table.caption = LOST
        table.caption_justify = "left"
    return table


def _place(metric: str) -> int:
    """Where a metric stands in a table, before those of which it does not matter."""
    return next((place for place, name in enumerate(TOGETHER) if metric.startswith(name)), len(TOGETHER))


def _number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4g}"


def _change(name: str, before: float | None, after: float | None) -> Text:
    if before is None or after is None:
        return Text("")
    sign = 1 if name.startswith(HIGHER_IS_BETTER) else -1 if name.startswith(LOWER_IS_BETTER) else 0
    gain = sign * (after - before)
    style, word = ("green", " better") if gain > 0 else ("red", " worse") if gain < 0 else ("", "")
    return Text(f"{after - before:+.4g}{word}", style=style)


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: ``2:03``, ``1:00:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""Progress of a registration: a bar for each stage, with the loss and the time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..stages.settings import Stage

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.fields[place]}"),
    TextColumn("loss {task.fields[loss]:.5f}"),
    TimeRemainingColumn(),
)


class StageBars:
    """Shows how far each stage is, counted in voxels worked through; shows nothing where there is no terminal.

    Args:
        console: where to.
        stages: of the registration.
    """

    def __init__(self, console: Console, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._progress = Progress(*COLUMNS, console=console, disable=not console.is_terminal, transient=False)
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> StageBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: int, level: int, iteration: int, loss: float) -> None:
        """See :data:`usreg.registration.pair.Progress`."""
        settings = self._stages[stage]
        work = [count / factor**3 for count, factor in zip(settings.iterations, settings.levels, strict=True)]
        if stage not in self._tasks:
            self._finish(stage - 1)
            self._tasks[stage] = self._progress.add_task(settings.stage, total=sum(work), loss=loss, place="")
        most = settings.iterations[level]
        self._progress.update(
            self._tasks[stage],
            completed=sum(work[:level]) + work[level] * iteration / most,
            loss=loss,
            place=f"level {level + 1} of {len(work)}, iteration {iteration} of {most}",
        )

    def finish(self) -> None:
        """Fill the last bar: its stage is over, though perhaps with fewer iterations than it might have made."""
        self._finish(len(self._stages) - 1)

    def _finish(self, stage: int) -> None:
        if stage in self._tasks:
            task = self._progress.tasks[self._tasks[stage]]
            self._progress.update(task.id, completed=task.total)

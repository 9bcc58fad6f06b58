"""Runs stages one after the other: each has a time limit and a log, and ends in one row of the summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tools.gpu.machine import Machine

ROOT = Path(__file__).resolve().parents[2]

LEAST_SECONDS = 15.0
"""A command that has less time left is not started."""

SECONDS_TO_WRITE = 5.0
"""Kept free before the outer time limit: for the summary, and for a process that is slow to die."""


class CannotRun(Exception):
    """A stage cannot run on this machine; the message says why, and the way out."""


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        code: the exit status; None where the time limit stopped it, or where there was no time to start it.
        seconds: how long it ran.
        output: what it printed, both streams together.
    """

    code: int | None
    seconds: float
    output: str

    @property
    def last_line(self) -> str:
        """The last line that holds anything: usually the reason of a failure."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")


@dataclass
class Result:
    """What a stage found, filled while it runs.

    Attributes:
        findings: key figures, for the summary.
        failures: what went wrong; the first one is shown.
        stopped: commands that their time limit stopped.
    """

    findings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """``"failed"``, ``"stopped"`` or ``"passed"``."""
        return "failed" if self.failures else "stopped" if self.stopped else "passed"

    def note(self, name: str, finished: Finished) -> bool:
        """Record how a command ended; whether it succeeded."""
        if finished.code is None:
            self.stopped.append(f"{name}: stopped by the time limit after {finished.seconds:.0f} s")
        elif finished.code != 0:
            self.failures.append(f"{name}: exit status {finished.code}: {finished.last_line}")
        return finished.code == 0


@dataclass
class Context:
    """What a stage works with.

    Attributes:
        machine: what this machine has.
        out: the folder of results.
        log: where this stage's commands write.
        deadline: on ``time.monotonic``'s clock.
        python: the interpreter that commands run with.
    """

    machine: Machine
    out: Path
    log: Path
    deadline: float
    python: str = sys.executable

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, *command: str, limit: float | None = None, environment: Mapping[str, str] | None = None) -> Finished:
        """Run a command in the repository's root, until it ends or time is up; the log gets all that it prints."""
        limit = min(self.seconds_left, limit or float("inf"))
        if limit < LEAST_SECONDS:
            return Finished(None, 0.0, "")
        return run(command, self.log, limit, environment)

    def run_python(
        self, *arguments: str, limit: float | None = None, environment: Mapping[str, str] | None = None
    ) -> Finished:
        """:meth:`run` with Python in front."""
        return self.run(self.python, *arguments, limit=limit, environment=environment)

    def run_parts(self, count: int, *arguments: str, limit: float | None = None) -> list[Finished]:
        """:meth:`run_python` so many times at once, with ``PART/PARTS`` behind the arguments."""
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count) as pool:

            def run_part(part: int) -> Finished:
                own = replace(self, log=Path(folder) / str(part))  # or the outputs would mix
                return own.run_python(*arguments, f"{part}/{count}", limit=limit)

            finished = list(pool.map(run_part, range(count)))
        with self.log.open("a") as log:
            for part, one in enumerate(finished):
                log.write(f"\n#### {' '.join(arguments)} {part}/{count}\n{one.output}")
        return finished


def run(command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command for at most ``limit`` seconds; then it is ended with all the processes that it started."""
    start = time.monotonic()
    with log.open("a+b") as file:
        file.write(f"\n#### {' '.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Finished(127, 0.0, str(error))
        code: int | None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        file.seek(begin)
        output = file.read().decode(errors="replace")
    return Finished(code, time.monotonic() - start, output)


def end(process: subprocess.Popen) -> None:
    """End a process and those that it started: first with the signal that lets them clean up."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(SECONDS_TO_WRITE / 2)
        except subprocess.TimeoutExpired:
            continue


@dataclass(frozen=True)
class Stage:
    """A part of the work that can be chosen by name.

    Attributes:
        name: what the command line takes.
        purpose: in a few words, for ``--list``.
        limit: seconds that it may take.
        work: does it; raises :class:`CannotRun`.
        gate: where it fails, nothing after it is worth starting.
    """

    name: str
    purpose: str
    limit: float
    work: Callable[[Context, Result], None]
    gate: bool = False


@dataclass(frozen=True)
class Row:
    """How a stage ended: a row of the summary.

    Attributes:
        state: ``"passed"``, ``"failed"``, ``"stopped"`` (by a time limit), ``"cannot run"`` (something is missing) or
            ``"not started"``.
        details: key figures, or the first failure, or the reason.
        log: the name of the log in the folder of results.
    """

    stage: str
    state: str
    seconds: float
    details: tuple[str, ...]
    log: str | None = None


def run_stage(stage: Stage, machine: Machine, out: Path, deadline: float) -> Row:
    """Run one stage within its own limit and the outer one."""
    start = time.monotonic()
    log = out / f"{stage.name}.log"
    log.unlink(missing_ok=True)
    context, result = Context(machine, out, log, min(start + stage.limit, deadline)), Result()
    details: tuple[str, ...]
    try:
        stage.work(context, result)
        state = result.state
        details = (*result.failures[:1], *result.stopped, *result.findings)
        if len(result.failures) > 1:
            details = (details[0], f"{len(result.failures)} failures", *details[1:])
    except CannotRun as reason:
        state, details = "cannot run", (str(reason),)
    except Exception as error:  # a fault of the tool in one stage must not cost the others
        state, details = "failed", (f"the stage itself failed: {type(error).__name__}: {error}",)
    return Row(stage.name, state, time.monotonic() - start, details, log.name if log.exists() else None)


def run_stages(
    stages: Sequence[Stage], machine: Machine, out: Path, limit: float | None, finished: Callable[[Row], None]
) -> list[Row]:
    """Run stages in order.

    Args:
        stages: what to run.
        machine: what this machine has.
        out: the folder of results, which exists.
        limit: seconds for all of them together; None for no limit.
        finished: is called after each stage, so that an interruption leaves what was found so far.
    """
    deadline = time.monotonic() + (float("inf") if limit is None else limit - SECONDS_TO_WRITE)
    rows: list[Row] = []
    closed_by: str | None = None
    for stage in stages:
        if closed_by is not None:
            row = Row(stage.name, "not started", 0.0, (f"{closed_by} failed: nothing else is worth measuring",))
        elif deadline - time.monotonic() < LEAST_SECONDS:
            row = Row(stage.name, "not started", 0.0, (f"no time left of --limit {limit:g}",))
        else:
            print(f"== {stage.name}: {stage.purpose} (at most {stage.limit:g} s)", flush=True)
            row = run_stage(stage, machine, out, deadline)
        rows.append(row)
        print(f"   {stage.name}: {row.state}, {row.seconds:.0f} s. {'; '.join(row.details)[:400]}", flush=True)
        finished(row)
        if stage.gate and row.state in ("failed", "stopped"):
            closed_by = stage.name
    return rows

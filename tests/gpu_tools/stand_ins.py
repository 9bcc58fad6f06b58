"""What the tests of ``tools.gpu`` share: a machine that has everything, stages and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.gpu import machine as machines
from tools.gpu import runner, summary
from tools.gpu.machine import Device, Machine, Torch
from tools.gpu.runner import Context, Result, Stage
from tools.gpu.tables import Row

ROOT = Path(__file__).parents[2]
GPU = Device("NVIDIA H100 80GB HBM3", "90", 79.6, 132)
TOOLS = {name: f"/usr/local/cuda/bin/{name}" for name in machines.TOOLS}
EVERYTHING = Machine(
    TOOLS, ("GPU 0: NVIDIA H100",), Torch("2.13.0", "13.0", None, (GPU,)), "", frozenset(machines.PACKAGES)
)


def stage_of(name: str, *command: str, limit: float = 60, gate: bool = False) -> Stage:
    """A stage of one Python command."""

    def work(context: Context, result: Result) -> None:
        result.note(name, context.run_python(*command))

    return Stage(name, "for a test", limit, work, gate)


def run_stages(stages: Sequence[Stage], out: Path, limit: float | None = None) -> list[runner.Row]:
    return runner.run_stages(stages, EVERYTHING, out, limit, lambda row: summary.write(out, EVERYTHING, [row]))


def row_of(backend: str, forward: float, step: float, **more: object) -> Row:
    row = Row("lncc", "window 9", "brain", "float32", backend, forward, step, 2 * step, step, 82, 100, 150)
    return replace(row, **more)  # type: ignore[arg-type]

"""What several stages share: what they need, and how they run pytest."""

from __future__ import annotations

import os
import re

from tools.gpu.runner import CannotRun, Context

GIB_PER_PROCESS = 3.0
"""GPU memory that a process of the tests may take."""

NO_MODULE = re.compile(r"No module named '([\w.]+)'")

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def processes(cores: int, memory_gib: float) -> int:
    """How many processes share the GPU: one per core, as far as its memory goes."""
    return max(1, min(cores, int(memory_gib / GIB_PER_PROCESS)))


def at_once(context: Context) -> int:
    """:func:`processes` of this machine."""
    device = context.machine.device
    return processes(os.cpu_count() or 1, device.memory_gib if device is not None else 0.0)


def need(context: Context, module: str, package: str) -> None:
    """A stage needs a Python package.

    Raises:
        CannotRun: it is not installed.
    """
    if module not in context.machine.packages:
        raise CannotRun(f"{package} is not installed: `pip install {package}`")


def need_tool(context: Context, name: str) -> str:
    """The path of a program that a stage needs.

    Raises:
        CannotRun: it was not found.
    """
    path = context.machine.tools.get(name)
    if path is None:
        raise CannotRun(f"{name} was not found: it comes with the CUDA toolkit; set CUDA_HOME if it lies elsewhere")
    return path

"""From interleaved times to pytest-benchmark's results.

pytest-benchmark times one contender after the other, and a machine that is busy for a minute then slows one of them.
Here all contenders of a comparison are timed in turns beforehand, and the ``benchmark`` fixture is given a clock that
shows the recorded times: its statistics, tables and JSON are those of the interleaved runs.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

import usreg_kernels as uk
from bench.cases import Case
from bench.timing import OnGpu, Times

PACKAGES = ("usreg", "torch", "triton", "monai", "neurite", "voxelmorph", "fireants", "fused-lncc", "numpy")


class RecordedClock:
    """A clock that moves when :meth:`advance` says so, and at no other time."""

    __name__ = "recorded_clock"  # pytest-benchmark writes it to its results

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds


CLOCK = RecordedClock()
"""The timer of every benchmark, set by ``pytest.mark.benchmark(timer=CLOCK)``."""


def identity(kind: str, case: Case, contender: str, device: str) -> dict[str, Any]:
    """The values of ``results.IDENTITY``."""
    return {
        "kind": kind,
        "op": case.op,
        "contender": contender,
        "pass": case.passes,
        "shape": list(case.shape),
        "dtype": case.dtype_name,
        "window": case.window,
        "scheme": case.scheme,
        "device": device,
    }


def measured(kind: str, op: str, contender: str, shape: Sequence[int], device: str, ours: bool) -> dict[str, Any]:
    """What identifies a measurement that belongs to no case of a loss, and whether the contender is ours."""
    return {"kind": kind, "op": op, "contender": contender, "shape": list(shape), "device": device, "ours": ours}


def record(benchmark: Any, group: str, times: Times, extra: dict[str, Any], wrong: str | None = None) -> None:
    """Give recorded times to the ``benchmark`` fixture, one round for each; then fail if the result is wrong.

    Args:
        benchmark: the fixture of a test that is marked with :data:`CLOCK`.
        group: what the contender is shown beside.
        times: seconds of each run.
        extra: goes to ``extra_info``, beside the facts about machine and code.
        wrong: what is wrong with the result.
    """
    benchmark.group = group
    benchmark.extra_info.update(facts())
    benchmark.extra_info.update(extra, wrong=wrong is not None, cpu_seconds=times.cpu_per_run, spread=times.spread)
    seconds = iter(times.wall)
    benchmark.pedantic(lambda: CLOCK.advance(next(seconds)), rounds=len(times.wall), iterations=1)
    if wrong is not None:
        pytest.fail(wrong, pytrace=False)


def on_gpu(parts: OnGpu | None) -> dict[str, Any]:
    """What goes to ``extra_info`` of a GPU's results; nothing on a CPU."""
    if parts is None:
        return {}
    return {
        "gpu_seconds": parts.seconds,
        "launch_overhead_seconds": parts.launch_seconds,
        "no_gpu_seconds": parts.reason,
    }


def facts() -> dict[str, Any]:
    """What a result depends on beside the contender: device, threads, versions, revision of the code."""
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu_capability": uk.library.cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_versions()},
        "revision": revision(),
    }


@functools.cache
def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


@functools.cache
def revision() -> str:
    """The commit that was measured, with ``+changes`` where files differ from it; ``unknown`` outside a clone."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""report.json: what was registered, how, on what, and how well."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from usreg_kernels import library

from ... import __version__
from ...io.whole import write_text
from ..outputs.files import CONFIG, REPORT
from ..pair import Registration, Volume
from ..stages.settings import RegisterConfig, Stage
from .measures import Measure

PACKAGES = ("torch", "triton", "monai", "numpy", "scipy", "nibabel", "SimpleITK")


def make_report(
    found: Registration,
    config: RegisterConfig,
    stages: Sequence[Stage],
    measures: Mapping[str, Measure],
    *,
    command: Sequence[str],
    files: Mapping[str, str | None],
    volumes: Mapping[str, Volume],
    start: str,
    device: str,
    seconds: float,
) -> dict[str, Any]:
    """The report as plain values for JSON.

    Args:
        found: the registration.
        config: its settings.
        stages: the stages of the config.
        measures: from :func:`usreg.registration.reports.measures.measure`.
        command: the command's arguments.
        files: the files that were given, by the name of their option.
        volumes: the images, by the same names.
        start: where the registration started, in words.
        device: that computed.
        seconds: that the registration took, without reading and writing files.
    """
    return {
        "status": "stopped" if found.stopped else "finished",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "folder": str(Path.cwd()),
        "files": {name: str(Path(file).resolve()) for name, file in files.items() if file is not None},
        "images": {name: _image(volume) for name, volume in volumes.items()},
        "start": start,
        "measures": dict(measures),
        "seconds": seconds,
        "stages": [_stage(stages[one.number], one) for one in found.stages],
        "affine_ras": found.affine.matrix.tolist(),
        "config": settings(config, stages),
        "device": device,
        "machine": machine(),
        "versions": versions(),
    }


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Write report.json and config.yaml.

    Raises:
        UsageError: a file cannot be written.
    """
    write_text(out / CONFIG, yaml.safe_dump(report["config"], sort_keys=False))
    write_text(out / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")


def settings(config: RegisterConfig, stages: Sequence[Stage]) -> dict[str, Any]:
    """Every setting of a registration, as ``--config`` takes it."""
    return {**dataclasses.asdict(config), "stages": [dataclasses.asdict(stage) for stage in stages]}


def versions() -> dict[str, str]:
    """Of usreg, of Python and of the packages that matter, where they are installed."""
    found = {"usreg": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the results and the seconds depend on."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": library.cpu_capability() or f"none: {library.reason('cpu')}",
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _image(volume: Volume) -> dict[str, Any]:
    grid = volume.grid
    return {
        "size": list(grid.size),
        "spacing_mm": [round(float(mm), 6) for mm in grid.spacing],
        "orientation": grid.orientation,
        "affine_ras": grid.affine.tolist(),
    }


def _stage(stage: Stage, report: Any) -> dict[str, Any]:
    levels = [
        {"factor": factor, "iterations": len(losses), "losses": losses}
        for factor, losses in zip(stage.levels, report.losses, strict=False)
    ]
    return {"stage": report.stage, "loss": stage.loss.get("name", ""), "seconds": report.seconds, "levels": levels}

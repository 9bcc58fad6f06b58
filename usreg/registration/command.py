"""What ``python -m usreg.register`` does: files in, a folder of files out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config.checks import available_devices
from ..errors import ConfigError, DataError, UsageError
from ..io import read_landmarks, read_volume
from ..io.landmarks import check_landmarks_space
from ..io.transforms import read_transform
from ..io.whole import writable_folder
from ..metrics.label_volumes import structures
from ..spatial import Affine, Grid
from ..spatial.grid import Points
from ..training.console import duration
from ..training.interrupts import StopRequest
from .bars import StageBars
from .demo import make_pair, write_pair
from .measures import HIGHER_IS_BETTER, LOWER_IS_BETTER, measure
from .outputs import CONTENTS, landmarks_name, shown, write_data, write_page, write_points, write_report
from .pair import Registration, Volume, register_pair
from .report import make_report
from .results import Inputs, make_results
from .stages import load_stages
from .stopping import stop_when

FILES = ("fixed", "moving", "fixed_label", "moving_label", "fixed_landmarks", "moving_landmarks", "initial")
"""Options that name files."""

DEMO = "pair"
"""The folder of the made-up pair, in that of the results."""


def run(options: argparse.Namespace, command: Sequence[str], console: Console) -> Registration:
    """Register the files that the command line names, and write the results.

    A request to stop (Ctrl-C, SIGTERM) ends the registration early and keeps what it has found; a second one ends
    everything at once.

    Args:
        options: of the command line.
        command: its arguments, for the report.
        console: where progress and results are shown.

    Raises:
        UsageError: something that the user can put right, found before any work where that is possible.
    """
    config, stages = load_stages(options.config, options.overrides)
    device = _device(config.device)
    files = {name: getattr(options, name) for name in FILES}
    out = Path(options.out)
    if options.demo:
        files |= _demo(out, files)
    given = _read_inputs(files, config.start, options.landmarks_space)
    inputs = given.inputs
    contents = [*CONTENTS, *([landmarks_name(given.landmarks)] if given.landmarks else [])]
    writable_folder(out, contents)

    with StopRequest() as request:
        began = time.perf_counter()
        with stop_when(lambda: request.requested), StageBars(console, stages) as bars:
            found = register_pair(
                inputs.fixed,
                inputs.moving,
                stages,
                quantiles=config.quantiles,
                start=given.start,
                device=device,
                progress=bars,
            )
            if not found.stopped:
                bars.finish()
        seconds = time.perf_counter() - began
        results = make_results(inputs, found)
        report = make_report(
            found,
            config,
            stages,
            measure(inputs, found, results),
            command=command,
            files=files,
            volumes={"fixed": inputs.fixed, "moving": inputs.moving},
            start=given.start_name,
            device=device,
            seconds=seconds,
        )
        write_data(out, inputs, found, results)
        if given.landmarks is not None:
            write_points(out, given.landmarks, results, given.landmarks_space, inputs)
        if options.pictures:
            write_page(out, report, inputs, found, results)
        write_report(out, report)
    _show(console, report, out)
    return found


@dataclass(frozen=True)
class _Given:
    """What the files hold.

    Attributes:
        inputs: of the registration.
        start: where it begins.
        start_name: the same in words.
        landmarks: the moving landmarks' file.
        landmarks_space: their space.
    """

    inputs: Inputs
    start: Affine
    start_name: str
    landmarks: Path | None
    landmarks_space: str


def _demo(out: Path, files: Mapping[str, str | None]) -> dict[str, str]:
    """The files of the made-up pair, written."""
    if given := [f"--{name.replace('_', '-')}" for name, file in files.items() if file is not None]:
        raise UsageError(f"--demo makes its own pair; leave out {', '.join(given)}")
    writable_folder(out, [*CONTENTS, DEMO])
    return write_pair(writable_folder(out / DEMO, ()), make_pair())


def _read_inputs(files: Mapping[str, str | None], start: str, landmarks_space: str | None) -> _Given:
    """Read and check everything that is given."""
    if files["fixed"] is None or files["moving"] is None:
        raise UsageError("--fixed FILE and --moving FILE are needed, or --demo for a pair that is made up")
    if files["fixed_label"] is not None and files["moving_label"] is None:
        raise UsageError("--fixed-label and --moving-label go together: the measures compare the two")
    if files["fixed_landmarks"] is not None and files["moving_landmarks"] is None:
        raise UsageError("--fixed-landmarks and --moving-landmarks go together: the error is between the two")
    fixed, moving = _read(files["fixed"]), _read(files["moving"])
    fixed_label, moving_label = _labels(files["fixed_label"], files["moving_label"])
    fixed_points, _ = _points(files["fixed_landmarks"], fixed.grid, landmarks_space)
    moving_points, space = _points(files["moving_landmarks"], moving.grid, landmarks_space)
    if fixed_points is not None and moving_points is not None and len(fixed_points) != len(moving_points):
        raise DataError(
            f"{files['fixed_landmarks']} has {len(fixed_points)} landmarks and {files['moving_landmarks']} "
            f"{len(moving_points)}; they are paired one by one"
        )
    transform = _start(files["initial"], start, fixed.grid, moving.grid)
    name = files["initial"] or {"headers": "where the headers put the images", "centres": "centres of the boxes"}[start]
    inputs = Inputs(fixed, moving, transform, fixed_label, moving_label, fixed_points, moving_points)
    landmarks = None if files["moving_landmarks"] is None else Path(files["moving_landmarks"])
    return _Given(inputs, transform, name, landmarks, space)


def _read(path: str) -> Volume:
    image = read_volume(Path(path))
    affine = np.asarray(image.affine, dtype=np.float64)
    size = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    return Volume(image.as_tensor().float(), Grid(size, affine))


def _labels(fixed_path: str | None, moving_path: str | None) -> tuple[Volume | None, Volume | None]:
    """The labels that are given, checked."""
    labels = []
    for path in (fixed_path, moving_path):
        labels.append(None if path is None else _read(path))
        if labels[-1] is not None and len(labels[-1].voxels) != 1:
            raise DataError(f"{path} has {len(labels[-1].voxels)} channels; a label map of whole numbers is needed")
    fixed, moving = labels
    if fixed is not None and moving is not None and not set(structures(fixed.voxels)) & set(structures(moving.voxels)):
        raise DataError(f"{fixed_path} and {moving_path} have no structure in common: there is nothing to compare")
    return fixed, moving


def _points(path: str | None, grid: Grid, space: str | None) -> tuple[Points | None, str]:
    """Landmarks in mm of their image's world, and the space of their file."""
    if path is None:
        return None, ""
    landmarks = read_landmarks(Path(path))
    return landmarks.to_world(grid, check_landmarks_space(space)), landmarks.settled_space(space)


def _device(wanted: str | None) -> str:
    devices = available_devices()
    if wanted is None:
        return devices[min(1, len(devices) - 1)]
    if wanted not in devices:
        raise ConfigError(f"device is {wanted!r}; this machine has {', '.join(devices)}")
    return wanted


def _start(initial: str | None, start: str, fixed: Grid, moving: Grid) -> Affine:
    if initial is not None:
        transform = read_transform(Path(initial))
        if not isinstance(transform, Affine):
            raise UsageError(f"--initial takes an affine, and {initial} is a displacement field")
        return transform
    matrix = np.eye(4)
    if start == "centres":
        matrix[:3, 3] = moving.centre - fixed.centre
    return Affine(matrix)


def _show(console: Console, report: Mapping[str, Any], out: Path) -> None:
    """Print the measures, and what the folder holds."""
    table = Table("measure", "before", "after", "change")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in report["measures"].items():
        title = f"{name}, {values['unit']}" if values.get("unit") else name
        table.add_row(title, shown(values["before"]), shown(values["after"]), _change(name, values))
    console.print(table)
    if report["status"] == "stopped":
        console.print("stopped before its end; these are the results so far", style="yellow")
    took = f"registered in {report['seconds']:.1f} s"
    if report["seconds"] >= 60:
        took += f" ({duration(report['seconds'])})"
    console.print(Text(f"{took} on {report['device']}; results in {out}"), soft_wrap=True)
    for name, what in CONTENTS.items():
        for file in sorted(out.glob(f"{name}*")):
            console.print(Text.assemble(f"  {file.name}: ", (what, "dim")), soft_wrap=True)


def _change(name: str, values: Mapping[str, Any]) -> Text:
    if values["before"] is None or values["after"] is None:
        return Text("")
    gain = values["after"] - values["before"]
    sign = (name in HIGHER_IS_BETTER) - (name in LOWER_IS_BETTER)
    style, word = ("green", " better") if sign * gain > 0 else ("red", " worse") if sign * gain < 0 else ("", "")
    return Text(f"{gain:+.4g}{word}", style=style)

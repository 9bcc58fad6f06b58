"""What ``python -m usreg.register`` does: files in, a folder of files out."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import UsageError
from ..io import read_landmarks
from ..io.whole import writable_folder
from ..training.console import duration
from ..training.interrupts import StopRequest
from .demo import make_pair, write_pair
from .inputs.given import Pair, chosen_device, find_start, make_inputs, prepare_given, read_pair
from .outputs.files import CONTENTS, landmarks_name, write_data, write_points
from .outputs.results import make_results
from .pair import Registration
from .reports.bars import StageBars
from .reports.measures import HIGHER_IS_BETTER, LOWER_IS_BETTER, measure
from .reports.page import shown, write_page
from .reports.report import make_report, write_report
from .stages.settings import RegisterConfig, load_stages
from .stages.stopping import stop_when

PAIRED = tuple(f"{side}{kind}" for kind in ("", "_mask", "_label", "_landmarks") for side in ("fixed", "moving"))
FILES = (*PAIRED, "checkpoint")
"""Options that name a file."""

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
    device = chosen_device(config.device)
    files: dict[str, str | None] = {name: getattr(options, name) for name in FILES}
    initial: list[str] = options.initial or []
    files |= {f"initial_{number}": file for number, file in enumerate(initial, start=1)}
    out = Path(options.out)
    if options.demo:
        files |= _demo(out, files)
    pair = _read_pair(config, files, options.landmarks_space)
    start = find_start(pair, config, initial or None, files["checkpoint"], device)
    prepared = prepare_given(pair, config, stages, start.transform, device)
    inputs = make_inputs(pair, start)
    landmarks = None if files["moving_landmarks"] is None else Path(files["moving_landmarks"])
    writable_folder(out, [*CONTENTS, *([landmarks_name(landmarks)] if landmarks else [])])

    with StopRequest() as request:
        began = time.perf_counter()
        with stop_when(lambda: request.requested), StageBars(console, stages) as bars:
            found = prepared.run(bars)
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
            start=start.name,
            device=device,
            seconds=seconds,
        )
        write_data(out, inputs, found, results)
        if landmarks is not None:
            space = read_landmarks(landmarks).settled_space(options.landmarks_space)
            write_points(out, landmarks, results, space, inputs)
        if options.pictures:
            write_page(out, report, inputs, found, results)
        write_report(out, report)
    _show(console, report, out)
    return found


def _demo(out: Path, files: Mapping[str, str | None]) -> dict[str, str]:
    """The files of the made-up pair, written."""
    if given := [f"--{name.replace('_', '-')}" for name, file in files.items() if file is not None]:
        raise UsageError(f"--demo makes its own pair; leave out {', '.join(given)}")
    writable_folder(out, [*CONTENTS, DEMO])
    return write_pair(writable_folder(out / DEMO, ()), make_pair())


def _read_pair(config: RegisterConfig, files: Mapping[str, str | None], landmarks_space: str | None) -> Pair:
    """Read and check the files of the pair."""
    if files["fixed"] is None or files["moving"] is None:
        raise UsageError("--fixed FILE and --moving FILE are needed, or --demo for a pair that is made up")
    for kind in ("label", "landmarks"):
        if files[f"fixed_{kind}"] is not None and files[f"moving_{kind}"] is None:
            raise UsageError(f"--fixed-{kind} and --moving-{kind} go together: the measures compare the two")
    given = {name: files[name] for name in PAIRED}
    return read_pair(config, **given, landmarks_space=landmarks_space)  # type: ignore[arg-type]


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

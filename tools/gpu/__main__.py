"""The command line of :mod:`tools.gpu`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.gpu import machine as machines
from tools.gpu import summary
from tools.gpu.machine import Machine
from tools.gpu.runner import ROOT, run_stages
from tools.gpu.stages import STAGES, choose

RESULTS = ROOT / "gpu-results"


def default_folder(machine: Machine) -> Path:
    """By date and GPU."""
    name = machine.device.name if machine.device is not None else "no-gpu"
    return RESULTS / f"{time.strftime('%Y-%m-%d')}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"


def parser() -> argparse.ArgumentParser:
    """The options; ``pack`` has its own (:mod:`tools.gpu.pack`)."""
    made = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description="Builds, tests and measures the kernels on this machine's GPU. `python -m tools.gpu pack --help`: "
        "how to prepare it for a machine without a network.",
    )
    made.add_argument("stages", nargs="*", metavar="STAGE", help="of --list; all where none is named")
    made.add_argument("--out", type=Path, help="folder of results (gpu-results/<date>-<gpu>)")
    made.add_argument("--limit", type=float, metavar="SECONDS", help="end before so many seconds are over")
    made.add_argument("--list", action="store_true", help="list the stages, and run none")
    made.add_argument("--check", action="store_true", help="say what is missing on this machine, and run no stage")
    made.add_argument(
        "--set-up-follows", action="store_true", help="with --check: torch and packages may be missing, they come next"
    )
    return made


def main(arguments: Sequence[str] | None = None, inspect: Callable[[], Machine] = machines.inspect) -> int:
    """Run; the exit status is 0 where no stage failed, and 2 where this machine cannot run any."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["pack"]:
        from tools.gpu.pack import main as pack

        return pack(given[1:])
    options = parser().parse_args(given)
    if options.list:
        print("\n".join(f"{stage.name:<10}{stage.purpose} (at most {stage.limit:g} s)" for stage in STAGES))
        return 0
    try:
        stages = choose(options.stages)
    except ValueError as error:
        parser().error(str(error))
    machine = inspect()
    found = machines.requirements(machine, options.set_up_follows)
    if any(one.stops_everything for one in found):
        print(f"The GPU stages cannot run on this machine:\n{machines.describe(found)}", file=sys.stderr)
        return 2
    print(machines.describe(found), flush=True)
    if options.check:
        return 0
    out = (options.out or default_folder(machine)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = run_stages(stages, machine, out, options.limit, lambda row: summary.write(out, machine, [row]))
    print(f"\n{summary.stage_table(rows)}\n\nsummary: {out / 'summary.md'}")
    return 0 if all(row.state in ("passed", "cannot run") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

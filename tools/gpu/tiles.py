"""``python -m tools.gpu.tiles``: are the Triton march's tiles, and its number of programs, the fastest on this GPU?

Each way runs :mod:`tools.gpu.kernel_times` in a process of its own, with the library's own settings:

- by counts: what the library takes where nothing is set;
- measured: ``USREG_LNCC_TILES`` names an empty file, so that the library measures its candidates and keeps the fastest;
- each candidate: the file pins it for every launch;
- more or fewer programs: the plan counts on a multiple of the multiprocessors that there are.

First several processes at once compile everything; then the ways are measured, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from bench.cases import IMAGES
from tools.gpu.runner import ROOT
from tools.gpu.tables import BY_COUNTS, MEASURED, Row, load, programs_table, tiles_table
from usreg_kernels.ops.lncc.triton_plan import Tile, tiles_to_measure

SHAPES = ("64", "128", "brain")
WINDOWS = (3, 7, 9)
FACTORS = (0.5, 0.75, 1.5, 2.0, 3.0)

Found = dict[str, dict[str, list[Row]]]
"""Rows of ``"tiles"`` by tile, and of ``"programs"`` by factor."""


def label(tile: Tile) -> str:
    """A tile in a few characters."""
    registers = f", {tile.registers} registers" if tile.registers is not None else ""
    return f"{tile.columns} columns, {tile.lanes} lanes, {tile.rows} rows{registers}"


def pin(keys: Iterable[str], tile: Tile, file: Path) -> None:
    """Write a file for ``USREG_LNCC_TILES`` that gives the same tile to every launch."""
    file.write_text(json.dumps({key: asdict(tile) for key in keys}))


class Processes:
    """Runs kernel_times with the options that all ways share."""

    def __init__(self, folder: Path, shapes: Sequence[str], windows: Sequence[int], trial: bool) -> None:
        self.folder = folder
        self.arguments = ["--op", "lncc", "--backend", "triton", "--shape", *shapes, "--window", *map(str, windows)]
        self.arguments += ["--trial"] * trial
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, tiles: Path | None, *more: str) -> str:
        """Run with a file of tiles, or without one; what it printed."""
        environment = {name: value for name, value in os.environ.items() if name != "USREG_LNCC_TILES"}
        if tiles is not None:
            environment["USREG_LNCC_TILES"] = str(tiles)
        command = [sys.executable, "-m", "tools.gpu.kernel_times", *self.arguments, *more]
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        ).stdout

    def measure(self, name: str, tiles: Path | None, *more: str) -> list[Row]:
        """The rows of a run; none where it failed as a whole."""
        file = self.folder / f"{name}.json"
        file.unlink(missing_ok=True)
        output = self.run(tiles, "--json", str(file), *more)
        if not file.exists():
            print(f"{name}: nothing was measured:\n{output[-2000:]}", flush=True)
            return []
        return load(file)[1]


def compile_all(processes: Processes, launches: int, at_once: int) -> None:
    """Fill Triton's cache with every candidate: the library compiles them all where it measures.

    What it measures here means nothing, since several processes share the GPU.
    """
    files = [processes.folder / f"compiling-{part}.json" for part in range(launches)]
    for file in files:
        file.unlink(missing_ok=True)
    with ThreadPoolExecutor(at_once) as pool:
        for part, file in enumerate(files):
            pool.submit(processes.run, file, "--compile", f"{part}/{launches}")


def measure_all(
    processes: Processes, candidates: Sequence[Tile], factors: Sequence[float], save: Callable[[Found], None]
) -> Found:
    """Rows by tile, and by number of programs; ``save`` is called after each process, with what was found so far."""
    fastest = processes.folder / "fastest-tiles.json"
    fastest.unlink(missing_ok=True)
    by_counts = processes.measure("by-counts", None)
    found: Found = {"tiles": {BY_COUNTS: by_counts}, "programs": {"1": by_counts}}
    found["tiles"][MEASURED] = processes.measure("measured", fastest)  # fills the file
    save(found)
    for factor in factors:
        rows = processes.measure(f"programs-{factor:g}", None, "--processors", str(factor))
        found["programs"][f"{factor:g}"] = rows
        save(found)
    keys = list(json.loads(fastest.read_text())) if fastest.exists() else []
    for number, tile in enumerate(candidates if keys else []):
        pinned = processes.folder / f"pinned-{number}.json"
        pin(keys, tile, pinned)
        found["tiles"][label(tile)] = processes.measure(f"tile-{number}", pinned)
        save(found)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.tiles", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument("--folder", type=Path, required=True, help="for the files of the single processes")
    parser.add_argument("--shape", nargs="+", choices=list(IMAGES), default=list(SHAPES))
    parser.add_argument("--window", nargs="+", type=int, default=list(WINDOWS))
    parser.add_argument("--most-tiles", type=int, help="of the library's candidates, the first so many")
    parser.add_argument("--factor", nargs="*", type=float, default=list(FACTORS), help="of the programs")
    parser.add_argument("--at-once", type=int, default=1, help="processes that compile at the same time")
    parser.add_argument("--trial", action="store_true", help="on the CPU, with TRITON_INTERPRET=1: tries it")
    options = parser.parse_args(arguments)
    processes = Processes(options.folder.resolve(), options.shape, options.window, options.trial)
    compile_all(processes, len(options.shape) * len(options.window), options.at_once)

    def save(found: Found) -> None:
        content = {part: {way: list(map(asdict, rows)) for way, rows in ways.items()} for part, ways in found.items()}
        options.json.write_text(json.dumps(content, indent=1))

    found = measure_all(processes, tiles_to_measure()[: options.most_tiles], options.factor, save)
    print(f"{tiles_table(found['tiles'])}\n\n{programs_table(found['programs'])}")
    return 0 if found["tiles"][BY_COUNTS] else 1


if __name__ == "__main__":
    sys.exit(main())

"""``python -m bench.register.growth --data FOLDER``: how our time grows as the volume grows eightfold.

The brain pair at half as many voxels along each axis, the means of blocks of eight voxels, and as it is, in turns. What
stands there is the median of all runs, reading and writing files left out, and how many times the whole takes the half.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from bench.recording import processor
from bench.register.pairs import BRAIN, make_pairs
from usreg.io import read_volume
from usreg.registration.pair import Registration, Volume, register_pair
from usreg.registration.stages import load_stages
from usreg.spatial import Grid

SHORT = 3
"""Runs of the half in a turn: they are short."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.register.growth", description=__doc__)
    parser.add_argument("--data", required=True, help="the folder that holds brain_pair")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pairs(BRAIN, Path(options.data), Path(folder))[0]
        whole = [_read(path) for path in (pair.fixed, pair.moving)]
    half = [halved(volume) for volume in whole]
    _seconds(half)
    turns: dict[str, list[list[float]]] = {"half": [], "whole": []}
    for _ in range(options.turns):
        turns["half"] += [_seconds(half) for _ in range(SHORT)]
        turns["whole"].append(_seconds(whole))
    print(f"{processor()}, {options.threads} threads\n")
    print(
        table({name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in turns.items()})
    )
    return 0


def table(medians: dict[str, list[float]]) -> str:
    """In Markdown: seconds of the whole registration and of its parts for the two sizes, and their ratios.

    Args:
        medians: of ``half`` and ``whole``: seconds in all, of each stage, and of the rest.
    """
    _, stages = load_stages()
    names = ["all", *(stage.stage for stage in stages), "the rest: intensities, inverse"]
    lines = ["| | seconds at half | seconds | times |", "| --- | --- | --- | --- |"]
    for name, half, whole in zip(names, medians["half"], medians["whole"], strict=True):
        lines.append(f"| {name} | {half:.3g} | {whole:.3g} | {whole / half:.2f} |")
    return "\n".join(lines)


def halved(volume: Volume) -> Volume:
    """Half as many voxels along each axis over the same box."""
    voxels = functional.avg_pool3d(volume.voxels[None], 2)[0]
    return Volume(voxels, volume.grid.resized([int(length) for length in voxels.shape[1:]]))


def _read(path: Path) -> Volume:
    image = read_volume(path)
    size = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    return Volume(image.as_tensor().float(), Grid(size, image.affine.numpy()))


def _seconds(pair: Sequence[Volume]) -> list[float]:
    config, stages = load_stages()
    began = time.perf_counter()
    found: Registration = register_pair(pair[0], pair[1], stages, quantiles=config.quantiles)
    whole = time.perf_counter() - began
    own = [stage.seconds for stage in found.stages]
    return [whole, *own, whole - sum(own)]


if __name__ == "__main__":
    sys.exit(main())

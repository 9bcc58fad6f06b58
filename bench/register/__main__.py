"""``python -m bench.register --data FOLDER``: registers the pairs with every contender, and writes a table.

All contenders see the same files, on the same machine, in one run, with as many threads. Dice is that of the labels
that the contender itself resamples, by nearest neighbour.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bench.recording import processor
from bench.register.contenders import CONTENDERS, RUNNERS, Absent, Contender, interpreter, last_line
from bench.register.pairs import DATASETS, Pair, make_pairs
from bench.register.results import Report
from bench.register.table import BEFORE, table
from usreg.io.transforms import read_transform
from usreg.metrics.field import folding_ratio

PROJECT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0 where our own registrations all ran."""
    options = _options(arguments)
    machine = {"processor": processor(), "threads": options.threads, "date": date.today().isoformat()}
    report = Report(machine, options.note, Path(options.out) if options.add else None)
    with tempfile.TemporaryDirectory() as work:
        for dataset in options.datasets:
            pairs = make_pairs(dataset, Path(options.data), Path(work) / dataset)[: options.pairs]
            report.add([_before(pair) for pair in pairs])
            for contender in _chosen(options.contenders):
                print(f"{dataset}: {contender.name}", file=sys.stderr, flush=True)
                try:
                    report.add(_run(contender, pairs, Path(work), options))
                except Absent as reason:
                    report.leave_out(contender.name, dataset, str(reason))
                report.write(Path(options.out))
    print(table(report.content))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.register", description=__doc__)
    parser.add_argument("--data", required=True, help="the folder that holds brain_pair and hippocampus")
    parser.add_argument("--out", default="bench/results/latest-register.json", help="the JSON file of the results")
    parser.add_argument("--environments", default=".venv-register", help="where the contenders' environments are made")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--contenders", nargs="+", default=[""], help="names, or words in names")
    parser.add_argument("--pairs", type=int, help="only the first pairs of each data set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patience", type=float, default=600, help="seconds that a contender gets for a pair")
    parser.add_argument("--note", default="", help="what a reader must know of the run")
    parser.add_argument("--busy", action="store_true", help="the machine has other work too: the seconds are marked")
    parser.add_argument(
        "--add", action="store_true", help="keep what the file of --out holds and is not measured again"
    )
    return parser.parse_args(arguments)


def _chosen(words: Sequence[str]) -> list[Contender]:
    """Those with such a name, or, for a word that is no name, with the word in their name."""
    given, names = {word.lower() for word in words}, {one.name.lower() for one in CONTENDERS}
    parts = given - names
    return [o for o in CONTENDERS if o.name.lower() in given or any(part in o.name.lower() for part in parts)]


def _before(pair: Pair) -> dict[str, Any]:
    """The moving label where the headers put it, as a contender that takes no time."""
    fixed, moving = nib.load(pair.fixed_label), nib.load(pair.moving_label)
    places = np.linalg.inv(moving.affine) @ fixed.affine
    points = np.indices(fixed.shape).reshape(3, -1)
    voxels = np.rint(places[:3, :3] @ points + places[:3, 3:]).astype(int)
    inside = np.all((voxels >= 0) & (voxels < np.array(moving.shape)[:, None]), axis=0)
    there = np.zeros(points.shape[1])
    there[inside] = np.asarray(moving.dataobj)[tuple(voxels[:, inside])]
    dice = _dice(there, np.asarray(fixed.dataobj).ravel(), pair.numbers)
    return {"contender": BEFORE, "dataset": pair.dataset, "pair": pair.name, "dice": dice}


def _run(contender: Contender, pairs: Sequence[Pair], work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the contender made of the pairs, in one process.

    Raises:
        Absent: it has no environment, fails, or takes too long.
    """
    python = interpreter(contender, Path(options.environments))
    out = work / "out" / _plain(contender.name)
    folders = [out / _plain(pair.name) for pair in pairs]
    jobs = [
        {name: str(getattr(pair, name)) for name in ("fixed", "moving", "moving_label")} | {"out": str(folder)}
        for pair, folder in zip(pairs, folders, strict=True)
    ]
    list_of_jobs = work / "jobs.json"
    list_of_jobs.write_text(json.dumps(jobs))
    threads = str(options.threads)
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT) if not contender.packages else "",
        "OMP_NUM_THREADS": threads,
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads,
    }
    command = [python, str(RUNNERS / contender.script), str(list_of_jobs), *contender.arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.patience * len(pairs), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Absent(f"takes more than {options.patience:g} s a pair (--patience)") from error
    if done.returncode:
        raise Absent(f"fails: {last_line(done.stderr)}")
    return [
        {**_measured(contender, pair, folder), "busy": options.busy}
        for pair, folder in zip(pairs, folders, strict=True)
    ]


def _plain(name: str) -> str:
    """A name for a folder without blanks, at which Greedy's command line would split it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _measured(contender: Contender, pair: Pair, out: Path) -> dict[str, Any]:
    result = json.loads((out / "result.json").read_text())
    warped, fixed = (np.asarray(nib.load(path).dataobj) for path in (out / "warped_label.nii.gz", pair.fixed_label))
    return {
        "contender": contender.name,
        "dataset": pair.dataset,
        "pair": pair.name,
        "dice": _dice(warped.ravel(), fixed.ravel(), pair.numbers),
        "folded": _folded(out, nib.load(pair.fixed).affine),
        **result,
    }


def _folded(out: Path, affine: np.ndarray) -> float:
    """The share of voxels whose Jacobian determinant is 0 or less."""
    if (out / "field.npy").exists():
        return folding_ratio(torch.from_numpy(np.load(out / "field.npy"))[None]).item()
    millimetres = read_transform(out / "field.nii.gz").displacement.double()
    to_voxels = torch.from_numpy(np.linalg.inv(affine[:3, :3]))
    return folding_ratio((to_voxels @ millimetres.flatten(1)).reshape(1, *millimetres.shape)).item()


def _dice(one: np.ndarray, other: np.ndarray, numbers: Sequence[int]) -> float:
    """The mean over the labels that one of the two has."""
    one, other = np.rint(one), np.rint(other)
    sizes = [(one == number).sum() + (other == number).sum() for number in numbers]
    both = [((one == number) & (other == number)).sum() for number in numbers]
    return float(np.mean([2 * common / size for common, size in zip(both, sizes, strict=True) if size]))


if __name__ == "__main__":
    sys.exit(main())

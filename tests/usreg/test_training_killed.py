"""A run that is killed at any moment, twenty times, ends with the bits of one that nobody disturbed."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from usreg.training import load_checkpoint

SCRIPT = Path(__file__).with_name("killed_runs.py")


def same(a, b) -> bool:
    """Whether two entries of checkpoints are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes to kill are forked")
@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_has_the_bits_of_an_undisturbed_one(tmp_path):
    seed = random.randrange(10**6)  # other moments each time; the message names them
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(seed)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, f"seed {seed}: {finished.stderr}"
    done = json.loads(finished.stdout.splitlines()[-1])
    assert len(done) == 21
    assert done == sorted(done), f"seed {seed}: epochs were lost"
    assert done[-1] > 0

    run = max(tmp_path.glob("run*/last.pt"), key=lambda path: path.stat().st_mtime_ns).parent
    assert not list(run.glob("*.new*"))
    contents = [load_checkpoint(folder / "last.pt") for folder in (run, tmp_path / "whole")]
    for key in ("model", "loss", "optimizer", "random", "progress"):
        assert same(contents[0][key], contents[1][key]), f"seed {seed}: {key}"
    tables = []
    for folder in (run, tmp_path / "whole"):
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        tables.append([{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows])
    assert tables[0] == tables[1], f"seed {seed}"

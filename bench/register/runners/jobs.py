"""What every contender's script does: read its jobs, register each pair, and write what came out and how long it took.

A script runs in the contender's own environment: it imports nothing of this project but this file, which needs only the
standard library.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Register = Callable[[Any], Any]


def run_jobs(
    read: Callable[[dict[str, str]], Any], register: Register, write: Callable[[Any, Any, Path], None]
) -> None:
    """Run the jobs of the file that the command line names.

    Only ``register`` is timed.

    Args:
        read: from a job, a dictionary with the files ``fixed``, ``moving`` and ``moving_label``, to what is registered.
        register: from that to what was found.
        write: both, into a folder: ``warped_label.nii.gz``, nearest neighbour, on the fixed grid, and the field
            on it, without the affine, as ``field.nii.gz`` (as ITK writes it) or ``field.npy``, (3, D, H, W) voxels.
    """
    imported = _megabytes()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        out = Path(job["out"])
        out.mkdir(parents=True, exist_ok=True)
        pair = read(job)
        began, worked = time.perf_counter(), time.process_time()
        found = register(pair)
        result = {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - worked,
            "peak_extra_megabytes": _megabytes() - imported,
        }
        write(pair, found, out)
        (out / "result.json").write_text(json.dumps(result))


def _megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

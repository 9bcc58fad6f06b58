"""Which tile a launch of the z-march takes: the one that counts say is best, or the fastest of a few, measured once.

Environment variables:

``USREG_LNCC_TILES``
    A JSON file of tiles. A launch that is not in the file is measured at its first call: the tile by counts and a few
    others, each in a CUDA graph of many launches, which takes a minute or so of compiling; the fastest is added to the
    file. A file that is complete pins every launch. Unset: the tile by counts. Read at import.

A tile changes the order of sums, and so the last digits of a result.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from usreg_kernels.ops.lncc.triton_plan import Tile
from usreg_kernels.windows import Weights

_REPEATS = 7
_LAUNCHES = 20  # per measurement: enough that what comes before the first and after the last does not count

_file = Path(os.environ["USREG_LNCC_TILES"]) if os.environ.get("USREG_LNCC_TILES") else None
_known: dict[str, Tile] | None = None


def is_on() -> bool:
    """Whether tiles are measured: whether there is a file for them."""
    return _file is not None


def key(kernel: str, image: torch.Tensor, weights: Weights, sums: int) -> str:
    """What a tile depends on: the device, the kernel and its sums, dtype, width and window."""
    device = torch.cuda.get_device_name(image.device) if image.device.type == "cuda" else image.device.type
    window = "x".join(str(len(row)) for row in weights)
    kind = "box" if all(set(row) == {1.0} for row in weights) else "weighted"
    dtype = str(image.dtype).removeprefix("torch.")
    return f"{device}, {kernel} of {sums} sums, {dtype}, width {image.shape[-1]}, {kind} {window}"


def choose(
    name: str, default: Tile, candidates: Sequence[Tile], launch: Callable[[Tile], Any], device: torch.device
) -> Tile:
    """The tile of a launch, from the file or measured.

    Args:
        name: the launch, by :func:`key`.
        default: the tile by counts. It is measured too, and serves where nothing can be measured: while a graph is
            captured.
        candidates: what to measure beside it.
        launch: runs the kernel with a tile; returns what Triton's launch returns.
        device: where.

    Raises:
        ValueError: the file of ``USREG_LNCC_TILES`` is not one of tiles.
    """
    assert _file is not None
    known = _read(_file)
    if name not in known:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return default
        known[name] = _fastest(list(dict.fromkeys((default, *candidates))), launch, device)
        _write(_file, known)
    return known[name]


def _fastest(candidates: Sequence[Tile], launch: Callable[[Tile], Any], device: torch.device) -> Tile:
    """The tile with the shortest launch; the first, where all of them spill."""
    times = {}
    for tile in candidates:
        compiled = launch(tile)
        if getattr(compiled, "n_spills", 0):
            continue  # registers that spill to memory cost more than a short measurement shows
        times[tile] = _seconds(partial(launch, tile), device)
    return min(times, key=lambda tile: times[tile]) if times else candidates[0]


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    """How long a launch runs, on the device's clock where it has one: the median of a few measurements.

    From Python, a launch takes longer to start than many a volume takes to march. The device would wait, and its clock
    show how fast Python is. A graph of launches starts at once, and they follow on each other without a gap.
    """
    if device.type != "cuda":
        return median(_elapsed(run) for _ in range(_REPEATS))
    graph = torch.cuda.CUDAGraph()
    # "thread_local": other threads, which load data, may do to the device what they like.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_LAUNCHES):
            run()
    graph.replay()  # the first one also uploads the graph
    return median(_elapsed_on_device(graph.replay) for _ in range(_REPEATS)) / _LAUNCHES


def _elapsed(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _elapsed_on_device(run: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _read(file: Path) -> dict[str, Tile]:
    global _known
    if _known is None:
        try:
            found = json.loads(file.read_text()) if file.exists() else {}
            _known = {name: Tile(**tile) for name, tile in found.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"USREG_LNCC_TILES names {file}, which is not a JSON file of tiles ({error}); remove it to have the "
                "tiles measured again, or unset the variable"
            ) from error
    return _known


def _write(file: Path, known: dict[str, Tile]) -> None:
    """Replace the file whole, so that no process reads half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".json", delete=False) as new:
        json.dump({name: asdict(tile) for name, tile in sorted(known.items())}, new, indent=1)
    Path(new.name).replace(file)

"""``python -m bench.training_memory``: memory and seconds of a training step, for each model, as a table.

Every row comes from a process of its own, which takes steps of training: network, warp, loss, gradients and Adam, batch
size 1. Memory is the most that the first step holds beyond the network and the batch: on a CPU resident memory as Linux
counts it, on a GPU what torch's allocator gives out. Seconds are the median of the steps behind the first; of the first
one where it takes long, and its extra work is a small part.

A row that goes beyond ``--gigabytes`` or ``--seconds`` is stopped, and recorded as such. Rows that this machine has
measured already are kept; ``--minutes`` ends the whole, and the next call goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import torch

from bench.memory import peak_extra_bytes, resident
from bench.recording import processor
from bench.report import fill

MODELS = ("globalnet3d", "localnet3d", "unetreg3d", "voxelmorph3d", "voxelmorph3d half_res", "transmorph3d")
SIZES = ((96, 96, 96), (128, 128, 128), (160, 192, 224))
PAGE = Path(__file__).parents[1] / "docs" / "training.md"
RESULTS = Path(__file__).parent / "results" / "training-memory-{device}.jsonl"
BLOCK = "training-memory"
WAYS = {"float32": (False, False), "checkpointing": (True, False), "bfloat16": (False, True), "both": (True, True)}
"""By name, whether the network is checkpointed, and whether the step runs under autocast."""
_GB = 1e9
_LONG_SECONDS = 8.0
"""From which on the first step is the one that is timed."""
_MOST_STEPS = 3
_STEPS_SECONDS = 3.0
"""Timed steps of a row: one at least, and no further one after so many seconds."""
_WATCH_SECONDS = 0.05
_ENDED_BY_THE_SYSTEM = (-9, 137)
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "not enough memory")

Key = tuple[str, tuple[int, int, int], str]
"""Model, size and way of a row."""


@dataclass(frozen=True)
class Entry:
    """What one model's step takes.

    Attributes:
        model: one of MODELS: the name, and a key that is true.
        size: (D, H, W).
        way: one of WAYS.
        bytes: None where the first step did not end.
        where: the processor or the GPU.
        seconds: of a step; None where none ended in time.
        reason: why a number is missing.
        threads: of torch.
        date: of the measurement, as in ISO 8601.
        torch: its version.
    """

    model: str
    size: tuple[int, int, int]
    way: str
    bytes: int | None
    where: str
    seconds: float | None = None
    reason: str = ""
    threads: int | None = None
    date: str = ""
    torch: str = ""

    @property
    def key(self) -> Key:
        """What the entry is about."""
        return self.model, self.size, self.way

    def stands(self, other: Entry) -> bool:
        """Whether this entry needs no second measurement on the machine of another one."""
        complete = self.seconds is not None or bool(self.reason)
        return complete and (self.where, self.threads, self.torch) == (other.where, other.threads, other.torch)


@dataclass(frozen=True)
class Limits:
    """What a row may take: bytes of resident memory, and seconds of all its steps."""

    bytes: float
    seconds: float


def measure(
    model: str, size: tuple[int, int, int], way: str, device: str, tell: Callable[[Entry], None] | None = None
) -> Entry:
    """Measure in this process, which should be a fresh one.

    Args:
        model, size, way: see :class:`Entry`.
        device: ``cpu`` or ``cuda``.
        tell: gets the entry before the first step, without numbers, and after each step.
    """
    from usreg.losses import build_loss
    from usreg.losses.call import LossCall
    from usreg.models import build_model

    checkpointing, autocast = WAYS[way]
    name, *switches = model.split()
    torch.manual_seed(0)
    section = {"name": name, "checkpointing": checkpointing, **dict.fromkeys(switches, True)}
    network = build_model(section, size).to(device)
    loss = LossCall(build_loss({"name": "lncc_smooth", "kernel_size": 9}))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batch = {key: torch.rand(1, 1, *size, device=device) for key in ("moving", "fixed")}

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            warped, ddf = network(batch["moving"], batch["fixed"])
        loss(warped, ddf, batch).backward()
        optimizer.step()

    tell = tell or (lambda entry: None)
    tell(_entry_here((model, size, way), device))
    most, first = peak_extra_bytes(step, device)
    times = [first] if first > _LONG_SECONDS else []
    entry = _entry_here((model, size, way), device, most, *times)
    tell(entry)
    while len(times) < _MOST_STEPS and sum(times) < _STEPS_SECONDS:
        optimizer.zero_grad()
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        entry = _entry_here((model, size, way), device, most, statistics.median(times))
        tell(entry)
    return entry


def _entry_here(
    key: Key, device: str, most: int | None = None, seconds: float | None = None, reason: str = ""
) -> Entry:
    """An entry of this machine and of today."""
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return Entry(*key, most, where, seconds, reason, torch.get_num_threads(), today, torch.__version__)


def measured(key: Key, device: str, limits: Limits) -> Entry:
    """Measure in a process of its own; one that goes beyond a limit is ended, and leaves what it has measured."""
    command = [sys.executable, "-m", "bench.training_memory", "--one", json.dumps(key), "--device", device]
    command += ["--threads", str(torch.get_num_threads())]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, text=True)
        try:
            beyond = _watch(process, said, device, limits)
        finally:
            process.kill()
            process.wait()
        lines = _lines(said)
        errors.seek(0)
        error = errors.read()
    found = _entry(lines[-1]) if lines else _entry_here(key, device)
    if not beyond and process.returncode != 0:
        if process.returncode not in _ENDED_BY_THE_SYSTEM and not any(text in error for text in _OUT_OF_MEMORY):
            raise RuntimeError(f"{key}: {error}")
        beyond = "does not fit"
    if found.seconds is not None or not beyond:  # the limit came in a further step
        return found
    return replace(found, reason=beyond)


def _watch(process: subprocess.Popen[str], said: TextIO, device: str, limits: Limits) -> str:
    """Wait for a process; where it goes beyond a limit, end it, and return the limit."""
    began = None
    while process.poll() is None:
        time.sleep(_WATCH_SECONDS)
        if began is None and _lines(said):
            began = time.monotonic()
        if device == "cpu" and (resident(process.pid) or 0) > limits.bytes:
            process.kill()
            return f"over {limits.bytes / _GB:.0f} GB"
        if began is not None and time.monotonic() - began > limits.seconds:
            process.kill()
            return f"over {limits.seconds:.0f} s"
    return ""


def _lines(said: TextIO) -> list[str]:
    """The whole lines that a process has written to a file."""
    text = os.pread(said.fileno(), 1 << 16, 0).decode()
    return text.split("\n")[:-1]


def load(path: Path) -> list[Entry]:
    """The entries of a file of results; none where there is no file."""
    return [_entry(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(path: Path, entries: Iterable[Entry]) -> None:
    """Write entries to a file of results, one a line, ordered as in the table."""
    order = {key: place for place, key in enumerate(_keys())}
    lines = [json.dumps(asdict(entry)) + "\n" for entry in sorted(entries, key=lambda entry: order[entry.key])]
    path.write_text("".join(lines))


def _keys() -> list[Key]:
    """All rows, in the table's order."""
    return [(model, size, way) for model in MODELS for size in SIZES for way in WAYS]


def _entry(line: str) -> Entry:
    content = json.loads(line)
    return Entry(**{**content, "size": tuple(content["size"])})


def beyond_at_a_smaller_size(key: Key, found: Mapping[Key, Entry]) -> str:
    """The limit that stopped the same model before its first step's end at a smaller size; empty where none did."""
    model, size, way = key
    smaller = [found.get((model, other, way)) for other in SIZES[: SIZES.index(size)]]
    return next((entry.reason for entry in smaller if entry is not None and entry.bytes is None), "")


def measure_all(
    wanted: Sequence[Key], path: Path, device: str, limits: Limits, minutes: float | None = None
) -> list[Key]:
    """Measure rows that the results of a file do not have of this machine, and save each at once.

    Args:
        wanted: the rows, the most important first.
        path: of the file.
        device: ``cpu`` or ``cuda``.
        limits: of each row.
        minutes: of the whole; None for as long as it takes.

    Returns:
        The rows that there was no time for.
    """
    found = {entry.key: entry for entry in load(path)}
    end = time.monotonic() + (minutes * 60 if minutes is not None else float("inf"))
    left = []
    for key in wanted:
        known = found.get(key)
        here = _entry_here(key, device)
        if known is not None and known.stands(here):
            continue
        seconds = min(limits.seconds, end - time.monotonic())
        if seconds <= 0:
            left.append(key)
            continue
        reason = beyond_at_a_smaller_size(key, found)
        entry = replace(here, reason=reason) if reason else measured(key, device, replace(limits, seconds=seconds))
        if entry.reason and seconds < limits.seconds:  # it may be the end of the whole that stopped it
            left.append(key)
            continue
        found[key] = entry
        save(path, found.values())
        print(f"{' '.join((key[0], 'x'.join(map(str, key[1])), key[2]))}: {_cell(entry)}", file=sys.stderr, flush=True)
    return left


def table(entries: Iterable[Entry]) -> str:
    """Markdown: a row per model and size, a column per way that was measured: GB (10^9 bytes), and seconds a step."""
    found = {entry.key: entry for entry in entries}
    ways = [way for way in WAYS if any(way == entry.way for entry in found.values())]
    lines = [f"| model | size | {' | '.join(ways)} |", f"|---|---|{'---:|' * len(ways)}"]
    for model in MODELS:
        for size in SIZES:
            row = [found.get((model, size, way)) for way in ways]
            if any(row):
                name = " with `".join(f"{word}`" for word in model.split())
                lines.append(f"| `{name} | {' x '.join(map(str, size))} | {' | '.join(map(_cell, row))} |")
    return "\n".join(lines)


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return ""
    numbers = [f"{entry.bytes / _GB:.2f} GB" if entry.bytes is not None else entry.reason or "does not fit"]
    if entry.seconds is not None:
        numbers.append(f"{entry.seconds:.1f} s" if entry.seconds >= 1 else f"{entry.seconds:.2f} s")
    elif entry.bytes is not None and entry.reason:
        numbers.append(entry.reason)
    return ", ".join(numbers)


def block(device: str) -> str:
    """The table of the committed results, as the page has it."""
    entries = load(Path(str(RESULTS).format(device=device)))
    places = sorted({_place(entry) for entry in entries if entry.where})
    return f"{table(entries)}\n\nMeasured on {'; '.join(places)}."


def _place(entry: Entry) -> str:
    threads = f", {entry.threads} threads" if entry.threads else ""
    version = f", torch {entry.torch}" if entry.torch else ""
    return f"{entry.where}{threads}{version}" + (f", {entry.date}" if entry.date else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the results do not have of this machine, add it to them, and print the table; 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_memory", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", type=int, choices=range(len(SIZES)), default=range(len(SIZES)),
                        help=f"places in {SIZES}")  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), metavar="WAY",
                        help="in the order in which they are measured")  # fmt: skip
    parser.add_argument("--gigabytes", type=float, default=20.0, help="of resident memory that a row may take")
    parser.add_argument("--seconds", type=float, default=90.0, help="that all steps of a row may take")
    parser.add_argument("--minutes", type=float, help="that the whole may take")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--results", type=Path, help=f"where lines of JSON go; {RESULTS}")
    parser.add_argument("--publish", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.one is not None:
        model, size, way = json.loads(options.one)
        _end_first_where_memory_is_short()
        measure(model, tuple(size), way, options.device, lambda entry: print(json.dumps(asdict(entry)), flush=True))
        return 0
    path = options.results or Path(str(RESULTS).format(device=options.device))
    wanted = [(model, SIZES[place], way) for way in options.ways for place in options.sizes for model in options.models]
    left = measure_all(wanted, path, options.device, Limits(options.gigabytes * _GB, options.seconds), options.minutes)
    print(table(load(path)))
    for key in left:
        print(f"no time was left for {key}", file=sys.stderr)
    if options.publish:
        PAGE.write_text(fill(PAGE.read_text(), {BLOCK: block(options.device)}))
    return 0


def _end_first_where_memory_is_short() -> None:
    """Let the system end this process before any other."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main())

"""``python -m bench.training_memory``: the memory that a training step takes, for each model, as a table.

Every number comes from a process of its own, which takes one step: network, warp, loss, gradients and the first step of
Adam, batch size 1. Counted is the most that it holds beyond the network and the batch. On a CPU that is resident memory
as Linux counts it, on a GPU what torch's allocator gives out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.memory import peak_extra_bytes
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


@dataclass(frozen=True)
class Entry:
    """The memory of one model's step.

    Attributes:
        model: one of MODELS: the name, and a key that is true.
        size: (D, H, W).
        way: one of WAYS.
        bytes: None where the step did not fit.
        where: the processor or the GPU.
    """

    model: str
    size: tuple[int, int, int]
    way: str
    bytes: int | None
    where: str


def measure(model: str, size: tuple[int, int, int], way: str, device: str) -> Entry:
    """Measure in this process, which should be a fresh one."""
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

    most, _ = peak_extra_bytes(step, device)
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    return Entry(model, size, way, most, where)


def measured(model: str, size: tuple[int, int, int], way: str, device: str) -> Entry:
    """Measure in a process of its own; one that the system ends, or that is out of memory, has no number."""
    arguments = ["--one", json.dumps([model, size, way]), "--device", device]
    done = subprocess.run([sys.executable, "-m", "bench.training_memory", *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return _entry(done.stdout.splitlines()[-1])
    if done.returncode in (-9, 137) or "OutOfMemoryError" in done.stderr or "can't allocate memory" in done.stderr:
        return Entry(model, size, way, None, "")
    raise RuntimeError(f"{model} at {size}, {way}: {done.stderr}")


def load(path: Path) -> list[Entry]:
    """The entries of a file of results; none where there is no file."""
    return [_entry(line) for line in path.read_text().splitlines()] if path.exists() else []


def _entry(line: str) -> Entry:
    content = json.loads(line)
    return Entry(**{**content, "size": tuple(content["size"])})


def table(entries: Iterable[Entry]) -> str:
    """Markdown: a row per model and size, a column per way that was measured, in GB (10^9 bytes)."""
    found = {(entry.model, entry.size, entry.way): entry for entry in entries}
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
    return "" if entry is None else "does not fit" if entry.bytes is None else f"{entry.bytes / _GB:.2f}"


def block(device: str) -> str:
    """The table of the committed results, as the page has it."""
    entries = load(Path(str(RESULTS).format(device=device)))
    where = sorted({entry.where for entry in entries if entry.where})
    return f"{table(entries)}\n\nMemory of {', '.join(where)}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the results do not have yet, add it to them, and print the table; 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_memory", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", type=int, choices=range(len(SIZES)), default=range(len(SIZES)),
                        help=f"places in {SIZES}")  # fmt: skip
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), metavar="WAY")
    parser.add_argument("--results", type=Path, help=f"where lines of JSON go; {RESULTS}")
    parser.add_argument("--publish", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        model, size, way = json.loads(options.one)
        print(json.dumps(asdict(measure(model, tuple(size), way, options.device))))
        return 0
    path = options.results or Path(str(RESULTS).format(device=options.device))
    known = {(entry.model, entry.size, entry.way) for entry in load(path)}
    wanted = [(model, SIZES[place], way) for place in options.sizes for model in options.models for way in options.ways]
    for model, size, way in wanted:
        if (model, size, way) not in known:
            entry = measured(model, size, way, options.device)
            with path.open("a") as file:
                file.write(json.dumps(asdict(entry)) + "\n")
            print(f"{model} {size} {way}: {_cell(entry)}", file=sys.stderr)
    print(table(load(path)))
    if options.publish:
        PAGE.write_text(fill(PAGE.read_text(), {BLOCK: block(options.device)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

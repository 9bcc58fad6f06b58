"""``python -m bench.report RESULTS``: tables and pictures of a run, or what got slower since an earlier one.

RESULTS is a file that ``pytest bench --benchmark-only --benchmark-json=RESULTS`` wrote.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import comparison, tables
from bench.contenders import import_failure
from bench.results import Results, load, write_summary

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmark.md")

CAPTIONS = {
    "speed": "Time of forward and backward against the number of voxels",
    "memory": "Extra memory of forward and backward against the number of voxels",
    "windows": "Time of forward and backward against the window size",
    "accuracy": "Relative errors in float32 on data on which low precision fails",
}


def blocks(results: Results, page: Path) -> dict[str, str]:
    """What the page holds between its markers ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``, by name.

    Each device has its own markers: a run on a GPU leaves the tables of the CPU as they are.
    """
    here = page.parent
    link = Path(os.path.relpath(results.path.resolve(), here)).as_posix()
    source = f"{results.provenance} ([all numbers]({link}))."
    parts = [source]
    for op, title in tables.TITLES.items():
        lists = [text for text in (tables.not_captured(results, op), tables.absent(results, op)) if text]
        if lists or results.select(kind="loss", op=op):
            parts += [f"### {title}", tables.details(results, op), *lists]
    overhead = [tables.overhead(results)] if results.select(kind="overhead") else []
    if overhead:
        parts += ["### Overhead per call", *overhead]
    if results.select(kind="operation"):
        parts += ["### Operations on images and fields", tables.operations(results)]
    parts += ["### Variants of our LNCC", tables.variants(results)]
    parts += ["### Training steps", tables.training(results)]
    if results.select(kind="parts"):
        parts += ["### Parts of a training step", tables.parts(results)]
    parts += ["### Registrations", tables.registration(results)]
    files = {f"bench-{results.device}-{name}.png": caption for name, caption in CAPTIONS.items()}
    images = [f"![{caption}](images/{file})" for file, caption in files.items() if (IMAGES / file).exists()]
    return {
        f"summary-{results.device}": "\n\n".join([tables.summary(results), *overhead, source]),
        f"pictures-{results.device}": "\n\n".join(images),
        f"tables-{results.device}": "\n\n".join(parts),
    }


def fill(text: str, contents: dict[str, str]) -> str:
    """The text with what lies between the markers replaced."""
    for name, content in contents.items():
        pattern = rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)"
        text = re.sub(pattern, lambda found, new=content: f"{found[1]}\n{new}\n\n{found[2]}", text, flags=re.DOTALL)
    return text


def publish(results: Results) -> list[Path]:
    """Commit-ready files: the results under their own name, the pictures, README and docs with new tables."""
    from bench import pictures

    COMMITTED.mkdir(exist_ok=True)
    target = COMMITTED / results.file_name
    write_summary(results, target)
    named = load(target)
    written = [target, *pictures.draw_all(named, IMAGES)]
    for page in PAGES:
        page.write_text(fill(page.read_text(), blocks(named, page)))
    return [*written, *PAGES]


def _draw(results: Results, folder: Path) -> list[Path]:
    """The pictures; none where their packages are missing, as on many machines with a GPU."""
    if (reason := import_failure("bench.pictures")) is not None:
        print(f"\nno pictures: {reason}", file=sys.stderr)
        return []
    from bench import pictures

    return pictures.draw_all(results, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Report; 1 where a comparison found something slower."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON file of pytest-benchmark")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="where pictures go; beside the results")
    parser.add_argument("--publish", action="store_true", help="write results, pictures and tables into the repository")
    parser.add_argument("--against", type=Path, metavar="OLD", help="name what got slower since an earlier run")
    parser.add_argument("--tolerance", type=float, default=comparison.TOLERANCE, help="slower by this share counts")
    options = parser.parse_args(arguments)
    results = load(options.results)
    if options.against is not None:
        text, slower = comparison.describe(load(options.against), results, options.tolerance)
        print(text)
        return 1 if slower else 0
    if options.publish:
        written = publish(results)
    else:
        print(tables.summary(results) + "\n\n" + blocks(results, options.results)[f"tables-{results.device}"])
        written = _draw(results, options.pictures or options.results.parent)
    if written:
        print("\nwrote " + "\n      ".join(map(str, written)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

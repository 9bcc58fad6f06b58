"""``python -m bench.register.publish FILE``: the results and their tables into the repository."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.register.results import load
from bench.register.table import summary, table
from bench.report import fill

ROOT = Path(__file__).parents[2]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmark.md"
RESULTS = Path(__file__).parents[1] / "results"


def blocks(path: Path) -> dict[str, str]:
    """The tables of a file of results, by the markers between which the pages have them."""
    content = load(path)
    return {
        "register": f"{table(content)}\n\n([all registrations](../bench/results/{path.name}))",
        "register-summary": summary(content),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the results under their name, and fill the pages; 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.register.publish", description=__doc__)
    parser.add_argument("results", type=Path, metavar="FILE", help="that python -m bench.register wrote")
    content = load(parser.parse_args(arguments).results)
    machine = content["machine"]
    processor = re.sub(r"[^a-z0-9]+", "-", machine["processor"].lower()).strip("-")
    path = RESULTS / f"{machine['date']}-register-{processor}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    for page in (README, PAGE):
        page.write_text(fill(page.read_text(), blocks(path)))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

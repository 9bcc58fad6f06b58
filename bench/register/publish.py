"""``python -m bench.register.publish FILE``: the results and their table into the repository."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.register.results import load
from bench.register.table import table
from bench.report import fill

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"
RESULTS = Path(__file__).parents[1] / "results"
BLOCK = "register"


def block(path: Path) -> str:
    """The table of a file of results, with a link to it, as :data:`PAGE` has it."""
    return f"{table(load(path))}\n\n([all registrations](../bench/results/{path.name}))"


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the results under their name, and fill the page; 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.register.publish", description=__doc__)
    parser.add_argument("results", type=Path, metavar="FILE", help="that python -m bench.register wrote")
    content = load(parser.parse_args(arguments).results)
    machine = content["machine"]
    processor = re.sub(r"[^a-z0-9]+", "-", machine["processor"].lower()).strip("-")
    path = RESULTS / f"{machine['date']}-register-{processor}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    PAGE.write_text(fill(PAGE.read_text(), {BLOCK: block(path)}))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m usreg.train [--config FILE] [key=value ...]``: train a registration network."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from .command_line import EXIT_STOPPED, run_command

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """\
without --config the packaged default trains on synthetic volumes in a few minutes

examples:
  python -m usreg.train
  python -m usreg.train training.epochs=2 loss.name=lncc device=cpu
  python -m usreg.train --config my.yaml train_dataset.json_file=data.json val_dataset.json_file=data.json
  python -m usreg.train --config my.yaml training.resume=auto
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; 0 when done, 2 after an error that the user can put right, 130 when asked to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m usreg.train",
        description="Train a registration network from a YAML configuration.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; the packaged default when left out")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    options = parser.parse_intermixed_args(arguments)
    return run_command(partial(_run, options.config, options.overrides), "training")


def _run(config: str | None, overrides: Sequence[str], console: Console) -> int:
    from .config import load_config
    from .training import Stopped, train

    try:
        train(load_config(config, overrides))
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # of several processes, all stop and one says so
            console.print(str(stopped), markup=False, soft_wrap=True)
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())

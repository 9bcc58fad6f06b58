"""``python -m usreg.train [--config FILE] [key=value ...]``: train a registration network."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

EXIT_USAGE = 2
EXIT_STOPPED = 130  # what a shell reports for a program ended by Ctrl-C

TRAINING_LIBRARIES = ("accelerate", "einops", "matplotlib", "monai", "nibabel", "omegaconf", "rich", "scipy")

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
    try:
        return _run(options.config, options.overrides)
    except ModuleNotFoundError as error:
        if error.name not in TRAINING_LIBRARIES:
            raise
        print(f'training needs {error.name}; install it with: pip install "usreg[train]"', file=sys.stderr)
        return EXIT_USAGE


def _run(config: str | None, overrides: Sequence[str]) -> int:
    from rich.logging import RichHandler
    from rich.text import Text

    from .config import load_config
    from .errors import UsageError
    from .training import Stopped, train
    from .training.console import make_console

    console = make_console(stderr=True)
    logging.basicConfig(handlers=[RichHandler(console=console, show_time=False, show_path=False)], format="%(message)s")
    try:
        train(load_config(config, overrides))
    except UsageError as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return EXIT_USAGE
    except Stopped as stopped:
        console.print(Text(str(stopped)), soft_wrap=True)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m usreg.register --fixed F --moving M [--out DIR]``: register two images without a network."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

EXIT_USAGE = 2
EXIT_STOPPED = 130  # what a shell reports for a program ended by Ctrl-C

LIBRARIES = ("einops", "monai", "nibabel", "omegaconf", "rich", "scipy")

EXAMPLES = """\
without --config the packaged default registers two images of one kind: affine, then deformable

examples:
  python -m usreg.register --fixed fixed.nii.gz --moving moving.nii.gz --out registered
  python -m usreg.register --fixed F --moving M --out DIR --fixed-label FL --moving-label ML
  python -m usreg.register --fixed F --moving M --out DIR start=centres stages[1].sigma_field=0.7
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Register; 0 when done, 2 after an error that the user can put right, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m usreg.register",
        description="Register a moving image to a fixed one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fixed", metavar="FILE", required=True, help="the image whose grid the results have")
    parser.add_argument("--moving", metavar="FILE", required=True, help="the image that is warped")
    parser.add_argument(
        "--out", metavar="DIR", default="registered", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; the packaged default when left out")
    parser.add_argument("--fixed-label", metavar="FILE", help="integer labels, for Dice before and after")
    parser.add_argument("--moving-label", metavar="FILE", help="the same of the moving image; it is warped too")
    parser.add_argument("--initial", metavar="FILE", help="affine to start from (.mat, .tfm, .txt)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    options = parser.parse_intermixed_args(arguments)
    try:
        return _run(options)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        print(f'registration needs {error.name}; install it with: pip install "usreg[train]"', file=sys.stderr)
        return EXIT_USAGE


def _run(options: argparse.Namespace) -> int:
    from rich.logging import RichHandler
    from rich.text import Text

    from .errors import UsageError
    from .registration.command import run
    from .training.console import make_console

    console = make_console(stderr=True)
    logging.basicConfig(handlers=[RichHandler(console=console, show_time=False, show_path=False)], format="%(message)s")
    try:
        run(options, console)
    except UsageError as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return EXIT_USAGE
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m usreg.register --fixed F --moving M [--out DIR]``: register two images without a network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from . import make_callable
from .command_line import run_command

if TYPE_CHECKING:
    from rich.console import Console

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
    return run_command(partial(_run, options), "registration")


def _run(options: argparse.Namespace, console: Console) -> int:
    from .registration.command import run

    run(options, console)
    return 0


make_callable(__name__, ("usreg.registration.function", "register"))

if __name__ == "__main__":
    sys.exit(main())

"""``python -m usreg.register --fixed F --moving M [--out DIR]``: register two images without a network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from . import make_callable
from .command_line import EXIT_STOPPED, run_command

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """\
without --config the packaged default registers two images of one kind: affine, then deformable

examples:
  python -m usreg.register --demo
  python -m usreg.register --fixed fixed.nii.gz --moving moving.nii.gz --out registered
  python -m usreg.register --fixed F --moving M --out DIR --fixed-label FL --moving-label ML
  python -m usreg.register --fixed F --moving M --out DIR start=centres stages[1].sigma_field=0.7
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Register; 0 when done, 2 after an error that the user can put right, 130 when asked to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m usreg.register",
        description="Register a moving image to a fixed one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fixed", metavar="FILE", help="the image whose grid the results have")
    parser.add_argument("--moving", metavar="FILE", help="the image that is warped")
    parser.add_argument("--demo", action="store_true", help="make a pair with labels and landmarks, and register it")
    parser.add_argument(
        "--out", metavar="DIR", default="registered", help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; the packaged default when left out")
    parser.add_argument("--fixed-label", metavar="FILE", help="whole numbers, for Dice and distances before and after")
    parser.add_argument("--moving-label", metavar="FILE", help="the same of the moving image; it is warped too")
    parser.add_argument("--fixed-landmarks", metavar="FILE", help="points, for the error (TRE) before and after")
    parser.add_argument("--moving-landmarks", metavar="FILE", help="the same places in the moving image; warped too")
    parser.add_argument(
        "--landmarks-space",
        choices=("lps", "ras", "voxel"),
        help="of landmarks whose files do not say it (default: lps)",
    )
    parser.add_argument("--fixed-mask", metavar="FILE", help="above 0 is what counts of the fixed image")
    parser.add_argument("--moving-mask", metavar="FILE", help="the same of the moving image")
    parser.add_argument(
        "--initial",
        metavar="FILE",
        action="append",
        help="transform to start from; given several times, a point meets the first one first",
    )
    parser.add_argument("--checkpoint", metavar="RUN", help="run of a trained network, whose prediction is the start")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="no report.html")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    options = parser.parse_intermixed_args(arguments)
    command = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(partial(_run, options, command), "registration")


def _run(options: argparse.Namespace, command: Sequence[str], console: Console) -> int:
    from .registration.command import run
    from .training.console import make_console

    found = run(options, command, make_console(stderr=True, quiet=True) if options.quiet else console)
    return EXIT_STOPPED if found.stopped else 0


make_callable(__name__, ("usreg.registration.function", "register"))

if __name__ == "__main__":
    sys.exit(main())

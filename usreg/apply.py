"""``python -m usreg.apply --transform T [T ...] --moving M --fixed F --out FILE``: warp images, labels and points."""

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

DETAILS = """\
transforms take points of the fixed image to the moving one. So
  images go from --moving to the grid of --fixed: each voxel shows what lies at the mapped point;
  points go from --fixed to --moving, the other way.
The first transform is the first that a point of the fixed image meets, as on the command line of ANTs: the field,
then the affine. [FILE,1] is the inverse of the transform in FILE. --inverse undoes the whole chain: then --moving is
the image that was fixed in the registration, and --fixed the one that was moving.

examples:
  python -m usreg.apply --transform registered/field.nii.gz registered/affine.mat \\
      --moving moving.nii.gz --fixed fixed.nii.gz --out warped.nii.gz
  python -m usreg.apply --transform 1Warp.nii.gz 0GenericAffine.mat --label \\
      --moving moving_label.nii.gz --fixed fixed.nii.gz --out warped_label.nii.gz
  python -m usreg.apply --transform registered/field.nii.gz registered/affine.mat --inverse \\
      --points moving_points.fcsv --out points_in_fixed.fcsv
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply transforms; 0 when done, 2 after an error that the user can put right, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m usreg.apply",
        description="Warp an image, labels or landmarks through transforms of usreg, ANTs or ITK.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--transform",
        metavar="T",
        nargs="+",
        required=True,
        help="affines (.mat, .tfm, .txt), displacement fields (.nii.gz; .mha, .nrrd) or composites (.h5)",
    )
    parser.add_argument("--moving", metavar="FILE", help="the image to warp; several channels are warped alike")
    parser.add_argument("--fixed", metavar="FILE", help="the image on whose grid the result lies")
    parser.add_argument("--out", metavar="FILE", required=True, help="the result: a volume, or landmarks with --points")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--nearest", action="store_true", help="the nearest voxel, for labels; linear when left out")
    kind.add_argument("--label", action="store_true", help="the label with the largest linear weight: smoother edges")
    parser.add_argument("--inverse", action="store_true", help="undo the transforms")
    parser.add_argument(
        "--outside", metavar="VALUE", type=float, default=0.0, help="value outside the moving image (default: 0)"
    )
    parser.add_argument("--points", metavar="FILE", help="landmarks to map, in place of an image")
    parser.add_argument(
        "--landmarks-space",
        choices=("lps", "ras", "voxel"),
        help="space of landmarks whose file does not state it (default: lps)",
    )
    options = parser.parse_args(arguments)
    return run_command(partial(_run, options), "applying transforms")


def _run(options: argparse.Namespace, console: Console) -> int:
    from .transformation.command import run

    run(options, console)
    return 0


make_callable(__name__, ("usreg.transformation", "apply"))

if __name__ == "__main__":
    sys.exit(main())

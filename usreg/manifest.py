"""``python -m usreg.manifest make | check``: make a manifest from files' names, or check one, case by case."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UsageError

EXIT_WRONG = 1
EXIT_USAGE = 2

LIBRARIES = ("monai", "nibabel", "scipy", "yaml")

EXAMPLES = """\
examples:
  python -m usreg.manifest make --moving 'CT/*_img.nii.gz' --fixed 'US/*_img.nii.gz' --val 0.1 --out manifest.json
  python -m usreg.manifest check manifest.json
"""

_PATTERNS = ("moving", "fixed", "moving_label", "fixed_label", "moving_mask", "fixed_mask")
_POINTS = ("moving_landmarks", "fixed_landmarks")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or check; 0 when done and good, 1 where a case is wrong, 2 after an error that the user can put right."""
    options = _parser().parse_args(arguments)
    try:
        return _make(options) if options.command == "make" else _check(options)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        print(f'manifests need {error.name}; install it with: pip install "usreg[train]"', file=sys.stderr)
        return EXIT_USAGE
    except (UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m usreg.manifest",
        description="Make the manifest of a dataset from files' names, or check one.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser(
        "make",
        help="pair files by the part of their names that varies",
        description="Pair files by the part of their names that the patterns leave open. Put patterns in quotes. A "
        "pattern without a wildcard is one file for all cases, such as an atlas.",
    )
    for key in (*_PATTERNS, *_POINTS):
        make.add_argument(f"--{key.replace('_', '-')}", metavar="PATTERN", required=key in ("moving", "fixed"))
    make.add_argument(
        "--val", type=float, default=0.0, metavar="SHARE", help="share of the cases for validation, 0 to 1"
    )
    make.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="share of the cases for a test")
    make.add_argument("--seed", type=int, default=42, help="of the draw of these cases (default 42)")
    make.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file to write")
    make.add_argument("--force", action="store_true", help="replace a file that exists")
    check = commands.add_parser(
        "check",
        help="read every file of every case, and print a row for each",
        description="Read every file of every case, print a row for each, and what is wrong or doubtful. The exit "
        "status is 1 if a case is wrong.",
    )
    check.add_argument("manifest", type=Path, metavar="FILE", help="JSON, CSV or YAML")
    check.add_argument("--header", choices=("sform", "qform"), help="as the key of the dataset")
    check.add_argument("--nan", choices=("error", "fill", "mask"), default="error", help="as the key of the dataset")
    check.add_argument(
        "--landmarks-space", choices=("lps", "ras", "voxel"), help="of landmarks that do not state it (default lps)"
    )
    check.add_argument(
        "--image-channels", type=int, default=1, metavar="N", help="of an image, as the key of the dataset (default 1)"
    )
    return parser


def _make(options: argparse.Namespace) -> int:
    from .manifests import make_manifest

    patterns = {key: value for key in (*_PATTERNS, *_POINTS) if (value := getattr(options, key)) is not None}
    made = make_manifest(
        patterns, options.out, val=options.val, test=options.test, seed=options.seed, overwrite=options.force
    )
    counts = ", ".join(f"{len(cases)} in '{split}'" for split, cases in made.lists.items())
    print(f"{options.out}: {sum(map(len, made.lists.values()))} case(s): {counts}")
    for key, files in made.without_partner.items():
        print(f"{len(files)} file(s) of {key} without a partner:")
        print("\n".join(f"  {file}" for file in files))
    print("\n".join(made.notes), end="\n" if made.notes else "")
    return 0


def _progress(done: int, total: int) -> None:
    """A line that overwrites itself, where somebody watches."""
    if sys.stderr.isatty():
        end = "" if done + 1 < total else "\r"
        print(f"\rreading case {done + 1} of {total} ", end=end, file=sys.stderr, flush=True)


def _check(options: argparse.Namespace) -> int:
    from .datasets.reading import Reading
    from .manifests import as_table, check_manifest

    reading = Reading(options.header, options.nan)
    reports = check_manifest(
        options.manifest.expanduser(), reading, options.landmarks_space, _progress, options.image_channels
    )
    print(as_table(reports))
    return EXIT_WRONG if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())

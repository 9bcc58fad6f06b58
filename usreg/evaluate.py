"""``python -m usreg.evaluate --checkpoint RUN [--config FILE] [key=value ...]``: measure trained networks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import make_callable
from .command_line import run_command

if TYPE_CHECKING:
    from rich.console import Console

DETAILS = """\
the config inside the checkpoint says which cases there are and how they are prepared; key=value replaces single
settings. A run's folder means its best checkpoint, or last.pt where there is none.

examples:
  python -m usreg.evaluate --checkpoint runs/mine/20260101-120000
  python -m usreg.evaluate --checkpoint runs/a --checkpoint runs/b --register --out comparison
  python -m usreg.evaluate --checkpoint runs/a --list val --save fields pictures
  python -m usreg.evaluate --checkpoint runs/a val_dataset.json_file=other.json device=cpu
  torchrun --nproc-per-node 4 -m usreg.evaluate --checkpoint runs/a
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when done, 2 after an error that the user can put right, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m usreg.evaluate",
        description="Measure trained networks on a list of cases, and compare them with each other.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        metavar="RUN",
        action="append",
        default=[],
        help="a run's folder or a checkpoint; may be repeated",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file in place of the config in the checkpoint")
    parser.add_argument(
        "--register",
        metavar="CONFIG",
        nargs="?",
        const=True,
        default=False,
        help="compare with registration without a network, by its packaged default or a YAML file",
    )
    parser.add_argument(
        "--list", dest="split", choices=("test", "val", "train"), help="which cases (default: test, or val without it)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: evaluation in the first run's)")
    parser.add_argument(
        "--save",
        nargs="+",
        action="extend",
        default=[],
        metavar="WHAT",
        help="also write of every case: warped, labels, fields, pictures",
    )
    parser.add_argument("--worst", metavar="N", type=int, default=5, help="worst cases to show (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the config")
    options = parser.parse_intermixed_args(arguments)
    _give_back_overrides(options)
    return run_command(partial(_run, options), "evaluation")


def _give_back_overrides(options: argparse.Namespace) -> None:
    """Settings that follow --save or --register, which take what comes after them."""
    taken = [word for word in options.save if "=" in word]
    options.save = [word for word in options.save if word not in taken]
    if isinstance(options.register, str) and "=" in options.register and not Path(options.register).exists():
        taken.append(options.register)
        options.register = True
    options.overrides = [*taken, *options.overrides]


def _run(options: argparse.Namespace, console: Console) -> int:
    from .evaluation import evaluate
    from .training.console import make_console

    evaluate(
        options.checkpoint,
        config=options.config,
        overrides=options.overrides,
        register=options.register,
        split=options.split,
        out=options.out or _default_folder(options.checkpoint),
        save=options.save,
        worst=options.worst,
        console=make_console(),
    )
    return 0


def _default_folder(checkpoints: Sequence[str]) -> Path:
    if not checkpoints:
        return Path("evaluation")
    first = Path(checkpoints[0])
    return (first.parent if first.is_file() else first) / "evaluation"


make_callable(__name__, ("usreg.evaluation", "evaluate"))

if __name__ == "__main__":
    sys.exit(main())

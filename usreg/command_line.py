"""What the commands share: messages about what the user can put right, and exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EXIT_USAGE = 2
EXIT_STOPPED = 130  # what a shell reports for a program ended by Ctrl-C

LIBRARIES = ("accelerate", "einops", "matplotlib", "monai", "nibabel", "omegaconf", "rich", "scipy")


def run_command(action: Callable[[Console], int], purpose: str) -> int:
    """Run a command; log and messages go to standard error.

    Args:
        action: does the work and returns the exit code.
        purpose: what a missing library would be for.

    Returns:
        What the action does; 2 after an error that the user can put right, 130 when interrupted.
    """
    try:
        return _run(action)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        print(f'{purpose} needs {library}; install it with: pip install "usreg[train]"', file=sys.stderr)
        return EXIT_USAGE


def _run(action: Callable[[Console], int]) -> int:
    from rich.logging import RichHandler
    from rich.text import Text

    from .errors import UsageError
    from .training.console import make_console

    console = make_console(stderr=True)
    logging.basicConfig(handlers=[RichHandler(console=console, show_time=False, show_path=False)], format="%(message)s")
    try:
        return action(console)
    except UsageError as error:
        console.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return EXIT_USAGE
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return EXIT_STOPPED
    finally:
        _leave_the_other_processes()


def _leave_the_other_processes() -> None:
    """Close what joins several processes on CPUs: gloo's threads may abort a program that ends while they run."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()

"""The run's folder: its name, its creation, and what is in it."""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from pathlib import Path

from ..errors import UsageError
from .checkpoints import LAST, Resume

RUNS = Path("runs")
CONFIG = "config.yaml"
METRICS = "metrics.csv"
CURVES = "curves.png"
PICTURES = "pictures"
TENSORBOARD = "tensorboard"
SAVE_DIR = "training.save_dir=FOLDER"

CONTENTS = {
    LAST: "the weights and everything else that training.resume needs",
    CONFIG: "every setting of this run, for --config",
    METRICS: "loss and metrics of every epoch",
    CURVES: "the same as curves",
    PICTURES: "validation cases before and after registration",
    TENSORBOARD: "event files for tensorboard --logdir",
}
"""What a finished run's folder may hold beside the best checkpoints, and what each is for."""


def project_folder(project: str | None) -> Path:
    """Where the runs of a project are; characters that no folder should have become underscores."""
    return RUNS / (re.sub(r"[^\w.-]+", "_", project or "").strip("._") or "default")


def continues_in_place(resume: Resume | None, save_dir: str | None) -> bool:
    """Whether a resumed run writes on in its old folder: only from its last.pt, unless ``save_dir`` says elsewhere.

    From any other checkpoint the run would overwrite the later ones of that folder.
    """
    if resume is None or resume.path.name != LAST:
        return False
    return save_dir is None or Path(save_dir).resolve() == resume.path.parent.resolve()


def make_run_folder(save_dir: str | None, project: str | None, option: str = SAVE_DIR, claim: str = CONFIG) -> Path:
    """Take a new and writable folder: ``save_dir``, or runs/<project>/<time>; a taken name gets a number.

    A folder that exists and is empty is taken too. It is taken by creating its first file, which of several programs
    that try at the same time succeeds for one.

    Args:
        save_dir: the folder.
        project: of the run, where there is no ``save_dir``.
        option: how another folder is given, for the error.
        claim: name of the first file, which is left empty.

    Raises:
        UsageError: the folder cannot be created or written to.
    """
    wanted = Path(save_dir) if save_dir is not None else project_folder(project) / time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()) and _claimed(folder / claim):
                return folder
        except FileExistsError:
            continue  # a file has the name
        except OSError as error:
            raise _unwritable(folder, error, option) from error
    raise AssertionError("unreachable")


def _claimed(file: Path) -> bool:
    """Whether this call created the first file of a folder."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    if list(file.parent.iterdir()) == [file]:
        return True
    file.unlink()  # something else came first
    return False


def check_writable(folder: Path, option: str = SAVE_DIR) -> None:
    """Raise UsageError where no file can be written to an existing folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error, option) from error


def _unwritable(folder: Path, error: OSError, option: str) -> UsageError:
    return UsageError(
        f"cannot write to the run's folder {folder}: {error.strerror or error}. Choose another one with {option}"
    )

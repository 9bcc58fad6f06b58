"""Training: :func:`train` runs a config from its check to the final pictures.

``setup`` builds and checks a run, ``trainer`` holds the loop and the training step, ``evaluation`` validates,
``checkpoints`` and ``progress`` make a run resumable, ``nonfinite`` skips batches with NaN or Inf.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..errors import UsageError
from ..losses.call import LossCall
from .checkpoints import LAST, load_checkpoint
from .console import Reporter, make_console
from .evaluation import Evaluation
from .final_report import finish
from .interrupts import Stopped
from .setup import Run, prepare_run
from .trainer import Trainer

__all__ = ["Evaluation", "LossCall", "Result", "Run", "Stopped", "Trainer", "load_checkpoint", "prepare_run", "train"]


@dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Attributes:
        folder: the run's folder.
        evaluation: the last validation; None for a run that never validates.
        skipped: steps skipped for a NaN or Inf.
    """

    folder: Path
    evaluation: Evaluation | None
    skipped: int


def train(config: Config, reporter: Reporter | None = None) -> Result:
    """Train as a config says.

    Args:
        config: from :func:`usreg.config.load_config`.
        reporter: shows the course of the run; the terminal by default.

    Raises:
        UsageError: something that the user can put right, found before training where that is possible.
        Stopped: on Ctrl-C or a termination request, after last.pt was saved; the text says how to go on.
    """
    run = prepare_run(config)
    main = run.accelerator.is_main_process
    reporter = reporter if reporter is not None and main else Reporter(make_console(quiet=not main))
    _introduce(run, reporter)
    trainer = Trainer(run, reporter)
    try:
        trainer.fit()
        if main:
            finish(trainer, reporter)
    except Stopped:
        raise Stopped(_how_to_go_on(run)) from None
    except OSError as error:
        if not _is_refused(error):
            raise
        file = f" ({error.filename})" if error.filename else ""
        raise UsageError(
            f"cannot write to the run's folder {run.folder}{file}: {error.strerror or error}; {_what_is_saved(run)}"
        ) from error
    except Exception:
        if main and (run.folder / LAST).is_file():
            reporter.warn(_what_is_saved(run))
        raise
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return Result(run.folder, trainer.last_evaluation, sum(run.progress.run_skips.values()))


REFUSALS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO")} - {None}
"""How a system refuses to write: no space, a quota, a read-only file system, no permission, a broken disk."""


def _place(run: Run) -> str:
    progress = run.progress
    inside = f" after {progress.samples} of {progress.size} samples" if progress.samples else ""
    waiting = ", whose validation comes first" if progress.pending else ""
    return f": epoch {progress.epoch + 1}{inside}, step {progress.step}{waiting}"


def _is_refused(error: OSError) -> bool:
    return error.errno in REFUSALS


def _introduce(run: Run, reporter: Reporter) -> None:
    config, accelerator = run.config, run.accelerator
    weights = sum(p.numel() for p in run.network.parameters())
    processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    precision = "" if accelerator.mixed_precision == "no" else f", {accelerator.mixed_precision}"
    validation = f"{run.val.num_samples} validation samples" if run.val is not None else "no validation"
    reporter.note(
        f"{config.model['name']} ({weights:,} weights) with loss {config.loss['name']} on {accelerator.device}"
        f"{precision}{processes}; {run.train.num_samples} training samples, {validation}"
    )
    if own := sum(p.numel() for p in run.loss.parameters() if p.requires_grad):
        reporter.note(f"the loss has {own:,} weights of its own, which are trained and saved too")
    if run.resumed_from is not None:
        reporter.note(f"resumed from {run.resumed_from}{_place(run)}")
    elif config.training.resume is not None:
        reporter.note("training.resume is auto and there is no checkpoint yet: training from the beginning")
    reporter.note(f"writing to {run.folder}")


def _how_to_go_on(run: Run) -> str:
    if not (run.folder / LAST).is_file():
        return "stopped before the first step; there is nothing to resume"
    return f"stopped after step {run.progress.step}; {_what_is_saved(run)}"


def _what_is_saved(run: Run) -> str:
    checkpoint = run.folder / LAST
    if not checkpoint.is_file():
        return "no checkpoint was written yet"
    return f"the state is in {checkpoint}. To go on, give the same command with training.resume={checkpoint}"

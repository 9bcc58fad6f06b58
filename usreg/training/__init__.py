"""Training: :func:`train` runs a config from its check to the final pictures.

``setup`` builds and checks a run, ``trainer`` holds the loop and the training step, ``evaluation`` validates,
``checkpoints`` and ``progress`` make a run resumable, ``guard`` skips batches with NaN or Inf, ``loss_call`` passes a
loss what its signature asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from .checkpoints import LAST, load_checkpoint
from .console import Reporter, make_console
from .evaluation import Evaluation
from .final_report import finish
from .loss_call import LossCall
from .setup import Run, prepare_run
from .trainer import Stopped, Trainer

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
    except Stopped:
        raise Stopped(_how_to_go_on(run)) from None
    if main:
        finish(trainer, reporter)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return Result(run.folder, trainer.last_evaluation, sum(run.progress.run_skips.values()))


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
    if run.resumed_from is not None:
        reporter.note(f"resumed from {run.resumed_from}: epoch {run.progress.epoch + 1}, step {run.progress.step}")
    elif config.training.resume is not None:
        reporter.note("training.resume is auto and there is no checkpoint yet: training from the beginning")
    reporter.note(f"writing to {run.folder}")


def _how_to_go_on(run: Run) -> str:
    checkpoint = run.folder / LAST
    if not checkpoint.is_file():
        return "stopped before the first step; there is nothing to resume"
    return (
        f"stopped after step {run.progress.step}; the state is in {checkpoint}. "
        f"To go on, give the same command with training.resume={checkpoint}"
    )

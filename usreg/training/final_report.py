"""The end of a run: pictures of validation cases, curves, and the final panel."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import send_to_device

from ..datasets import collate
from ..metrics import model_inputs
from ..viz import save_curves, save_registration_figure
from .console import Reporter
from .nonfinite import describe_skips
from .run_folder import CURVES, METRICS, PICTURES
from .setup import Run
from .trainer import Trainer

PICTURED_CASES = 3
"""Validation cases that get a picture."""

PICTURED = ("moving", "fixed", "warped", "ddf", "moving_label", "fixed_label", "warped_label", "spacing", "affine")
"""What a picture shows, where the dataset has it."""


def finish(trainer: Trainer, reporter: Reporter) -> None:
    """Write the pictures and curves, close the trackers, and say what the run's folder holds; main process only."""
    run, progress = trainer.run, trainer.progress
    save_pictures(run)
    save_curves(run.folder / CURVES, run.folder / METRICS)
    for tracker in run.trackers:
        tracker.close()
    notes = [f"epochs: {progress.epoch}, steps: {progress.step}, {describe_skips(progress.run_skips)}"]
    reporter.finished(run.folder, time.perf_counter() - trainer.started, notes, trainer.last_evaluation)


@torch.no_grad()
def save_pictures(run: Run) -> list[Path]:
    """Pictures of the first validation cases under the final weights, in the run's folder; the files.

    Without validation, of the first training cases.
    """
    run.evaluated.eval()
    folder = run.folder / PICTURES
    folder.mkdir(exist_ok=True)
    batches, kind = (run.val, "validation") if run.val is not None else (run.train, "training")
    dataset, files = batches.dataset, []
    for index in range(min(PICTURED_CASES, len(cast(Sized, dataset)))):
        batch = send_to_device(collate([dataset[index]]), run.accelerator.device)
        inputs = model_inputs(batch, *run.evaluated(batch["moving"], batch["fixed"]))
        case = str(batch.get("case", [index])[0])
        files.append(folder / f"{file_name(index, case)}.png")
        save_picture(files[-1], inputs, f"{kind} case {case}")
    return files


def file_name(index: int, case: str) -> str:
    """A name for the files of a case, without characters that no file should have."""
    return f"{index}_{re.sub(r'[^A-Za-z0-9.-]+', '_', case).strip('_')}"


def save_picture(path: Path, inputs: Mapping[str, Any], title: str) -> None:
    """The picture of the first sample of a batch's :func:`usreg.metrics.model_inputs`."""
    shown = {key: inputs[key][0].cpu() for key in PICTURED if isinstance(inputs.get(key), torch.Tensor)}
    if (channels := len(shown["fixed"])) > 1:
        title = f"{title}, the first of {channels} channels"
    save_registration_figure(path, **shown, title=title)

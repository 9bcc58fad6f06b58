"""Checkpoints: what they hold, how they are written so that none is ever half a file, and how they are read safely."""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from ..errors import ConfigError, DataError

FORMAT = "usreg.checkpoint"
FORMAT_VERSION = 2
"""Raised when the meaning of an entry changes; a reader refuses versions that it does not know."""

LAST = "last.pt"
BEST_LOSS = "best_val_loss.pt"
EVERY = "epoch_{:04d}.pt"
"""The checkpoint of a complete epoch, where the newest of them are kept."""

IN_A_FOLDER = (BEST_LOSS, LAST)
"""The checkpoints of a run's folder, the first one found."""

ENTRIES = ("model", "loss", "optimizer", "scheduler", "ema", "scaler", "progress", "random", "config")
"""The entries of a checkpoint beside its format: plain containers and tensors, so that loading runs no code."""

NAMED_IN_ERRORS = 4
"""Differing keys of each kind that an error spells out; it counts the others."""


def save_checkpoint(path: Path, entries: Mapping[str, Any]) -> None:
    """Write a checkpoint so that ``path`` holds either the old file or the whole new one, also after a crash.

    Args:
        path: the file; its folder exists.
        entries: a value for each of :data:`ENTRIES`.

    Raises:
        OSError: the file cannot be written: a full disk, a folder that is read-only.
    """
    content = {"format": FORMAT, "version": FORMAT_VERSION, **{key: entries[key] for key in ENTRIES}}
    whole = io.BytesIO()  # written by ourselves: torch would not say why the system refuses a file
    torch.save(content, whole)
    temporary = path.with_name(f".{path.name}.new")  # in the same folder: a rename within a file system is atomic
    try:
        with temporary.open("wb") as file:
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def signature(path: Path) -> tuple[int, ...] | None:
    """What tells whether a file is still the one that was written; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _chosen(run: Path) -> list[str]:
    """The best checkpoint by the first metric that the run's config selects by."""
    try:
        best = OmegaConf.select(OmegaConf.load(run / "config.yaml"), "training.best")
    except (OSError, YAMLError, OmegaConfBaseException):
        return []
    return [f"best_{str(best[0]).partition(':')[0]}.pt"] if best else []


def find_checkpoint(run: Path) -> Path:
    """The checkpoint of a run: the file itself, or of a folder the best one by the first of its ``training.best``.

    Where there is none, the one with the lowest validation loss, else the last.

    Raises:
        DataError: there is none.
    """
    if not run.exists():
        raise DataError(f"there is no checkpoint or run's folder {run}")
    if run.is_file():
        return run
    found = next((run / name for name in (*_chosen(run), *IN_A_FOLDER) if (run / name).is_file()), None)
    if found is None:
        raise DataError(f"{run} holds no checkpoint: neither {' nor '.join(IN_A_FOLDER)} is there")
    return found


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without running any code that it may hold (``weights_only=True``).

    Raises:
        DataError: there is no such file, it is not a checkpoint of usreg or is damaged, or its version is unknown.
    """
    if not path.is_file():
        raise DataError(f"no checkpoint {path}; training.resume takes a checkpoint, a run's folder, or auto")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as a checkpoint, it is damaged or of another program: {reason}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is a file of torch but no checkpoint of usreg (it lacks format: {FORMAT})")
    if content.get("version") == 1:
        content = _of_version_1(content)
    if content.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has checkpoint version {content.get('version')}, this usreg reads version {FORMAT_VERSION}: "
            "use the usreg that wrote it"
        )
    missing = [key for key in ENTRIES if key not in content]
    if missing:
        raise DataError(f"{path} is no whole checkpoint: it lacks {', '.join(missing)}")
    return content


def _of_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of version 1, which counted batches and knew no state of a loss, in the present form."""
    progress, training = dict(content.get("progress", {})), content.get("config", {}).get("training", {})
    samples = progress.pop("batch", 0) * training.get("batch_size", 1) * len(content.get("random", ()))
    progress |= {"samples": samples, "size": 0, "seed": training.get("seed", 0)}
    best = {name: progress.pop(f"best_{name}", math.inf) for name in ("val_loss", "epe")}
    progress["best"] = {name: value for name, value in best.items() if value < math.inf}
    since: dict[str, Any] = {"loss": {}, "scheduler": None, "ema": None}
    return {**since, **content, "version": FORMAT_VERSION, "progress": progress}


SAME_KEYS = "give the same keys, or train without training.resume"
"""What to do about a checkpoint of another model, in training."""


def load_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], path: Path, way_out: str = SAME_KEYS, *, averaged: bool = True
) -> None:
    """Copy a checkpoint's weights into a model of the same architecture.

    Args:
        model: takes the weights.
        checkpoint: what :func:`load_checkpoint` read.
        path: its file, for the error.
        way_out: for the error, what to do about it.
        averaged: take the moving average of the weights where the checkpoint has one.

    Raises:
        ConfigError: the checkpoint is another model's; names the keys and shapes that differ, and both models.
    """
    average = checkpoint.get("ema") if averaged else None
    theirs, ours = average["model"] if average else checkpoint["model"], model.state_dict()
    differences = _differences(theirs, ours, "the model")
    if differences:
        raise ConfigError(
            f"{path} is a checkpoint of another model: {'; '.join(differences)}. It was trained with "
            f"model: {checkpoint['config'].get('model')}; {way_out}"
        )
    model.load_state_dict(theirs)


def load_loss(loss: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Copy what a checkpoint's loss kept, its own weights and buffers, into a loss that has the same.

    A loss that keeps nothing may be replaced by another one that keeps nothing.

    Raises:
        ConfigError: the checkpoint is of a loss that keeps something else; names it.
    """
    theirs, ours = checkpoint["loss"], loss.state_dict()
    if differing := _differences(theirs, ours, "the loss"):
        raise ConfigError(
            f"{path} is of another loss, with weights or buffers of its own: {'; '.join(differing)}. It was trained "
            f"with loss: {checkpoint['config'].get('loss')}; {SAME_KEYS}"
        )
    loss.load_state_dict(theirs)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], owner: str) -> list[str]:
    """What keeps a checkpoint's weights from being those of a module, in words."""
    shapes = [
        f"{k} {tuple(theirs[k].shape)} instead of {tuple(ours[k].shape)}"
        for k in ours
        if k in theirs and theirs[k].shape != ours[k].shape
    ]
    return [
        *_listed("missing in the checkpoint", [k for k in ours if k not in theirs]),
        *_listed(f"unknown to {owner}", [k for k in theirs if k not in ours]),
        *_listed("of another shape", shapes),
    ]


def _listed(kind: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - NAMED_IN_ERRORS} more" if len(keys) > NAMED_IN_ERRORS else ""
    return [f"{kind}: {', '.join(keys[:NAMED_IN_ERRORS])}{more}"]


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Restore an optimizer's moments; learning rate and weight decay stay those of the present config.

    Raises:
        ConfigError: the state does not belong to an optimizer of these weights.
    """
    kept: list[dict[str, Any]] = [
        {key: group[key] for key in ("lr", "weight_decay") if key in group} for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} holds the state of another optimizer: {error}") from error
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from.

    Attributes:
        path: its file.
        content: what :func:`load_checkpoint` read.
    """

    path: Path
    content: dict[str, Any]


def find_resume(resume: str | None, save_dir: str | None, project_folder: Path) -> Resume | None:
    """The checkpoint that ``training.resume`` means, read; None without one.

    Args:
        resume: None; a checkpoint; a run's folder, meaning its last.pt; or ``auto``, the newest last.pt of ``save_dir``
            (its numbered siblings and subfolders included) or, without one, of the project's runs.
        save_dir: the config's ``training.save_dir``.
        project_folder: where the project's runs are.

    Raises:
        DataError: the path holds no readable checkpoint. ``auto`` without any checkpoint is no error.
    """
    if resume is None:
        return None
    if resume != "auto":
        path = Path(resume)
        path = path / LAST if path.is_dir() else path
        return Resume(path, load_checkpoint(path))
    if save_dir is not None:
        folder = Path(save_dir)
        candidates = [folder / LAST, *folder.glob(f"*/{LAST}"), *folder.parent.glob(f"{folder.name}-[0-9]*/{LAST}")]
    else:
        candidates = list(project_folder.glob(f"*/{LAST}"))
    existing = [path for path in candidates if path.is_file()]
    if not existing:
        return None
    newest = max(existing, key=lambda path: path.stat().st_mtime_ns)
    return Resume(newest, load_checkpoint(newest))

"""From a config to a run that is ready to train; what can be wrong is found here, before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import GradScalerKwargs, broadcast, broadcast_object_list, set_seed
from torch import nn
from torch.utils.data import Dataset

from ..config import Config, save_config
from ..datasets import build_dataset, collate
from ..errors import ConfigError, DataError, UsageError
from ..io.manifest import NoCasesError
from ..losses import build_loss
from ..losses.call import LossCall
from .batches import Batches, EpochBatches
from .checkpoints import Resume, find_resume, load_loss, load_optimizer, load_weights
from .metrics_file import MetricsFile
from .progress import TrainingProgress
from .randomness import restore_random_state
from .run_folder import CONFIG, METRICS, check_writable, continues_in_place, make_run_folder, project_folder
from .trackers import Tracker, check_trackers, make_trackers
from .trial import build_for_size, try_out

logger = logging.getLogger(__name__)

OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}

MIXED_PRECISION = {"float16": "fp16", "bfloat16": "bf16"}
"""Accelerate's names of ``training.amp_dtype``."""


@dataclass
class Run:
    """All that the loop works with.

    Attributes:
        config: the checked config; ``plain_config`` is the same as plain containers.
        model: the network as prepared for training, possibly inside a parallel wrapper; ``network`` is itself.
        loss: the loss module, which may have weights and buffers of its own; ``loss_call`` calls it.
        trained: the weights that the optimizer changes: the network's, then the loss's.
        folder: the run's folder, which exists.
        val: the validation batches; None for a run without validation.
        metrics: the table behind metrics.csv; trackers and metrics file are used only by the main process.
        resumed_from: the checkpoint that the run goes on from.
    """

    config: Config
    plain_config: dict[str, Any]
    accelerator: Accelerator
    model: nn.Module
    network: nn.Module
    loss: nn.Module
    loss_call: LossCall
    trained: list[nn.Parameter]
    optimizer: Any
    train: Batches
    val: Batches | None
    progress: TrainingProgress
    folder: Path
    metrics: MetricsFile
    trackers: list[Tracker]
    resumed_from: Path | None


def prepare_run(config: Config) -> Run:
    """Build and check every part of a run, then create its folder.

    Raises:
        UsageError: (or its subclasses ConfigError, DataError) what the user can put right; nothing was written.
    """
    training = config.training
    check_trackers(config)
    accelerator = make_accelerator(config)
    train_set, val_set = _dataset(config, "train"), _validation_set(config)
    set_seed(training.seed)
    network = build_for_size(config.model, tuple(config.image_size), accelerator.device)
    loss = build_loss(config.loss).to(accelerator.device)
    loss_call = LossCall(loss)
    resume = find_resume(training.resume, training.save_dir, project_folder(config.project))

    if not any(p.requires_grad for p in network.parameters()):
        raise ConfigError(f"model '{config.model['name']}' has no parameters to train")
    trained = [p for module in (network, loss) for p in module.parameters() if p.requires_grad]
    settings = config.optimizer
    optimizer = OPTIMIZERS[settings.name](trained, lr=settings.lr, weight_decay=settings.weight_decay)
    model, optimizer = accelerator.prepare(network, optimizer)
    if accelerator.num_processes > 1:
        broadcast([*loss.parameters(), *loss.buffers()])
    datasets = [train_set, val_set] if val_set is not None else [train_set]
    try_out(config.model, network, loss_call, datasets, training.batch_size, accelerator.device)

    # Each process has its own stream from here on: their dropout masks must differ.
    set_seed(training.seed, device_specific=True)
    parts = network, loss, optimizer
    progress = _restore(resume, *parts, accelerator) if resume is not None else TrainingProgress()
    _check_work_left(config, progress, resume)
    progress.go_on_with(len(cast(Sized, train_set)), training.seed, resume.path if resume is not None else "")
    folder, metrics = _folder(config, accelerator, resume, progress)
    plain_config = asdict(config)
    return Run(
        config=config,
        plain_config=plain_config,
        accelerator=accelerator,
        model=model,
        network=network,
        loss=loss,
        loss_call=loss_call,
        trained=trained,
        optimizer=optimizer,
        train=_batches(config, accelerator, train_set, shuffle=True),
        val=_batches(config, accelerator, val_set, shuffle=False) if val_set is not None else None,
        progress=progress,
        folder=folder,
        metrics=metrics,
        trackers=make_trackers(folder, config, plain_config) if accelerator.is_main_process else [],
        resumed_from=resume.path if resume is not None else None,
    )


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate's handle on the device and the processes; mixed precision where it is asked for and on CUDA."""
    training = config.training
    device = torch.device(config.device) if config.device is not None else None
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Accelerate takes the current device of a single process
    on_cuda = torch.cuda.is_available() and (device is None or device.type == "cuda")
    handlers = []
    if training.amp_init_scale is not None:
        handlers.append(GradScalerKwargs(init_scale=training.amp_init_scale))
    try:
        return Accelerator(
            cpu=device is not None and device.type == "cpu",
            mixed_precision=MIXED_PRECISION[training.amp_dtype] if training.amp and on_cuda else "no",
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise ConfigError(f"device {config.device}, training.amp_dtype {training.amp_dtype}: {error}") from error


def _dataset(config: Config, split: str) -> Dataset[Any]:
    section = getattr(config, f"{split}_dataset")
    dataset = build_dataset(section, split=split, image_size=tuple(config.image_size))
    if not len(cast(Sized, dataset)):
        raise DataError(f"{split}_dataset '{section['name']}' is empty; it needs at least one sample")
    return dataset


def _validation_set(config: Config) -> Dataset[Any] | None:
    """The validation set; None where it is not asked for, or where the manifest has no cases for it."""
    if config.training.val_every == 0:
        return None
    try:
        return _dataset(config, "val")
    except NoCasesError as error:
        logger.warning("%s Training without validation; training.val_every=0 says so without this warning", error)
        return None


def _batches(config: Config, accelerator: Accelerator, dataset: Dataset[Any], shuffle: bool) -> Batches:
    training = config.training
    sampler = EpochBatches(
        len(cast(Sized, dataset)),
        training.batch_size,
        training.seed if shuffle else None,
        accelerator.process_index,
        accelerator.num_processes,
    )
    return Batches(dataset, sampler, collate, training.num_workers, pin_memory=accelerator.device.type == "cuda")


def _restore(
    resume: Resume, network: nn.Module, loss: nn.Module, optimizer: Any, accelerator: Accelerator
) -> TrainingProgress:
    """Put a checkpoint's state into the parts of a run; its progress."""
    load_weights(network, resume.content, resume.path)
    load_loss(loss, resume.content, resume.path)
    load_optimizer(optimizer.optimizer, resume.content, resume.path)
    if accelerator.scaler is not None and resume.content["scaler"] is not None:
        accelerator.scaler.load_state_dict(resume.content["scaler"])
    states = resume.content["random"]
    if accelerator.process_index < len(states):  # a process that the old run did not have keeps its fresh stream
        restore_random_state(states[accelerator.process_index])
    return TrainingProgress.from_plain(resume.content["progress"])


def _check_work_left(config: Config, progress: TrainingProgress, resume: Resume | None) -> None:
    training = config.training
    for key, done, wanted in (
        ("epochs", progress.epoch, training.epochs),
        ("max_steps", progress.step, training.max_steps),
    ):
        if resume is not None and wanted is not None and done >= wanted and not progress.pending:
            raise UsageError(
                f"nothing is left to train: {resume.path} has {done} {key.replace('max_', '')} behind it, and "
                f"training.{key} is {wanted}. Give a larger training.{key}, or start a new run without training.resume"
            )


def _folder(
    config: Config, accelerator: Accelerator, resume: Resume | None, progress: TrainingProgress
) -> tuple[Path, MetricsFile]:
    """The run's folder, with config.yaml in it; created by the main process, known to all."""
    outcome: list[Any] = [None]
    metrics: MetricsFile | None = None
    if accelerator.is_main_process:
        try:
            outcome[0], metrics = _create_folder(config, resume, progress)
        except UsageError as error:
            outcome[0] = error
    outcome = broadcast_object_list(outcome)
    if isinstance(outcome[0], UsageError):
        raise outcome[0]
    return outcome[0], metrics or MetricsFile(outcome[0] / METRICS)


def _create_folder(config: Config, resume: Resume | None, progress: TrainingProgress) -> tuple[Path, MetricsFile]:
    training = config.training
    history = MetricsFile(Path(METRICS))
    if resume is not None:
        history.take_over(resume.path.parent / METRICS, before_epoch=progress.epoch)
    if resume is not None and continues_in_place(resume, training.save_dir):
        folder = resume.path.parent
        check_writable(folder)
    else:
        folder = make_run_folder(training.save_dir, config.project)
        progress.forget_best()  # the best checkpoints of a new folder are the best of what it holds
    history.path = folder / METRICS
    save_config(config, folder / CONFIG)
    return folder, history

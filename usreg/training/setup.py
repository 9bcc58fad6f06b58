"""From a config to a run that is ready to train; what can be wrong is found here, before anything is written."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import GradScalerKwargs, broadcast, broadcast_object_list, set_seed
from torch import nn
from torch.utils.data import Dataset

from ..config import AugmentationConfig, Config, save_config
from ..datasets import build_dataset, collate
from ..datasets.augmentation import Augmented
from ..errors import ConfigError, DataError, UsageError
from ..io.manifest import NoCasesError
from ..losses import build_loss
from ..losses.call import LossCall
from ..models.utils import data_keys
from .averaging import MovingAverage
from .batch_statistics import share_batch_statistics
from .batches import Batches, EpochBatches
from .checkpoints import (
    Resume,
    find_checkpoint,
    find_resume,
    load_checkpoint,
    load_loss,
    load_optimizer,
    load_weights,
)
from .metrics_file import MetricsFile
from .optimizers import build_optimizer
from .progress import TrainingProgress
from .randomness import restore_random_state
from .run_folder import CONFIG, METRICS, check_writable, continues_in_place, make_run_folder, project_folder
from .schedules import SCHEDULER_REGISTRY, Length, Schedule
from .selection import DEFAULT_BEST, Selection
from .trackers import Tracker, check_trackers, make_trackers
from .trial import build_for_size, image_channels_of, try_out

logger = logging.getLogger(__name__)

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
        schedule: of the learning rate.
        average: the moving average of the weights; None for none.
        selections: what the best checkpoints are chosen by.
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
    schedule: Schedule
    average: MovingAverage | None
    selections: list[Selection]
    train: Batches
    val: Batches | None
    progress: TrainingProgress
    folder: Path
    metrics: MetricsFile
    trackers: list[Tracker]
    resumed_from: Path | None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated: the average of the weights where there is one."""
        return self.network if self.average is None else self.average.network

    def steps_left(self, samples: int) -> int:
        """Steps behind the first ``samples`` of an epoch."""
        return -(-self.train.sampler.left(samples) // self.config.training.accumulate)


def prepare_run(config: Config) -> Run:
    """Build and check every part of a run, then create its folder.

    Raises:
        UsageError: (or its subclasses ConfigError, DataError) what the user can put right; nothing was written.
    """
    training = config.training
    check_trackers(config)
    accelerator = make_accelerator(config)
    train_set, val_set = _training_set(config), _validation_set(config)
    plain_set = train_set.dataset if isinstance(train_set, Augmented) else train_set
    channels = image_channels_of(plain_set, config.image_size)
    resume = find_resume(training.resume, training.save_dir, project_folder(config.project))
    config = _fitted_to_data(config, channels, resume)
    set_seed(training.seed)
    network = build_for_size(config.model, tuple(config.image_size), accelerator.device, channels)
    loss = build_loss(config.loss).to(accelerator.device)
    loss_call = LossCall(loss)
    if resume is None and training.init_from is not None:
        begin_with(network, Path(training.init_from))
    freeze(network, training.freeze, config.model["name"])
    trained = [p for module in (network, loss) for p in module.parameters() if p.requires_grad]
    settings = config.optimizer
    plain_optimizer = build_optimizer(settings.name, trained, settings.lr, settings.weight_decay, settings.options)
    if accelerator.num_processes > 1:
        for module in (network, loss):
            share_batch_statistics(module, accelerator.device)
    model, optimizer = accelerator.prepare(network, plain_optimizer)
    if accelerator.num_processes > 1:
        broadcast([*loss.parameters(), *loss.buffers()])
    selections = [Selection.parse(text) for text in training.best]
    make_schedule = SCHEDULER_REGISTRY.build(config.scheduler) if config.scheduler else None
    datasets = [train_set, val_set] if val_set is not None else [train_set]
    needed = [Selection.parse(text).metric for text in training.best if text not in DEFAULT_BEST]
    try_out(config.model, network, loss_call, datasets, training.batch_size, accelerator.device, needed)

    # Each process has its own stream from here on: their dropout masks must differ.
    set_seed(training.seed, device_specific=True)
    train = _batches(config, accelerator, train_set, shuffle=True)
    epoch = -(-len(train) // training.accumulate)
    length = Length(min(training.epochs * epoch, training.max_steps or training.epochs * epoch), epoch)
    schedule = Schedule(plain_optimizer) if make_schedule is None else make_schedule(plain_optimizer, length)
    average = MovingAverage(network, training.ema) if training.ema is not None else None
    parts = Parts(network, loss, plain_optimizer, schedule, average)
    progress = _restore(resume, parts, accelerator) if resume is not None else TrainingProgress()
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
        schedule=schedule,
        average=average,
        selections=selections,
        train=train,
        val=_batches(config, accelerator, val_set, shuffle=False) if val_set is not None else None,
        progress=progress,
        folder=folder,
        metrics=metrics,
        trackers=make_trackers(folder, config, plain_config) if accelerator.is_main_process else [],
        resumed_from=resume.path if resume is not None else None,
    )


def _fitted_to_data(config: Config, channels: int, resume: Resume | None) -> Config:
    """The config with what the data says about the model, so that checkpoints hold it: channels, and 2-D for slices.

    A run on slices whose network is one for volumes goes on with it.
    """
    if channels != 1:
        logger.info("the images have %d channels", channels)
    keys = data_keys(config.model, config.image_size, channels)
    if resume is not None and "spatial_dims" not in resume.content["config"].get("model", {}):
        keys.pop("spatial_dims", None)
    return replace(config, model={**config.model, **keys}) if keys else config


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
        accelerator = Accelerator(
            # Accelerate starts processes without a GPU only where it is told that there is none.
            cpu=device.type == "cpu" if device is not None else not torch.accelerator.is_available(),
            mixed_precision=MIXED_PRECISION[training.amp_dtype] if training.amp and on_cuda else "no",
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise ConfigError(f"device {config.device}, training.amp_dtype {training.amp_dtype}: {error}") from error
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UsageError(
            f"{started} processes were started and Accelerate joins {accelerator.num_processes}: each would train "
            "by itself and write into one folder. Give a device that they can share (device=cpu, or cuda without a "
            "number), or start one process"
        )
    return accelerator


def _dataset(config: Config, split: str) -> Dataset[Any]:
    section = getattr(config, f"{split}_dataset")
    dataset = build_dataset(section, split=split, image_size=tuple(config.image_size))
    if not len(cast(Sized, dataset)):
        raise DataError(f"{split}_dataset '{section['name']}' is empty; it needs at least one sample")
    return dataset


def _training_set(config: Config) -> Dataset[Any]:
    """The training set, augmented where the config says so."""
    dataset = _dataset(config, "train")
    if config.augmentation == AugmentationConfig():
        return dataset
    return Augmented(dataset, config.augmentation, config.training.seed)


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
        counting=isinstance(dataset, Augmented),
    )
    return Batches(dataset, sampler, collate, training.num_workers, pin_memory=accelerator.device.type == "cuda")


@dataclass
class Parts:
    """What a checkpoint restores, beside the random generators; see :class:`Run`."""

    network: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: MovingAverage | None


def _restore(resume: Resume, parts: Parts, accelerator: Accelerator) -> TrainingProgress:
    """Put a checkpoint's state into the parts of a run; its progress."""
    content, path = resume.content, resume.path
    load_weights(parts.network, content, path, averaged=False)
    load_loss(parts.loss, content, path)
    load_optimizer(parts.optimizer, content, path)
    if content["scheduler"] is not None:
        parts.schedule.load_state_dict(content["scheduler"], path)
    if parts.average is not None:
        load_weights(parts.average.network, content, path)  # without an average, it begins with the weights
        parts.average.steps = content["ema"]["steps"] if content["ema"] is not None else 0
    if accelerator.scaler is not None and content["scaler"] is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    states = content["random"]
    if accelerator.process_index < len(states):  # a process that the old run did not have keeps its fresh stream
        restore_random_state(states[accelerator.process_index])
    return TrainingProgress.from_plain(content["progress"])


def begin_with(network: nn.Module, source: Path) -> None:
    """Copy the weights of a checkpoint, or of a run's folder, into a network.

    Raises:
        UsageError: there is none, or it is of another model, whose differences are named.
    """
    path = find_checkpoint(source)
    load_weights(network, load_checkpoint(path), path, "give the same keys, or leave training.init_from out")
    logger.info("beginning with the weights of %s", path)


def freeze(network: nn.Module, patterns: Sequence[str], model: str) -> None:
    """Train no weight whose name fits one of the patterns, in which ``*`` stands for anything.

    Raises:
        ConfigError: a pattern fits no weight, or nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ConfigError(
                f"training.freeze: no weight of {model} has a name like '{pattern}'; the names begin with "
                f"{', '.join(parts)}. '{parts[0]}*' is all that begins so"
            )
    for name, parameter in network.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in network.parameters()):
        why = "training.freeze holds all of them" if patterns else "it has none"
        raise ConfigError(f"model '{model}' has no parameters to train: {why}")


def _check_work_left(config: Config, progress: TrainingProgress, resume: Resume | None) -> None:
    training = config.training
    if resume is not None and training.patience is not None and progress.waited >= training.patience:
        raise UsageError(
            f"nothing is left to train: {resume.path} has {progress.waited} validations behind it with nothing better, "
            f"and training.patience is {training.patience}. Give a larger training.patience"
        )
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

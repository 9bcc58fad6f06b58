"""Running a method over the cases of a list, in one process or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sized
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import Dataset

from ..config import Config
from ..datasets import build_dataset, collate
from ..datasets.utils import SPLITS
from ..errors import ConfigError, DataError
from ..io.manifest import NoCasesError
from ..metrics import METRIC_REGISTRY, evaluate_metrics, identity_inputs, model_inputs, values_of
from ..training.batches import Batches, EpochBatches
from ..training.nonfinite import nonfinite
from .methods import Method
from .results import CaseResult

logger = logging.getLogger(__name__)

Observe = Callable[[int, dict[str, Any]], None]
"""Called with the number of a case and its :func:`usreg.metrics.model_inputs`."""


def cases_of(config: Config, split: str | None) -> tuple[Dataset[Any], str]:
    """The cases of a list, from the config's validation set, or its training set where it has none.

    Args:
        config: of a run.
        split: the list; None: ``test``, or ``val`` where a manifest has no cases for ``test``.

    Raises:
        UsageError: there is no such list, it is empty, or its files cannot be used.
    """
    if split not in (None, *SPLITS):
        raise ConfigError(f"the list is {split!r}; it must be one of {', '.join(SPLITS)}")
    section = dict(config.val_dataset or config.train_dataset)
    if split == "train":
        section = dict(config.train_dataset)
    size = tuple(config.image_size)
    try:
        dataset = build_dataset(section, split=split or "test", image_size=size)
    except NoCasesError as error:
        if split is not None:
            raise
        logger.warning("%s Evaluating the list 'val'; --list says which one is meant", error)
        dataset, split = build_dataset(section, split="val", image_size=size), "val"
    if not len(cast(Sized, dataset)):
        raise DataError(f"the list '{split or 'test'}' of {section['name']} is empty; there is nothing to evaluate")
    return dataset, split or "test"


@torch.no_grad()
def run_method(
    method: Method, dataset: Dataset[Any], accelerator: Accelerator, observe: Observe, done: Callable[[], None]
) -> list[CaseResult]:
    """Register and measure every case; each process takes its share, and all get all results.

    Metrics are those of a validation in training, computed by the same functions, one case at a time.

    Args:
        method: registers.
        dataset: the cases.
        accelerator: the processes.
        observe: sees what this process's cases came to.
        done: called after each case of this process.
    """
    sampler = EpochBatches(len(cast(Sized, dataset)), 1, None, accelerator.process_index, accelerator.num_processes)
    workers = method.config.training.num_workers
    batches = Batches(dataset, sampler, collate, workers, pin_memory=accelerator.device.type == "cuda")
    records = []
    for step, host_batch in enumerate(batches.epoch()):
        index = accelerator.process_index + step * accelerator.num_processes
        batch = send_to_device(host_batch, accelerator.device, non_blocking=True)
        records.append((index, _measured(method, batch, index, observe)))
        done()
    return [record for _, record in sorted(gather_object(records), key=lambda pair: pair[0])]


def _measured(method: Method, batch: dict[str, Any], index: int, observe: Observe) -> CaseResult:
    case = str(batch.get("case", [index])[0])
    warped, ddf = method.predict(batch)
    before = values_of(evaluate_metrics(identity_inputs(batch)), 0)
    inputs = model_inputs(batch, warped, ddf)
    if nonfinite(batch["moving"], batch["fixed"], warped, ddf):
        logger.warning(
            "case %s: NaN or Inf in the images or in what %s made of them; it has no values", case, method.name
        )
        after = dict.fromkeys(METRIC_REGISTRY, float("nan"))
    else:
        after = values_of(evaluate_metrics(inputs), 0)
        observe(index, inputs)
    return CaseResult(case, before, after)

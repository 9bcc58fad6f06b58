"""How far a run has come: what a checkpoint keeps beside weights and optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ConfigError
from .evaluation import Evaluation
from .nonfinite import StepReport, no_skips


@dataclass
class TrainingProgress:
    """Position and record of a run; plain numbers, so that a checkpoint can hold them.

    Attributes:
        epoch: complete epochs, also the index of the one in progress.
        samples: samples of that epoch that all processes together are through with.
        size: samples of an epoch; 0 before the first one.
        seed: of the order of the samples.
        pending: whether the epoch's steps are done and its validation is not.
        step: steps of the whole run, skipped ones included.
        trained: steps of the whole run that changed the weights.
        loss_sum: sum of the losses of this epoch's steps that were not skipped.
        loss_count: number of these steps.
        epoch_skips: skipped steps of this epoch, by reason.
        run_skips: skipped steps of the whole run, by reason.
        best_val_loss: lowest validation loss so far.
        best_epe: lowest endpoint error so far, in voxels.
    """

    epoch: int = 0
    samples: int = 0
    size: int = 0
    seed: int = 0
    pending: bool = False
    step: int = 0
    trained: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    epoch_skips: dict[str, int] = field(default_factory=no_skips)
    run_skips: dict[str, int] = field(default_factory=no_skips)
    best_val_loss: float = math.inf
    best_epe: float = math.inf

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrainingProgress:
        """The progress that :meth:`plain` was made from."""
        return cls(**{f.name: plain[f.name] for f in fields(cls)})

    def plain(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)

    def count(self, report: StepReport, samples: int) -> None:
        """Count a step, and the samples that all processes together took for it."""
        self.step += 1
        self.samples = min(self.samples + samples, self.size)
        if report.bad is None:
            self.trained += 1
            self.loss_count += 1
            self.loss_sum += report.loss
        else:
            self.epoch_skips[report.bad] += 1
            self.run_skips[report.bad] += 1

    @property
    def train_loss(self) -> float | None:
        """Mean loss of this epoch so far; None where every step was skipped."""
        return self.loss_sum / self.loss_count if self.loss_count else None

    def note_best(self, evaluation: Evaluation) -> tuple[bool, bool]:
        """Take over a validation's loss and endpoint error where they are the lowest so far; which of them were."""
        loss, epe = evaluation.loss, evaluation.metrics.get("epe")
        better_loss = loss is not None and loss < self.best_val_loss
        better_epe = epe is not None and epe < self.best_epe
        if better_loss:
            self.best_val_loss = loss  # type: ignore[assignment]
        if better_epe:
            self.best_epe = epe  # type: ignore[assignment]
        return better_loss, better_epe

    def forget_best(self) -> None:
        """Start again with the lowest values."""
        self.best_val_loss = self.best_epe = math.inf

    @property
    def complete(self) -> bool:
        """Whether all samples of the epoch were used."""
        return self.samples >= self.size

    def go_on_with(self, size: int, seed: int, path: object) -> None:
        """Check that the samples that are left of a resumed epoch are those that the old run would have used.

        Args:
            size: samples of an epoch now.
            seed: of their order now.
            path: the checkpoint, for the error.

        Raises:
            ConfigError: inside an epoch, another number of samples or another seed: their order is another one.
        """
        if not self.size:  # nothing trained yet, or a checkpoint of a version that did not know the size
            self.samples, self.size, self.seed = min(self.samples, size), size, seed
            return
        if 0 < self.samples < self.size and (size, seed) != (self.size, self.seed):
            raise ConfigError(
                f"{path} is {self.samples} samples into epoch {self.epoch + 1}, of {self.size} samples in the order of "
                f"seed {self.seed}; now there are {size} samples and training.seed is {seed}, so that some would be "
                "skipped and others used twice. Give the same dataset and seed, or resume from a "
                "checkpoint of a whole epoch"
            )
        self.samples = size if self.complete else self.samples
        self.size, self.seed = size, seed

    def next_epoch(self) -> None:
        """Move on to the first sample of the next epoch."""
        self.epoch += 1
        self.samples = 0
        self.loss_sum, self.loss_count, self.epoch_skips = 0.0, 0, no_skips()

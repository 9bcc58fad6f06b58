"""How far a run has come: what a checkpoint keeps beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ConfigError
from .evaluation import Evaluation
from .nonfinite import StepReport, no_skips
from .selection import Selection


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
        term_sums: by term of the loss, the sum over these steps.
        best: by metric, the best value so far.
        validations: of the whole run.
        waited: validations in a row without a better value of the metric that decides.
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
    term_sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    validations: int = 0
    waited: int = 0

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrainingProgress:
        """The progress that :meth:`plain` was made from."""
        return cls(**{f.name: plain[f.name] for f in fields(cls) if f.name in plain})

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
            for name, value in report.terms.items():
                self.term_sums[name] = self.term_sums.get(name, 0.0) + value
        else:
            self.epoch_skips[report.bad] += 1
            self.run_skips[report.bad] += 1

    @property
    def train_loss(self) -> float | None:
        """Mean loss of this epoch so far; None where every step was skipped."""
        return self.loss_sum / self.loss_count if self.loss_count else None

    @property
    def train_terms(self) -> dict[str, float]:
        """By term of the loss, its mean over this epoch so far."""
        return {name: value / self.loss_count for name, value in self.term_sums.items()}

    def note(self, evaluation: Evaluation, selections: Sequence[Selection]) -> list[Selection]:
        """Count a validation, and take over the values that are the best so far; by which selections they are."""
        self.validations += 1
        better = []
        for number, selection in enumerate(selections):
            value = evaluation.value(selection.metric)
            if value is None:
                continue
            is_better = selection.better(value, self.best.get(selection.metric, selection.worst))
            if is_better:
                self.best[selection.metric] = value
                better.append(selection)
            if number == 0:
                self.waited = 0 if is_better else self.waited + 1
        return better

    def forget_best(self) -> None:
        """Start again with the best values."""
        self.best, self.waited = {}, 0

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
        self.loss_sum, self.loss_count, self.epoch_skips, self.term_sums = 0.0, 0, no_skips(), {}

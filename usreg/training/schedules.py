"""Schedules of the learning rate, by torch's classes.

A factory of :data:`SCHEDULER_REGISTRY` takes the keys of the config's ``scheduler`` section and returns what makes a
:class:`Schedule` of an optimizer and a :class:`Length`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from ..errors import ConfigError
from ..registry import Registry
from .evaluation import Evaluation
from .selection import Selection


@dataclass(frozen=True)
class Length:
    """How long a run is, in steps.

    Attributes:
        total: steps of the whole run.
        epoch: steps of an epoch.
    """

    total: int
    epoch: int


class Schedule:
    """Changes the learning rate after steps, or after validations.

    Args:
        optimizer: of the weights, not wrapped.
        by_step: counts steps; None for none.
        by_validation: looks at ``watched`` of each validation.
        watched: the metric, and its direction.
        made_for: what the schedule depends on, by name: a resumed run must have the same.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        by_step: LRScheduler | None = None,
        by_validation: ReduceLROnPlateau | None = None,
        watched: Selection | None = None,
        made_for: dict[str, Any] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.by_step, self.by_validation, self.watched = by_step, by_validation, watched
        self.made_for = made_for or {}

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Count a step that changed the weights."""
        if self.by_step is not None:
            self.by_step.step()

    def after_validation(self, evaluation: Evaluation) -> None:
        """Look at the watched metric of a validation, where it has it."""
        value = evaluation.value(self.watched.metric) if self.watched is not None else None
        if self.by_validation is not None and value is not None:
            self.by_validation.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        parts = {"by_step": self.by_step, "by_validation": self.by_validation}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {"made_for": self.made_for, "lr": [group["lr"] for group in self.optimizer.param_groups], **states}

    def load_state_dict(self, state: dict[str, Any], path: object) -> None:
        """Go on where a checkpoint was, with its learning rates.

        Raises:
            ConfigError: the schedule of the checkpoint was made for something else.
        """
        if state["made_for"] != self.made_for:
            old, new = (
                ", ".join(f"{key} {value}" for key, value in made.items()) or "nothing"
                for made in (state["made_for"], self.made_for)
            )
            raise ConfigError(
                f"the schedule of the learning rate in {path} was made for {old}, the one of this config for {new}. "
                "Give the same keys to go on, or begin a new run from its weights with training.init_from"
            )
        for name in ("by_step", "by_validation"):
            part = getattr(self, name)
            if part is not None:
                part.load_state_dict(state[name])
        for group, lr in zip(self.optimizer.param_groups, state["lr"], strict=True):
            group["lr"] = lr


MakeSchedule: TypeAlias = Callable[[Optimizer, Length], Schedule]

SCHEDULER_REGISTRY: Registry[MakeSchedule] = Registry("scheduler")
"""Factories of schedules by name."""


def no_schedule(optimizer: Optimizer) -> Schedule:
    """The learning rate of the config, from the first step to the last."""
    return Schedule(optimizer)


def _warmed_up(
    optimizer: Optimizer, main: Callable[[int], LRScheduler] | None, length: Length, steps: int, factor: float
) -> LRScheduler | None:
    """A linear warm-up over ``steps``, then ``main`` of the steps that are left."""
    if not steps:
        return main(length.total) if main is not None else None
    warm_up = LinearLR(optimizer, start_factor=factor, total_iters=steps)
    if main is None:
        return warm_up
    return SequentialLR(optimizer, [warm_up, main(max(length.total - steps, 1))], milestones=[steps])


def _check_warm_up(steps: int, factor: float) -> None:
    if steps < 0:
        raise ValueError(f"warmup_steps is {steps}; it must be 0 (none) or more")
    if not 0 < factor <= 1:
        raise ValueError(f"warmup_factor is {factor}; it must be above 0, and 1 at most")


@SCHEDULER_REGISTRY.register("constant")
def constant(warmup_steps: int = 0, warmup_factor: float = 0.01) -> MakeSchedule:
    """The learning rate of the config, after a linear warm-up."""
    _check_warm_up(warmup_steps, warmup_factor)

    def make(optimizer: Optimizer, length: Length) -> Schedule:
        by_step = _warmed_up(optimizer, None, length, warmup_steps, warmup_factor)
        return Schedule(optimizer, by_step, made_for={"name": "constant", "warmup_steps": warmup_steps})

    return make


@SCHEDULER_REGISTRY.register("cosine")
def cosine(eta_min: float = 0.0, warmup_steps: int = 0, warmup_factor: float = 0.01) -> MakeSchedule:
    """Half a cosine from the learning rate to ``eta_min`` at the last step, after a linear warm-up."""
    _check_warm_up(warmup_steps, warmup_factor)
    if eta_min < 0:
        raise ValueError(f"eta_min is {eta_min}; it must be 0 or more")

    def make(optimizer: Optimizer, length: Length) -> Schedule:
        by_step = _warmed_up(
            optimizer,
            lambda left: CosineAnnealingLR(optimizer, T_max=left, eta_min=eta_min),
            length,
            warmup_steps,
            warmup_factor,
        )
        made_for = {"name": "cosine", "steps": length.total, "eta_min": eta_min, "warmup_steps": warmup_steps}
        return Schedule(optimizer, by_step, made_for=made_for)

    return make


@SCHEDULER_REGISTRY.register("step")
def step(step_size: int, gamma: float = 0.1, warmup_steps: int = 0, warmup_factor: float = 0.01) -> MakeSchedule:
    """The learning rate times ``gamma`` after every ``step_size`` epochs, after a linear warm-up."""
    _check_warm_up(warmup_steps, warmup_factor)
    if step_size < 1 or not gamma > 0:
        raise ValueError(f"step_size is {step_size} and gamma {gamma}; they must be 1 epoch or more, and above 0")

    def make(optimizer: Optimizer, length: Length) -> Schedule:
        by_step = _warmed_up(
            optimizer,
            lambda _: StepLR(optimizer, step_size=step_size * length.epoch, gamma=gamma),
            length,
            warmup_steps,
            warmup_factor,
        )
        made_for = {"name": "step", "steps of an epoch": length.epoch, "step_size": step_size, "gamma": gamma}
        return Schedule(optimizer, by_step, made_for=made_for | {"warmup_steps": warmup_steps})

    return make


@SCHEDULER_REGISTRY.register("one_cycle")
def one_cycle(
    pct_start: float = 0.3, div_factor: float = 25.0, final_div_factor: float = 1e4, anneal_strategy: str = "cos"
) -> MakeSchedule:
    """Up from a ``div_factor``-th of the learning rate to it, and down again, over the whole run."""
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start is {pct_start}; it is the part of the run that goes up, from 0 to 1")
    if div_factor <= 0 or final_div_factor <= 0:
        raise ValueError(f"div_factor {div_factor} and final_div_factor {final_div_factor} must be above 0")
    if anneal_strategy not in ("cos", "linear"):
        raise ValueError(f"anneal_strategy is {anneal_strategy!r}; it must be cos or linear")

    def make(optimizer: Optimizer, length: Length) -> Schedule:
        by_step = OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=length.total + 1,  # the state after the last step counts too
            pct_start=pct_start,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            anneal_strategy=anneal_strategy,  # type: ignore[arg-type]  # checked above
            cycle_momentum=False,
        )
        made_for = {"name": "one_cycle", "steps": length.total, "pct_start": pct_start, "div_factor": div_factor}
        return Schedule(optimizer, by_step, made_for=made_for | {"final_div_factor": final_div_factor})

    return make


@SCHEDULER_REGISTRY.register("plateau")
def plateau(
    metric: str = "val_loss",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    cooldown: int = 0,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    warmup_factor: float = 0.01,
) -> MakeSchedule:
    """The learning rate times ``factor`` where ``metric`` did not get better in ``patience`` validations."""
    _check_warm_up(warmup_steps, warmup_factor)
    watched = Selection.parse(metric, "scheduler.metric")
    if not 0 < factor < 1 or patience < 0:
        raise ValueError(f"factor is {factor} and patience {patience}; they must lie between 0 and 1, and be 0 or more")

    def make(optimizer: Optimizer, length: Length) -> Schedule:
        watcher = ReduceLROnPlateau(
            optimizer,
            mode="max" if watched.highest else "min",
            factor=factor,
            patience=patience,
            threshold=threshold,
            cooldown=cooldown,
            min_lr=min_lr,
        )
        by_step = _warmed_up(optimizer, None, length, warmup_steps, warmup_factor)
        made_for = {"name": "plateau", "metric": metric, "factor": factor, "patience": patience}
        return Schedule(optimizer, by_step, watcher, watched, made_for | {"warmup_steps": warmup_steps})

    return make

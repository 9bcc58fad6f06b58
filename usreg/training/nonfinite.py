"""The guard against NaN and Inf: what a step must check, read from the device in one transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import nn

CHECKED = ("inputs", "outputs", "gradients")
"""What can hold a NaN or Inf, in the order of blame: a bad input makes bad outputs, and those bad gradients."""

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class StepReport:
    """What a step came to, agreed on by all processes.

    Attributes:
        loss: the mean of the processes' losses; NaN or Inf where the step was bad.
        bad: which of :data:`CHECKED` was the first to hold a NaN or Inf in some process; None for a good step.
        stop: whether a process was asked to stop after this step.
        terms: by name, the means of the loss's terms.
    """

    loss: float
    bad: str | None
    stop: bool
    terms: dict[str, float] = field(default_factory=dict)


def nonfinite(*tensors: torch.Tensor) -> torch.Tensor:
    """A 0-dim float32 tensor on the device: 1 where any of the tensors holds a NaN or Inf, else 0; no host sync.

    One reduction per tensor and no temporary of its size: the extremes are NaN or infinite where an element is.
    """
    extremes = [e.float() for t in tensors for e in torch.aminmax(t.detach())]
    return torch.isfinite(torch.stack(extremes)).logical_not().any().float()


def read_step(
    accelerator: Accelerator,
    loss: torch.Tensor,
    bad_inputs: torch.Tensor,
    bad_outputs: torch.Tensor,
    gradient_norm: torch.Tensor,
    terms: Mapping[str, torch.Tensor] | None = None,
    *,
    stop: bool = False,
) -> StepReport:
    """Read a step's loss and flags: the one host sync of a step, and with several processes one small reduction.

    Args:
        accelerator: the processes that must agree.
        loss: the loss, a scalar.
        bad_inputs: :func:`nonfinite` of moving and fixed.
        bad_outputs: the same of warped and field.
        gradient_norm: the norm of all gradients, a scalar.
        terms: the loss's terms by name, scalars; the same names in all processes.
        stop: whether this process was asked to stop.
    """
    terms = terms or {}
    flags = [bad_inputs, torch.maximum(bad_outputs, nonfinite(loss)), nonfinite(gradient_norm)]
    values = [value.detach().to(bad_inputs).reshape(()) for value in (loss, *terms.values())]
    status = torch.stack([*flags, bad_inputs.new_tensor(float(stop)), *values])
    if accelerator.num_processes > 1:
        status = accelerator.reduce(status, reduction="sum")
    numbers = status.tolist()
    bad, (stopped, value, *others) = numbers[: len(CHECKED)], numbers[len(CHECKED) :]
    first = next((name for name, flag in zip(CHECKED, bad, strict=True) if flag), None)
    processes = accelerator.num_processes
    by_term = {name: other / processes for name, other in zip(terms, others, strict=True)}
    return StepReport(loss=value / processes, bad=first, stop=bool(stopped), terms=by_term)


def no_skips() -> dict[str, int]:
    """Counts of skipped steps by reason, all 0."""
    return dict.fromkeys(CHECKED, 0)


def describe_skips(counts: Mapping[str, int]) -> str:
    """``"0 skipped"``, or how many steps were skipped and where the NaN or Inf was."""
    reasons = ", ".join(f"{count} in the {name}" for name, count in counts.items() if count)
    return f"{sum(counts.values())} skipped (NaN or Inf: {reasons})" if reasons else "0 skipped"


class RunningStatistics:
    """A copy of the running statistics of a network's normalisation layers, to undo what a bad batch did to them.

    And of all buffers of a loss, whatever it keeps in them.

    A forward pass over a NaN makes batch normalisation's running mean NaN for good: the batch can be skipped, its
    trace in these buffers cannot, unless they are put back.
    """

    def __init__(self, model: nn.Module, loss: nn.Module | None = None) -> None:
        self.live = [b for name, b in model.named_buffers() if name.rpartition(".")[2] in RUNNING_STATISTICS]
        self.live += list(loss.buffers()) if loss is not None else []
        self.kept = [b.clone() for b in self.live]

    def keep(self) -> None:
        """Copy the statistics as they are now."""
        for kept, live in zip(self.kept, self.live, strict=True):
            kept.copy_(live)

    def restore(self) -> None:
        """Put the statistics back to what :meth:`keep` saw last."""
        for kept, live in zip(self.kept, self.live, strict=True):
            live.copy_(kept)

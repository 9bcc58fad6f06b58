"""What a comparison finds out about each contender."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.timing import OnGpu, Times
from tools import tolerances


@dataclass(frozen=True)
class Error:
    """Relative errors against the float64 reference; the gradient's is that of its L2 norm, None without one."""

    loss: float
    gradient: float | None

    def within_tolerance(self, dtype: torch.dtype, ours: bool) -> bool:
        """Whether the result counts as exact for inputs of this dtype; NaN does not. More is asked of ours."""
        loss, gradient = tolerances.LOSS_TOLERANCE, tolerances.GRADIENT_TOLERANCE
        if not ours:
            loss, gradient = tolerances.OTHERS_LOSS_TOLERANCE, tolerances.OTHERS_GRADIENT_TOLERANCE
        return self.loss <= loss[dtype] and (self.gradient is None or self.gradient <= gradient[dtype])


@dataclass(frozen=True)
class Measured:
    """What was found about one contender.

    Attributes:
        times: of its runs.
        error: against the reference.
        exact: whether the error is within the tolerances.
        wrong: one of ours, and not exact: it is shown, and its test fails.
        peak_extra_bytes: see :func:`bench.memory.peak_extra_bytes`.
        streaming: seconds that ``torch.add`` takes for tensors of this shape; None where it could not run.
        on_gpu: the device's and the CPU's part; None on a CPU.
        streaming_on_gpu: as ``streaming``, from a CUDA graph; None without one.
    """

    times: Times
    error: Error
    exact: bool
    wrong: bool
    peak_extra_bytes: int | None
    streaming: float | None
    on_gpu: OnGpu | None = None
    streaming_on_gpu: float | None = None


@dataclass(frozen=True)
class NotMeasured:
    """Why nothing was found about one contender.

    Attributes:
        reason: in words.
        is_fault: it is one of ours and should have run: its test fails.
    """

    reason: str
    is_fault: bool = False


Outcome = Measured | NotMeasured

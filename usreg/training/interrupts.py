"""Ctrl-C and termination requests, turned into a stop between two steps, or between two batches of a validation."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What asks for a stop: a terminal, a batch system that ends a job, and one that was told to warn of its end."""

LAUNCHED = "TORCHELASTIC_RUN_ID"
"""In the environment of processes that ``torchrun`` or ``accelerate launch`` started."""

SAME_PRESS = 1.0
"""Seconds within which a second interrupt is still the first: a launcher passes on what the terminal sends to all."""


class Stopped(Exception):
    """The run was asked to stop, and did so after a whole step."""


class StopRequest:
    """Context manager that notes SIGINT, SIGTERM and SIGUSR1 instead of raising in the middle of a step.

    A step that is cut in half leaves weights that no checkpoint should hold, so the loop finishes it and looks at
    :attr:`requested`. A second Ctrl-C, a second or more later, has its usual effect at once. Outside the main thread,
    where Python allows no signal handlers, nothing is caught.

    The end of a launcher is a request too: ``torchrun`` ends at SIGUSR1, unless told otherwise, and leaves behind its
    processes, which would train on with nobody to stop them.
    """

    def __init__(self) -> None:
        self._asked = False
        self._launcher = os.getppid() if LAUNCHED in os.environ else None
        self._interrupted: float | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal asked for a stop, or the launcher of this process is gone."""
        return self._asked or (self._launcher is not None and os.getppid() != self._launcher)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is not None and now - self._interrupted > SAME_PRESS:
            self._put_back()
            signal.raise_signal(number)
        self._interrupted = now if self._interrupted is None else self._interrupted

    def _put_back(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

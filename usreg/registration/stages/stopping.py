"""A request to stop, which the loops of a registration look at after each iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)


@contextmanager
def stop_when(asked: Callable[[], bool]) -> Iterator[None]:
    """End registrations early while the block runs, with what they have found, once ``asked()`` is true.

    Each level that is left makes one iteration more at most.
    """
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def stop_asked() -> bool:
    """Whether the loops should end now."""
    return _asked.get()()


@contextmanager
def stop_at(end: float | None) -> Iterator[None]:
    """The same once ``time.perf_counter()`` has reached ``end``; None for no end. What asked before still counts."""
    asked = _asked.get()
    with stop_when(asked if end is None else lambda: time.perf_counter() >= end or asked()):
        yield

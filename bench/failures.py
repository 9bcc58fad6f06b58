"""What a contender raised, kept without the memory that its traceback holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Found = TypeVar("Found")

_NO_MEMORY = "can't allocate memory"
"""In the message of torch's allocator for CPUs, which raises a plain RuntimeError."""


@dataclass(frozen=True)
class Failure:
    """An exception in words. The exception itself would keep the tensors of its frames alive."""

    kind: type[Exception]
    message: str

    @property
    def is_lack_of_memory(self) -> bool:
        """Whether the machine is too small, which is no fault of the contender."""
        return issubclass(self.kind, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY in self.message

    def __str__(self) -> str:
        first_line = (self.message.splitlines() or [""])[0]
        return f"{self.kind.__name__}: {first_line}"


def attempt(action: Callable[..., Found], *arguments: object) -> Found | Failure:
    """What the action returns, or how it failed. No reference to the exception is left."""
    try:
        return action(*arguments)
    except Exception as error:
        return Failure(type(error), str(error))

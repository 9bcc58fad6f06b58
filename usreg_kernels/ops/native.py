"""What the compiled backends of all ops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}
"""The codes of ``enum class Reduction`` in ``csrc/common``."""


def declines(device_type: str) -> Callable[..., str | None]:
    """Why a compiled backend of one device cannot take a call: it takes every call on its device."""

    def why_not(tensors: tuple[torch.Tensor | None, ...], **params: Any) -> str | None:
        device = tensors[0].device  # type: ignore[union-attr]
        if device.type == device_type:
            return None
        return f"it runs on {device_type} tensors, and these are on {device}"

    return why_not

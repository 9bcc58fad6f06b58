"""Memory that the CPU library keeps for its next outputs."""

from __future__ import annotations

import torch

from usreg_kernels import library
from usreg_kernels.ops.operator import LIBRARY

LIBRARY.define("free_kept_memory(Tensor like) -> ()")


def free_kept_memory() -> None:
    """Give the memory that the CPU library keeps for the next outputs back to the system (``docs/kernels.md``)."""
    if library.reason("cpu") is None:
        torch.ops.usreg.free_kept_memory(torch.empty(0))

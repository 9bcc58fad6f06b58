"""Loops over large fields lend the memory of what they have done with to the outputs that follow.

Large tensors get fresh memory from the system, page by page, and give it back when they are freed. In a loop that costs
more than the kernels themselves. With :func:`lending`, the CPU kernels write their next outputs of the same shape and
dtype where such a tensor lay. On other devices, and without the library, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from usreg_kernels import library
from usreg_kernels.ops import eager
from usreg_kernels.ops.operator import LIBRARY

LIBRARY.define("lend_memory(Tensor tensor) -> ()")
LIBRARY.define("end_lending(Tensor like) -> ()")

Lend = Callable[[torch.Tensor], None]
"""Takes a tensor that nobody reads any longer: neither the caller nor a graph of autograd, nor a view of it."""


@contextmanager
def lending() -> Iterator[Lend]:
    """While the block runs, outputs of this thread may take the memory of the tensors that it lends.

    What is lent and not taken is freed at the end. Blocks do not nest: the inner one ends both.
    """
    try:
        yield _lend
    finally:
        if library.reason("cpu") is None:
            torch.ops.usreg.end_lending(torch.empty(0))


def _lend(tensor: torch.Tensor) -> None:
    plain = tensor.device.type == "cpu" and tensor.is_contiguous() and eager.nobody_looks_on((tensor,))
    if plain and library.reason("cpu") is None:
        torch.ops.usreg.lend_memory(tensor.detach())

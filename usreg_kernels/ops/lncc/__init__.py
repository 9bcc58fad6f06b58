"""Local normalised cross-correlation."""

from collections.abc import Sequence
from typing import Any

import torch

from usreg_kernels.ops import triton_support
from usreg_kernels.ops.lncc import cuda, native, op
from usreg_kernels.ops.lncc.triton_plan import LARGEST_WINDOW

__all__ = ["cuda", "native", "op"]


def _too_large(tensors: Sequence[torch.Tensor | None], *, kernel_size: list[int], **params: Any) -> str | None:
    if max(kernel_size) <= LARGEST_WINDOW:
        return None
    return f"its windows go up to {LARGEST_WINDOW} voxels, and this one is {max(kernel_size)}"


triton_support.register("lncc", declines=_too_large)

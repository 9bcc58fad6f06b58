"""The op ``usreg::lncc``: schema and shape; the rest is the shared contract."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.contract import Op
from usreg_kernels.ops.lncc import reference


def _loss_shape(pred: torch.Tensor, *_: Any, reduction: str, **params: Any) -> tuple[int, ...]:
    return tuple(pred.shape) if reduction == "none" else ()


OP = Op(
    name="lncc",
    tensors=("pred", "target"),
    has_mask=True,
    params="int[] kernel_size, str kernel_type, str reduction, float smooth_nr, float smooth_dr",
    loss_shape=_loss_shape,
    reference=reference,
)

"""The op ``usreg::dvf_mse``: schema and shape; the rest is the shared contract."""

from __future__ import annotations

from typing import Any

import torch

from usreg_kernels.ops.contract import Op
from usreg_kernels.ops.dvf_mse import reference


def _loss_shape(pred_dvf: torch.Tensor, *_: Any, reduction: str) -> tuple[int, ...]:
    return tuple(pred_dvf.shape) if reduction == "none" else ()


OP = Op(
    name="dvf_mse",
    tensors=("pred_dvf", "gt_dvf"),
    has_mask=True,
    params="str reduction",
    loss_shape=_loss_shape,
    reference=reference,
)

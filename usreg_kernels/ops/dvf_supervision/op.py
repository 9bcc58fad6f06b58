"""The op ``usreg::dvf_supervision``: schema and shape; the rest is the shared contract."""

from __future__ import annotations

from typing import Any

from usreg_kernels.ops.contract import Op
from usreg_kernels.ops.dvf_supervision import reference


def _loss_shape(*_: Any, **params: Any) -> tuple[int, ...]:
    return ()


OP = Op(
    name="dvf_supervision",
    tensors=("pred_dvf", "gt_dvf"),
    params="float mse_weight, float smooth_weight, float[]? spacing",
    loss_shape=_loss_shape,
    reference=reference,
)

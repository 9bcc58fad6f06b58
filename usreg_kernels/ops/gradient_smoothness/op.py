"""The op ``usreg::gradient_smoothness``: schema and shape; the rest is the shared contract."""

from __future__ import annotations

from usreg_kernels.ops.contract import Op
from usreg_kernels.ops.gradient_smoothness import reference

OP = Op(
    name="gradient_smoothness",
    tensors=("dvf",),
    params="str penalty, str scheme, float[]? spacing, bool normalize, str reduction",
    loss_shape=reference.loss_shape,
    reference=reference,
)

"""The op ``usreg::bending_energy``: schema and shape; the rest is the shared contract."""

from __future__ import annotations

from usreg_kernels.ops.bending_energy import reference
from usreg_kernels.ops.contract import Op

OP = Op(
    name="bending_energy",
    tensors=("dvf",),
    params="bool normalize, str reduction",
    loss_shape=reference.loss_shape,
    reference=reference,
)

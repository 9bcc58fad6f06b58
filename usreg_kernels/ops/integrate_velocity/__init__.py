"""Integration of a stationary velocity field by scaling and squaring."""

from usreg_kernels.ops.integrate_velocity import reference
from usreg_kernels.ops.integrate_velocity.native import Native
from usreg_kernels.ops.integrate_velocity.squaring import Squaring
from usreg_kernels.ops.operator import Op, same_shape_like

OP = Op(
    name="integrate_velocity",
    tensors=("Tensor velocity",),
    params="int steps, str padding_mode",
    outputs_like=same_shape_like,
    reference=reference,
    backends=(Native("cpu"), Squaring("triton"), Squaring("cuda")),
)

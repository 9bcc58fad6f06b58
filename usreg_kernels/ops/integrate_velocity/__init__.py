"""Integration of a stationary velocity field by scaling and squaring."""

from usreg_kernels.ops.compose_ddf.native import Native as Composition
from usreg_kernels.ops.integrate_velocity import reference
from usreg_kernels.ops.integrate_velocity.native import Native
from usreg_kernels.ops.integrate_velocity.squaring import Squaring
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="integrate_velocity",
    tensors=("Tensor velocity",),
    params="int steps, str padding_mode",
    outputs_like=reference.integrated_like,
    reference=reference,
    backends=(Native(), Squaring(TritonBackend("compose_ddf")), Squaring(Composition("cuda"))),
)

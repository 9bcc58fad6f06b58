"""The Jacobian determinant of the map that a displacement field makes."""

from usreg_kernels.ops.jacobian_determinant import reference
from usreg_kernels.ops.jacobian_determinant.native import Native
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="jacobian_determinant",
    tensors=("Tensor ddf",),
    params="float[]? spacing",
    outputs_like=reference.map_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("jacobian_determinant"), Native("cuda")),
)

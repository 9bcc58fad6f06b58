"""Bending energy of a displacement field."""

from usreg_kernels.ops.bending_energy import reference
from usreg_kernels.ops.bending_energy.native import Native
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="bending_energy",
    tensors=("Tensor dvf",),
    params="bool normalize, str reduction",
    outputs_like=reference.loss_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("bending_energy"), Native("cuda")),
)

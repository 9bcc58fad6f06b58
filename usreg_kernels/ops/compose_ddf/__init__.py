"""Composition of two displacement fields."""

from usreg_kernels.ops.compose_ddf import reference
from usreg_kernels.ops.compose_ddf.native import Native
from usreg_kernels.ops.operator import Op, same_shape_like
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="compose_ddf",
    tensors=("Tensor outer", "Tensor inner"),
    params="str padding_mode",
    outputs_like=same_shape_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("compose_ddf"), Native("cuda")),
)

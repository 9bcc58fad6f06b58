"""Warp of an image by a displacement field, an affine, or both."""

from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend
from usreg_kernels.ops.warp import reference
from usreg_kernels.ops.warp.native import Native

OP = Op(
    name="warp",
    tensors=("Tensor image", "Tensor? ddf", "Tensor? affine"),
    params="int[] size, str mode, str padding_mode",
    outputs_like=reference.warped_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("warp"), Native("cuda")),
)

"""The MIND-SSC descriptor of an image."""

from usreg_kernels.ops.mind_ssc import reference
from usreg_kernels.ops.mind_ssc.native import Native
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="mind_ssc",
    tensors=("Tensor image",),
    params="int radius, int dilation",
    outputs_like=reference.descriptor_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("mind_ssc"), Native("cuda")),
)

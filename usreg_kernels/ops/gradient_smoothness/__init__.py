"""First-order smoothness of a displacement field."""

from usreg_kernels.ops.gradient_smoothness import reference
from usreg_kernels.ops.gradient_smoothness.native import Native
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="gradient_smoothness",
    tensors=("Tensor dvf",),
    params="str penalty, str scheme, float[]? spacing, bool normalize, str reduction",
    outputs_like=reference.loss_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("gradient_smoothness"), Native("cuda")),
)

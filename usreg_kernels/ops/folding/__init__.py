"""How far the Jacobian determinant of a displacement field's map falls below a margin."""

from usreg_kernels.ops.folding import reference
from usreg_kernels.ops.folding.native import Native
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="folding",
    tensors=("Tensor ddf",),
    params="float[]? spacing, float margin, str reduction",
    outputs_like=reference.loss_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("folding"), Native("cuda")),
)

"""A step of Adam on a displacement field, in place."""

from usreg_kernels.ops.field_adam import reference
from usreg_kernels.ops.field_adam.native import Native
from usreg_kernels.ops.inplace import InplaceOp
from usreg_kernels.ops.triton_backend import TritonBackend

OP = InplaceOp(
    name="field_adam",
    tensors=("Tensor grad", "Tensor(a!) exp_avg", "Tensor(b!) exp_avg_sq", "Tensor(c!) step", "Tensor(d!) field"),
    params="float lr, float beta1, float beta2, float eps, bool longest, bool replace",
    reference=reference,
    backends=(Native("cpu"), TritonBackend("field_adam"), Native("cuda")),
)

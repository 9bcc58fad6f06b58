"""Mean squared error between displacement fields."""

from usreg_kernels.ops.dvf_mse import reference
from usreg_kernels.ops.dvf_mse.native import Native
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.reduction import loss_like
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="dvf_mse",
    tensors=("Tensor pred_dvf", "Tensor gt_dvf"),
    constants=("Tensor? mask",),
    params="str reduction",
    outputs_like=loss_like,
    reference=reference,
    backends=(Native("cpu"), TritonBackend("dvf_mse"), Native("cuda")),
)

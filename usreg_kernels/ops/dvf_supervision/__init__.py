"""Squared error against a known displacement field, plus the smoothness of the predicted one."""

from usreg_kernels.ops.dvf_supervision import reference
from usreg_kernels.ops.dvf_supervision.cpu import Cpu
from usreg_kernels.ops.dvf_supervision.cuda import Cuda
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.reduction import loss_like
from usreg_kernels.ops.triton_backend import TritonBackend

OP = Op(
    name="dvf_supervision",
    tensors=("Tensor pred_dvf", "Tensor gt_dvf"),
    params="float mse_weight, float smooth_weight, float[]? spacing",
    outputs_like=loss_like,
    reference=reference,
    backends=(Cpu("cpu"), TritonBackend("dvf_supervision"), Cuda()),
)

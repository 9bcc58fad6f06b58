"""The MIND loss: the squared difference of two images' MIND-SSC descriptors."""

from usreg_kernels.ops.mind import reference
from usreg_kernels.ops.mind.cpu import Cpu
from usreg_kernels.ops.mind.cuda import Cuda
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.reduction import loss_like
from usreg_kernels.ops.triton_backend import SavingTritonBackend

OP = Op(
    name="mind",
    tensors=("Tensor pred", "Tensor target"),
    constants=("Tensor? mask",),
    params="int radius, int dilation, str reduction",
    outputs_like=loss_like,
    reference=reference,
    backends=(Cpu("cpu"), SavingTritonBackend("mind"), Cuda("cuda")),
)

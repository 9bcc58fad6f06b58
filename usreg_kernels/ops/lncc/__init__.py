"""Local normalised cross-correlation."""

from typing import Any

from usreg_kernels.backend import Tensors
from usreg_kernels.ops.lncc import reference
from usreg_kernels.ops.lncc.cpu import Cpu
from usreg_kernels.ops.lncc.cuda import Cuda
from usreg_kernels.ops.lncc.triton_plan import LARGEST_WINDOW
from usreg_kernels.ops.operator import Op
from usreg_kernels.ops.reduction import loss_like
from usreg_kernels.ops.triton_backend import TritonBackend


class Triton(TritonBackend):
    """A march each way, whose sums live in registers."""

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """The registers hold windows up to a size."""
        largest = max(params["kernel_size"])
        if largest > LARGEST_WINDOW:
            return f"its windows go up to {LARGEST_WINDOW} voxels, and this one is {largest}"
        return super().declines(tensors, **params)


OP = Op(
    name="lncc",
    tensors=("Tensor pred", "Tensor target"),
    constants=("Tensor? mask",),
    params="int[] kernel_size, str kernel_type, str reduction, float smooth_nr, float smooth_dr",
    outputs_like=loss_like,
    reference=reference,
    backends=(Cpu("cpu"), Triton("lncc"), Cuda("cuda")),
)

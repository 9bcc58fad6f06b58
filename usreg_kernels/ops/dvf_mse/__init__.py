"""Mean squared error between displacement fields."""

from usreg_kernels.ops import triton_support
from usreg_kernels.ops.dvf_mse import native, op

__all__ = ["native", "op"]

triton_support.register("dvf_mse")

"""First-order smoothness of a displacement field."""

from usreg_kernels.ops import triton_support
from usreg_kernels.ops.gradient_smoothness import native, op

__all__ = ["native", "op"]

triton_support.register("gradient_smoothness")

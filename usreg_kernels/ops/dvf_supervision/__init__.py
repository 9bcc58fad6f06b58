"""Squared error against a known displacement field, plus the smoothness of the predicted one."""

from usreg_kernels.ops import triton_support
from usreg_kernels.ops.dvf_supervision import native, op

__all__ = ["native", "op"]

triton_support.register("dvf_supervision")

"""Bending energy of a displacement field."""

from usreg_kernels.ops import triton_support
from usreg_kernels.ops.bending_energy import native, op

__all__ = ["native", "op"]

triton_support.register("bending_energy")

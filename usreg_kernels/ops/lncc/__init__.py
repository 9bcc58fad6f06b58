"""Local normalised cross-correlation."""

from usreg_kernels.ops.lncc import native, op

__all__ = ["native", "op"]

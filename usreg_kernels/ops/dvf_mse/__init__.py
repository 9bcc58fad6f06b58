"""Mean squared error between displacement fields."""

from usreg_kernels.ops.dvf_mse import native, op

__all__ = ["native", "op"]

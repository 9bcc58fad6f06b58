"""Bridges to other packages; each is imported only when it is used: ``usreg_kernels.integrations.monai.patch()``."""

from usreg_kernels.integrations import monai

__all__ = ["monai"]

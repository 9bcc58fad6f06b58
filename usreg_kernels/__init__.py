"""Fused losses for image registration, with exact gradients; the fastest backend that the machine can run.

from usreg_kernels import LNCCLoss
loss = LNCCLoss(kernel_size=9)(warped, fixed)
"""

from usreg_kernels import integrations, library
from usreg_kernels.dispatch import BackendError, available_backends, use_backend
from usreg_kernels.functional import (
    bending_energy_loss,
    dvf_mse_loss,
    dvf_supervision_loss,
    explain,
    gradient_smoothness_loss,
    lncc_loss,
)
from usreg_kernels.modules import BendingEnergyLoss, DVFMSELoss, GradientSmoothnessLoss, LNCCLoss

__all__ = [
    "BackendError",
    "BendingEnergyLoss",
    "DVFMSELoss",
    "GradientSmoothnessLoss",
    "LNCCLoss",
    "available_backends",
    "bending_energy_loss",
    "dvf_mse_loss",
    "dvf_supervision_loss",
    "explain",
    "gradient_smoothness_loss",
    "integrations",
    "library",
    "lncc_loss",
    "use_backend",
]

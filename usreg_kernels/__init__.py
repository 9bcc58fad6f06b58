"""Fused losses and warps for image registration, with exact gradients; the fastest backend that the machine can run.

from usreg_kernels import LNCCLoss
loss = LNCCLoss(kernel_size=9)(warped, fixed)
"""

from importlib.metadata import PackageNotFoundError, version

from usreg_kernels import integrations, library, optim
from usreg_kernels.dispatch import BackendError, available_backends, use_backend
from usreg_kernels.fields import (
    compose_ddf,
    gaussian_smooth,
    integrate_velocity,
    jacobian_determinant,
    mind_ssc,
    warp,
)
from usreg_kernels.functional import (
    bending_energy_loss,
    dvf_mse_loss,
    dvf_supervision_loss,
    explain,
    folding_loss,
    gradient_smoothness_loss,
    lncc_loss,
    mind_loss,
    mutual_information_loss,
)
from usreg_kernels.modules import (
    BendingEnergyLoss,
    DVFMSELoss,
    DVFSupervisionLoss,
    FoldingLoss,
    GradientSmoothnessLoss,
    LNCCLoss,
    MINDLoss,
    MutualInformationLoss,
)

try:
    __version__ = version("usreg")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "BackendError",
    "BendingEnergyLoss",
    "DVFMSELoss",
    "DVFSupervisionLoss",
    "FoldingLoss",
    "GradientSmoothnessLoss",
    "LNCCLoss",
    "MINDLoss",
    "MutualInformationLoss",
    "__version__",
    "available_backends",
    "bending_energy_loss",
    "compose_ddf",
    "dvf_mse_loss",
    "dvf_supervision_loss",
    "explain",
    "folding_loss",
    "gaussian_smooth",
    "gradient_smoothness_loss",
    "integrate_velocity",
    "integrations",
    "jacobian_determinant",
    "library",
    "lncc_loss",
    "mind_loss",
    "mind_ssc",
    "mutual_information_loss",
    "optim",
    "use_backend",
    "warp",
]

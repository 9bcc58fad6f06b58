"""Losses by name: the registry, and the built-in losses.

A loss of your own: register it in a module named under the config key ``plugins`` (``from usreg.losses import
register_loss``), or in a file of this folder (``from .utils import register_loss``) imported at the end of this one.
"""

from __future__ import annotations

from . import (
    composed,
    dice_smooth,
    lncc,
    lncc_dice,
    lncc_dvf,
    lncc_smooth,
    mind,
    mind_dice,
    mse,
    mutual_information,
    terms,
)
from .composed import SumLoss
from .dice_smooth import DiceSmoothLoss
from .lncc import LNCCImageLoss
from .lncc_dice import LNCCWithDice
from .lncc_dvf import LNCCWithDVFSupervision
from .lncc_smooth import LNCCWithSmoothness
from .mind import MINDImageLoss
from .mind_dice import MINDWithDice
from .mse import MSEImageLoss
from .mutual_information import MutualInformationImageLoss
from .terms import FieldLoss, LabelDiceLoss
from .utils import LOSS_REGISTRY, build_loss, register_loss, validate_smoothing_params

__all__ = [
    "LOSS_REGISTRY",
    "DiceSmoothLoss",
    "FieldLoss",
    "LNCCImageLoss",
    "LNCCWithDVFSupervision",
    "LNCCWithDice",
    "LNCCWithSmoothness",
    "LabelDiceLoss",
    "MINDImageLoss",
    "MINDWithDice",
    "MSEImageLoss",
    "MutualInformationImageLoss",
    "SumLoss",
    "build_loss",
    "composed",
    "dice_smooth",
    "lncc",
    "lncc_dice",
    "lncc_dvf",
    "lncc_smooth",
    "mind",
    "mind_dice",
    "mse",
    "mutual_information",
    "register_loss",
    "terms",
    "validate_smoothing_params",
]

LOSS_REGISTRY.mark_builtins()
# Modules of your own go below this line, where they may also replace a built-in of the same name.

"""Registration networks by name: the registry, the built-in models, and the warp they share.

A model of your own: register it in a module named under the config key ``plugins`` (``from usreg.models import
register_model``), or in a file of this folder imported at the end of this one.
"""

from __future__ import annotations

from . import globalnet, localnet, transmorph, unet, voxelmorph
from .base import RegistrationModel
from .utils import MODEL_REGISTRY, build_model, register_model
from .warp import warp

__all__ = [
    "MODEL_REGISTRY",
    "RegistrationModel",
    "build_model",
    "globalnet",
    "localnet",
    "register_model",
    "transmorph",
    "unet",
    "voxelmorph",
    "warp",
]

MODEL_REGISTRY.mark_builtins()
# Modules of your own go below this line, where they may also replace a built-in of the same name.

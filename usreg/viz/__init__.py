"""Pictures: the result of a registration, and the course of a training run. Nothing here touches pyplot's state."""

from __future__ import annotations

from .curves import save_curves
from .pictures import save_registration_figure

__all__ = ["save_curves", "save_registration_figure"]

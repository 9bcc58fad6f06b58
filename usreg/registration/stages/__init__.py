"""The stages of a registration: their settings, what runs them, and the algorithms themselves."""

from __future__ import annotations

from .settings import RegisterConfig, Stage, load_stages

__all__ = ["RegisterConfig", "Stage", "load_stages"]

"""Reading files: volumes, landmarks and the manifest of ``custom_dataset``."""

from __future__ import annotations

from .images import VolumeHeader, read_header, read_volume
from .landmarks import Landmarks, read_landmarks
from .manifest import Case, read_manifest

__all__ = ["Case", "Landmarks", "VolumeHeader", "read_header", "read_landmarks", "read_manifest", "read_volume"]

"""Making a manifest from files' names, and checking one: what ``python -m usreg.manifest`` does."""

from __future__ import annotations

from .checking import CaseReport, check_manifest
from .making import Made, make_manifest
from .table import as_table

__all__ = ["CaseReport", "Made", "as_table", "check_manifest", "make_manifest"]

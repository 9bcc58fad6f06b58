"""Evaluation of trained networks, and of registration without one, on lists of cases."""

from __future__ import annotations

from .function import evaluate
from .results import CaseResult, Results, Summary

__all__ = ["CaseResult", "Results", "Summary", "evaluate"]

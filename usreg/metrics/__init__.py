"""Metrics: importing this package registers the built-in ones; :func:`evaluate_metrics` computes all of them."""

from __future__ import annotations

# Metrics are listed in the order of their registration.
# isort: off
from . import intensity
from . import field
from . import overlap
from . import surface
from . import landmarks

# isort: on
from .utils import (
    METRIC_REGISTRY,
    MetricTable,
    evaluate_metrics,
    identity_inputs,
    missing_inputs,
    model_inputs,
    register_metric,
    values_of,
)

METRIC_REGISTRY.mark_builtins()

__all__ = [
    "METRIC_REGISTRY",
    "MetricTable",
    "evaluate_metrics",
    "field",
    "identity_inputs",
    "intensity",
    "landmarks",
    "missing_inputs",
    "model_inputs",
    "overlap",
    "register_metric",
    "surface",
    "values_of",
]

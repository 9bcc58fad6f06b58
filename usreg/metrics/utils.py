"""The metric registry, evaluation of all metrics on a batch, and the table that averages them over a validation run."""

from __future__ import annotations

import inspect
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import torch

from ..errors import ConfigError
from ..models.warp import warp
from ..registry import Registry

logger = logging.getLogger(__name__)

Metric: TypeAlias = Callable[..., torch.Tensor]

METRIC_REGISTRY: Registry[torch.Tensor] = Registry("metric")
register_metric = METRIC_REGISTRY.register
"""Decorator that adds a metric. Its parameter names say its inputs: ``moving``, ``fixed``, ``warped``, ``ddf``,
``warped_label`` and every key of the batch (``dvf``, ``moving_label``, ``fixed_label``, ``fixed_mask``,
``fixed_points``, ``moving_points``, ``affine``, ``moving_affine``...). A parameter with a default may be missing. It
returns one value per sample (B,), or one per sample and label (B, L), NaN where there is none."""


def model_inputs(batch: Mapping[str, Any], warped: torch.Tensor, ddf: torch.Tensor) -> dict[str, Any]:
    """The inputs of the metrics for a predicted field.

    Moving labels are warped with trilinear interpolation; the metrics take as inside what exceeds 0.5, which follows
    the boundary below a voxel, where nearest-neighbour warping would snap to whole voxels.

    Args:
        batch: a collated batch, see :mod:`usreg.datasets.utils`.
        warped: (B, 1, D, H, W), the moving image warped with ``ddf``.
        ddf: (B, 3, D, H, W) in voxels, channels z, y, x, pull-back (fixed to moving).

    Returns:
        The batch, ``warped``, ``ddf`` and, for a batch with labels, ``warped_label`` (B, L, D, H, W); floating-point
        tensors are float32.
    """
    inputs = {key: _single(value) for key, value in batch.items()}
    inputs["warped"], inputs["ddf"] = _single(warped), _single(ddf)
    if "moving_label" in inputs:
        inputs["warped_label"] = warp(inputs["moving_label"], inputs["ddf"], "bilinear", "border")
    return inputs


def identity_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the metrics for no registration: a field of zeros, so that nothing moves."""
    moving = batch["moving"]
    inputs = {key: _single(value) for key, value in batch.items()}
    inputs["warped"] = inputs["moving"]
    inputs["ddf"] = torch.zeros(len(moving), 3, *moving.shape[2:], device=moving.device)
    if "moving_label" in inputs:
        inputs["warped_label"] = inputs["moving_label"]
    return inputs


def _single(value: Any) -> Any:
    """Floating-point tensors without gradient and in float32, whatever precision the model ran in."""
    if isinstance(value, torch.Tensor):
        return value.detach().float() if value.is_floating_point() else value.detach()
    return value


def missing_inputs(name: str, inputs: Mapping[str, Any]) -> list[str]:
    """The inputs that a metric needs and that are absent: not there, or None."""
    parameters = METRIC_REGISTRY.accepted(name).parameters
    return [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and inputs.get(key) is None]


@torch.no_grad()
def evaluate_metrics(inputs: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, torch.Tensor | None]:
    """Every registered metric on one batch, but for those to do without.

    Returns:
        By metric, the values (B,) or, per label, (B, L), NaN where there is no value; None for a metric whose inputs
        are absent.
    """
    values: dict[str, torch.Tensor | None] = {}
    samples = next((len(value) for value in inputs.values() if isinstance(value, torch.Tensor)), 0)
    for name, metric in METRIC_REGISTRY.items():
        if name in without:
            continue
        if missing_inputs(name, inputs):
            values[name] = None
            continue
        wanted = METRIC_REGISTRY.accepted(name).parameters
        try:
            value = metric(**{key: inputs[key] for key in wanted if inputs.get(key) is not None})
        except Exception:
            logger.error("the metric '%s' fails:", name)
            raise
        values[name] = _checked(name, value, samples)
    return values


def _checked(name: str, value: Any, samples: int) -> torch.Tensor:
    """What a metric returned, if it is a value per sample, or one per sample and label."""
    if isinstance(value, torch.Tensor) and value.dim() in (1, 2) and len(value) == samples:
        return value
    given = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
    raise ConfigError(
        f"the metric '{name}' returned {given} for a batch of {samples}; it must return one value per sample, a tensor "
        f"({samples},), or one per sample and label, ({samples}, L), with NaN where there is none"
    )


def values_of(values: Mapping[str, torch.Tensor | None], number: int) -> dict[str, float]:
    """The metrics of one sample of :func:`evaluate_metrics`, by name; absent ones are left out.

    A metric per label is the mean over the labels that have a value; where there are several labels, each has also a
    value of its own: ``dice``, ``dice_label0``, ``dice_label1``... NaN where there is none.
    """
    found = {}
    for name, value in values.items():
        if value is None:
            continue
        labels = value[number].detach().reshape(-1).cpu().double()
        found[name] = float(labels.nanmean())
        if len(labels) > 1:
            found |= {f"{name}_label{i}": float(label) for i, label in enumerate(labels)}
    return found


class MetricTable:
    """Averages metrics over the samples of a validation run, in columns such as ``"model"`` and ``"identity"``.

    A metric per label is averaged over a sample's labels first, then over the samples; where there are several labels,
    each has also a row of its own: ``dice``, ``dice_label0``, ``dice_label1``... NaN, a sample without a value, does
    not count. A row without any value is None: absent, not 0.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))

    def update(self, column: str, values: Mapping[str, torch.Tensor | None]) -> None:
        """Add a batch's values, as :func:`evaluate_metrics` returns them. Nothing is copied from the device yet."""
        for name, value in values.items():
            rows = self._values[column][name]
            if value is not None:
                rows.extend(value.detach().reshape(len(value), -1))

    def means(self, column: str) -> dict[str, float | None]:
        """The mean of each metric over all samples added so far, None where it is absent."""
        means: dict[str, float | None] = {}
        for name, samples in self._values[column].items():
            per_label = _pad_with_nan(samples)  # (samples, L)
            means[name] = _mean(per_label.nanmean(dim=1))
            if per_label.shape[1] > 1:
                means |= {f"{name}_label{i}": _mean(label) for i, label in enumerate(per_label.unbind(dim=1))}
        return means

    def counts(self, column: str) -> dict[str, int]:
        """How many values each metric has over all samples added so far; one per label where it is one per label."""
        return {
            name: sum(int((~sample.isnan()).sum()) for sample in samples)
            for name, samples in self._values[column].items()
        }


def _pad_with_nan(samples: list[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths as one float64 tensor (samples, L) on the CPU."""
    if not samples:
        return torch.full((1, 1), torch.nan, dtype=torch.float64)
    padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=torch.nan)
    return padded.cpu().double()


def _mean(values: torch.Tensor) -> float | None:
    mean = float(values.nanmean())
    return None if mean != mean else mean

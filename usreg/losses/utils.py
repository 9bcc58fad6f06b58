"""The loss registry, and what several losses share."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ConfigError
from ..registry import Registry, as_number
from .call import FunctionLoss

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., nn.Module])

Term = tuple[float, Callable[[], torch.Tensor]]
"""A weight, and what computes the value that it multiplies."""

MIN_SMOOTH_NR = 1e-4
MIN_SMOOTH_DR = 1e-2
DEFAULT_SMOOTHING = (0.0, 1e-5)
"""``smooth_nr`` and ``smooth_dr`` of a config that gives neither; they are raised without a message."""

LOSS_REGISTRY: Registry[nn.Module] = Registry("loss")
"""Factories by name: each takes the keys of the config's ``loss`` section and returns an ``nn.Module``."""


def register_loss(name: str) -> Callable[[F], F]:
    """Decorator that registers a loss factory under ``name``; see :meth:`usreg.registry.Registry.register`."""
    return LOSS_REGISTRY.register(name)


def build_loss(cfg: Mapping[str, Any], **defaults: Any) -> nn.Module:
    """Build the loss of a config section: ``name``, and the factory's keys (``params`` is merged under them).

    Args:
        cfg: the section.
        defaults: keys for the factories that name them, where the section does not set them.

    Returns:
        A module called as ``loss(warped, fixed)`` or ``loss(warped, fixed, pred_dvf, gt_dvf)``, as its ``forward``
        says, images (B, 1, D, H, W), fields (B, 3, D, H, W) in voxels; it returns a scalar to minimise.

    Raises:
        ConfigError: an unknown name, a key or value that the factory refuses, a factory that returns no loss.
    """
    loss: Any = LOSS_REGISTRY.build(cfg, **defaults)
    if isinstance(loss, nn.Module):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(loss)
    given = f"the class {loss.__name__}" if isinstance(loss, type) else repr(loss)
    raise ConfigError(
        f"the factory of the loss '{cfg.get('name')}' returned {given}; it must return a module, or a function of "
        "(warped, fixed). Does it end with 'return'?"
    )


def validate_smoothing_params(smooth_nr: float | str, smooth_dr: float | str) -> tuple[float, float]:
    """Raise LNCC's smoothing terms to what is safe in an LNCC that computes in half precision.

    A smaller ``smooth_dr`` divides by (nearly) zero where an image is constant: its square vanishes in float16. With
    both terms at these values a window in which either image is constant counts as a perfect match.

    Args:
        smooth_nr, smooth_dr: numbers, or numbers as text, which YAML 1.1 makes of ``1e-4``.

    Returns:
        ``(smooth_nr, smooth_dr)``, at least 1e-4 and 1e-2. A change is logged, once for each pair of values.

    Raises:
        ValueError: a value that is not a finite number.
    """
    smooth_nr, smooth_dr = as_number("smooth_nr", smooth_nr), as_number("smooth_dr", smooth_dr)
    if not (math.isfinite(smooth_nr) and math.isfinite(smooth_dr)):
        raise ValueError(f"smooth_nr = {smooth_nr} and smooth_dr = {smooth_dr} must be finite numbers")
    raised = max(smooth_nr, MIN_SMOOTH_NR), max(smooth_dr, MIN_SMOOTH_DR)
    if raised != (smooth_nr, smooth_dr):
        _log_raised(smooth_nr, smooth_dr, *raised)
    return raised


@functools.cache
def _log_raised(smooth_nr: float, smooth_dr: float, raised_nr: float, raised_dr: float) -> None:
    logger.warning(
        "LNCC: smooth_nr %g and smooth_dr %g are raised to %g and %g, which are safe in half precision",
        *(smooth_nr, smooth_dr, raised_nr, raised_dr),
    )


def to_common_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in one dtype: under mixed precision a loss gets float16, bfloat16 and float32 side by side."""
    common = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return tuple(tensor.to(common) for tensor in tensors)


def to_float32(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors in one dtype of at least float32, for sums over a volume, which overflow in float16."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in to_common_dtype(*tensors))


def check_weights(**weights: float) -> None:
    """Raise ValueError for a weight that is negative or not finite."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} is {weight}; it must be a finite number of 0 or more")


def weighted_sum(warped: torch.Tensor, *terms: Term) -> torch.Tensor:
    """The sum of ``weight * term()``; a term of weight 0 is not computed.

    Without any term the result is 0 and still depends on ``warped``, so that ``backward`` works.
    """
    total = None
    for weight, term in terms:
        if weight != 0:
            value = weight * term()
            total = value if total is None else total + value
    return 0.0 * to_float32(warped)[0].sum() if total is None else total


def soft_dice(
    pred: torch.Tensor, target: torch.Tensor, dim: tuple[int, ...], smooth_nr: float, smooth_dr: float | None = None
) -> torch.Tensor:
    """Soft Dice ``(2 sum(p t) + nr) / (sum(p) + sum(t) + dr)`` over ``dim``, in float32; 1 is perfect overlap.

    Args:
        pred: values in [0, 1], any shape.
        target: the same shape.
        dim: the axes to sum over.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator, to keep the quotient finite where both are empty; ``smooth_nr`` where None.
    """
    pred, target = to_float32(pred, target)
    below = smooth_nr if smooth_dr is None else smooth_dr
    return (2.0 * (pred * target).sum(dim) + smooth_nr) / (pred.sum(dim) + target.sum(dim) + below)

"""Optimizers of torch by name, with the keys that each takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..errors import ConfigError
from ..registry import accepted_by

UNFIT = {"LBFGS": "it asks for several passes over a batch in a step", "SparseAdam": "it takes sparse gradients only"}
"""Optimizers of torch that cannot train a network here, and why."""

SET_ELSEWHERE = ("params", "lr", "weight_decay")
"""Arguments of an optimizer that are keys of their own, or the weights."""


def optimizer_names() -> list[str]:
    """The names of the optimizers that can train."""
    classes = inspect.getmembers(torch.optim, inspect.isclass)
    return [
        name
        for name, found in classes
        if issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer and name not in UNFIT
    ]


def optimizer_name(given: str) -> str:
    """The name as torch writes it, of one in any case.

    Raises:
        ConfigError: there is no such optimizer, or none that can train here.
    """
    for name, reason in UNFIT.items():
        if given.lower() == name.lower():
            raise ConfigError(f"{name} cannot train here: {reason}; take Adam, or another of {_listed()}")
    found = {name.lower(): name for name in optimizer_names()}
    if given.lower() not in found:
        near = difflib.get_close_matches(given.lower(), found, n=1)
        guess = f" Did you mean '{found[near[0]]}'?" if near else ""
        raise ConfigError(f"{given!r} is no optimizer of torch.optim.{guess} Valid: {_listed()}")
    return found[given.lower()]


def _listed() -> str:
    return ", ".join(optimizer_names())


def optimizer_options(name: str) -> list[str]:
    """The keys of an optimizer beside ``lr`` and ``weight_decay``."""
    return [key for key in accepted_by(getattr(torch.optim, name)).parameters if key not in SET_ELSEWHERE]


def build_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of the weights.

    Args:
        name: as torch writes it.
        parameters: the weights.
        lr: learning rate.
        weight_decay: passed on where the optimizer has it.
        options: its other keys; lists become tuples, as torch wants them.

    Raises:
        ConfigError: the optimizer refuses a value, or has no weight decay and some is given.
    """
    factory = getattr(torch.optim, name)
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if "weight_decay" in accepted_by(factory).parameters:
        arguments["weight_decay"] = weight_decay
    elif weight_decay:
        raise ConfigError(f"optimizer.weight_decay is {weight_decay:g}, and {name} has none; leave it out")
    try:
        built: torch.optim.Optimizer = factory(parameters, lr=lr, **arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer {name} with {arguments}: {error}") from error
    return built

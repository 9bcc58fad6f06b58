"""Checks of a configuration. Each error names the key, where it was given and what is valid."""

from __future__ import annotations

import logging
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from inspect import Parameter
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import ConfigError
from ..registry import Registry, did_you_mean
from ..spatial import whole_size
from .plugins import registry_of
from .schema import Config, OptimizerConfig

logger = logging.getLogger(__name__)

AMP_DTYPES = ("float16", "bfloat16")
LARGEST_STABLE_LR = 1e-3
NO_FOLDING = 0.25
"""Displacement of control points, in their distances, at which a cubic B-spline in 3-D is far from folding, which may
begin at 1 / 2.48 (Choi and Lee, Graphical Models 62, 2000)."""

PROVIDED = {"dataset": ("split", "image_size"), "model": ("image_size", "image_channels", "spatial_dims"), "loss": ()}
"""Arguments that the program passes to the factories of a kind, so that a section need not give them."""
RESERVED = ("split",)
"""Those of them that a section must not give."""


@dataclass(frozen=True)
class Source:
    """Where each key was given: the file, or the command line."""

    file: str
    overridden: frozenset[str] = frozenset()

    def of(self, key: str) -> str:
        """``"on the command line"`` for a key that an override set, or its section; else ``"in FILE"``."""
        return "on the command line" if self.is_overridden(key) else f"in {self.file}"

    def is_overridden(self, key: str) -> bool:
        """Whether an override set the key, a part of it, or the whole section that it is in."""
        return any(
            key == given or key.startswith((f"{given}.", f"{given}[")) or given.startswith((f"{key}.", f"{key}["))
            for given in self.overridden
        )


def unknown_key(key: str, owner: str, valid: Iterable[str], source: Source) -> ConfigError:
    """The error for a key that nothing reads."""
    last = key.rpartition(".")[2]
    names = ", ".join(sorted(valid)) or "none"
    return ConfigError(f"{key} {source.of(key)} is not a key of {owner}.{did_you_mean(last, valid)} Valid: {names}")


def missing_key(key: str, wanted: Any, source: Source) -> ConfigError:
    """The error for a key without a default that was not given."""
    return ConfigError(
        f"{key} is missing in {source.file}: it needs {_describe(wanted)}. (Or on the command line: {key}=...)"
    )


def checked_mapping(
    schema: type, given: Mapping[str, Any], source: Source, prefix: str = "", partial: bool = False
) -> Any:
    """The keys of a section, checked against a dataclass and converted to its types.

    Args:
        schema: a dataclass; its fields may be dataclasses too.
        given: the section's keys and values, plain containers.
        prefix: the section's own key with a dot, for messages; empty at the top level.
        partial: accept that keys without a default are missing.

    Returns:
        The typed OmegaConf node.
    """
    node = OmegaConf.structured(schema)
    wanted = typing.get_type_hints(schema)
    for name, value in given.items():
        key = f"{prefix}{name}"
        if name not in wanted:
            raise unknown_key(key, f"the section '{prefix[:-1]}'" if prefix else "the configuration", wanted, source)
        if is_dataclass(wanted[name]) and isinstance(value, Mapping):
            node[name] = checked_mapping(wanted[name], value, source, f"{key}.", partial)
        else:
            _assign(node, name, value, wanted[name], key, source)
    for name in wanted:
        if partial or not OmegaConf.is_missing(node, name):
            if not partial and is_dataclass(wanted[name]) and name not in given:
                checked_mapping(wanted[name], {}, source, f"{prefix}{name}.")
            continue
        raise missing_key(f"{prefix}{name}", wanted[name], source)
    return node


def checked_component(key: str, section: Any, registry: Registry[Any], source: Source) -> dict[str, Any]:
    """A component's section, ``params`` merged, checked against the signature of the factory that its name refers to.

    Keys that only a ``**_`` of the factory would swallow are unknown. Types are checked where the signature annotates
    them with something that OmegaConf can express; the factory itself checks the rest when it is called.
    """
    try:
        name, arguments = registry.arguments(section)
        accepted = registry.accepted(name)
    except ConfigError as error:
        raise ConfigError(f"{key} {source.of(f'{key}.name')}: {error}") from error
    parameters = {name: p for name, p in accepted.parameters.items() if name not in RESERVED}
    wanted = {name: _expressible(parameter) for name, parameter in parameters.items()}
    node = OmegaConf.structured(make_dataclass(name, [(n, t, field(default=MISSING)) for n, t in wanted.items()]))
    checked: dict[str, Any] = {"name": name}
    for argument, value in arguments.items():
        if value == MISSING:
            continue
        full = f"{key}.{argument}" if argument not in (section.get("params") or ()) else f"{key}.params.{argument}"
        if argument in wanted:
            _assign(node, argument, value, wanted[argument], full, source)
            checked[argument] = _plain(node, argument, value)
        elif accepted.open and argument not in RESERVED:
            checked[argument] = value
        else:
            raise unknown_key(full, f"the {registry.kind} '{name}'", ["name", *wanted], source)
    if registry.kind == "loss" and name == "sum":
        checked["terms"] = [
            _checked_term(f"{key}.terms[{number}]", term, registry, source)
            for number, term in enumerate(checked.get("terms") or [])
        ]
    for argument in accepted.required:
        if argument not in checked and argument not in PROVIDED.get(registry.kind, ()):
            raise missing_key(f"{key}.{argument}", wanted[argument], source)
    return checked


def _checked_term(key: str, section: Any, registry: Registry[Any], source: Source) -> dict[str, Any]:
    """A term of a sum of losses, which is a loss's section and a weight."""
    if not isinstance(section, dict):
        raise ConfigError(f"{key} {source.of(key)} is {_shown(section)}; it must be a section with a 'name'")
    weight = section.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ConfigError(f"{key}.weight {source.of(key)} is {_shown(weight)}; it must be a number of 0 or more")
    rest = {name: value for name, value in section.items() if name != "weight"}
    return {**checked_component(key, rest, registry, source), "weight": weight}


def drop_keys_of_replaced(
    key: str, given: dict[str, Any], from_file: Mapping[str, Any], registry: Registry[Any], source: Source
) -> None:
    """After ``loss.name=other`` on the command line: remove the file's keys that ``other`` does not have, in place."""
    section, before = given.get(key), from_file.get(key)
    if not isinstance(section, dict) or not isinstance(before, Mapping) or key in source.overridden:
        return
    name = section.get("name")
    if not isinstance(name, str) or name == before.get("name") or name not in registry:
        return
    known = registry.accepted(name).parameters
    nested = section.get("params")
    for keys, prefix in ((section, key), (nested if isinstance(nested, dict) else {}, f"{key}.params")):
        for other in [k for k in keys if k not in ("name", "params")]:
            full = f"{prefix}.{other}"
            if source.is_overridden(full):
                continue
            if other not in known:
                del keys[other]
            what = "stays" if other in known else "is dropped: there is no such key"
            logger.warning("%s.name=%s on the command line: %s %s %s", key, name, full, source.of(full), what)


def gather_optimizer_options(given: dict[str, Any], source: Source) -> None:
    """Move the keys that only the chosen optimizer has into ``optimizer.options``, in place; its name is normalised.

    Raises:
        ConfigError: there is no such optimizer, or it has no such key.
    """
    from ..training.optimizers import optimizer_name, optimizer_options

    section = given.get("optimizer")
    if not isinstance(section, dict):
        return
    fixed = [f.name for f in fields(OptimizerConfig)]
    name = section.get("name", OptimizerConfig.name)
    if not isinstance(name, str):
        return
    try:
        section["name"] = optimizer_name(name)
    except ConfigError as error:
        raise ConfigError(f"optimizer.name {source.of('optimizer.name')}: {error}") from error
    options = section.get("options") or {}
    if not isinstance(options, dict):
        return
    own = optimizer_options(section["name"])
    for prefix, keys in (("optimizer", [k for k in section if k not in fixed]), ("optimizer.options", list(options))):
        for key in keys:
            if key not in own:
                raise unknown_key(f"{prefix}.{key}", f"the optimizer {section['name']}", [*fixed[:-1], *own], source)
    section["options"] = {**options, **{key: section.pop(key) for key in list(section) if key not in fixed}}


def check_values(config: Config, source: Source) -> None:
    """Values that no type can rule out; normalises ``training.resume``, and ``image_size`` to three axes."""
    optimizer, training = config.optimizer, config.training

    def require(good: bool, key: str, value: Any, valid: str) -> None:
        if not good:
            raise ConfigError(f"{key} {source.of(key)} is {_shown(value)}; it must be {valid}")

    size = config.image_size
    valid = "three positive integers [D, H, W], or two of slices [H, W]"
    require(len(size) in (2, 3) and min(size) >= 1, "image_size", size, valid)
    config.image_size = list(whole_size(size))
    require(0 < optimizer.lr < math.inf, "optimizer.lr", optimizer.lr, "a finite number above 0, such as 1e-4")
    require(0 <= optimizer.weight_decay < math.inf, "optimizer.weight_decay", optimizer.weight_decay, "0 or more")
    least_of = {"epochs": 1, "batch_size": 1, "num_workers": 0, "val_every": 0, "seed": 0, "accumulate": 1, "keep": 0}
    for key, least in least_of.items():
        value = getattr(training, key)
        require(value >= least, f"training.{key}", value, f"an integer of at least {least}")
    require(training.amp_dtype in AMP_DTYPES, "training.amp_dtype", training.amp_dtype, " or ".join(AMP_DTYPES))
    for key in ("clip_grad_norm", "amp_init_scale", "max_steps"):
        value = getattr(training, key)
        require(value is None or 0 < value < math.inf, f"training.{key}", value, "a number above 0, or null for none")
    require(training.ema is None or 0 < training.ema < 1, "training.ema", training.ema, "between 0 and 1, as 0.999")
    require(training.patience is None or training.patience > 0, "training.patience", training.patience, "1 or more")
    require(bool(training.best), "training.best", training.best, "one metric or more, such as [val_loss, dice]")
    for name, every in training.metric_every.items():
        known = registry_of("metric")
        require(name in known, "training.metric_every", name, f"a metric: {', '.join(known)}")
        require(every >= 1, f"training.metric_every.{name}", every, "an integer of at least 1")
    changes = config.augmentation
    require(0 <= changes.probability <= 1, "augmentation.probability", changes.probability, "from 0 to 1")
    for key in ("rotation", "scaling", "translation", "deformation", "gamma", "noise_std"):
        require(0 <= getattr(changes, key) < math.inf, f"augmentation.{key}", getattr(changes, key), "0 or more")
    require(set(changes.flip) <= {0, 1, 2}, "augmentation.flip", changes.flip, "a list of axes: 0 (z), 1 (y), 2 (x)")
    folds = changes.deformation > changes.deformation_spacing * NO_FOLDING or changes.deformation_spacing <= 0
    valid = f"at least {1 / NO_FOLDING:g} times augmentation.deformation, so that nothing folds, and above 0"
    require(not folds, "augmentation.deformation_spacing", changes.deformation_spacing, valid)
    if training.resume is not None and training.init_from is not None and training.resume != "auto":
        raise ConfigError("training.resume goes on with a run, training.init_from begins another one: give one of them")
    if training.resume is not None and training.resume.lower() in ("", "none"):
        training.resume = None
    if config.device is not None:
        devices = available_devices()
        valid = f"a device of this machine: {', '.join(devices)}"
        require(_on_this_machine(config.device, devices), "device", config.device, valid)
    if optimizer.lr > LARGEST_STABLE_LR:
        logger.warning(
            "optimizer.lr = %g is above %g: registration networks often diverge there", optimizer.lr, LARGEST_STABLE_LR
        )


def available_devices() -> list[str]:
    """The devices of this machine by the names that the key ``device`` takes: ``cpu``, ``cuda``, ``cuda:0``..."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    kind = accelerator.type
    return ["cpu", kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]


def _on_this_machine(device: str, devices: Sequence[str]) -> bool:
    try:
        return str(torch.device(device)) in devices
    except RuntimeError:  # not a device name at all
        return False


def _expressible(parameter: Parameter) -> Any:
    """The parameter's type as OmegaConf knows it: sequences become lists, what it can't express becomes Any."""
    wanted = _with_lists(parameter.annotation)
    try:
        OmegaConf.structured(make_dataclass("Probe", [("value", wanted, field(default=MISSING))]))
    except (OmegaConfBaseException, TypeError, ValueError):
        return Any
    return wanted


def _with_lists(wanted: Any) -> Any:
    """The type with ``list`` for ``Sequence``, in unions too."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Sequence or origin is Sequence:
        return list[arguments] if arguments else list  # type: ignore[valid-type]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_with_lists(argument) for argument in arguments)]  # noqa: UP007
    return wanted


def _assign(node: DictConfig, name: str, value: Any, wanted: Any, key: str, source: Source) -> None:
    try:
        OmegaConf.update(node, name, value, merge=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key} {source.of(key)} is {_shown(value)}; it must be {_describe(wanted)}") from error


def _plain(node: DictConfig, name: str, given: Any) -> Any:
    """The converted value, if YAML can hold it; else the given one (a path stays text, a tuple a list)."""
    value = node[name]
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return value if isinstance(value, (bool, int, float, str, list, dict)) else given


def _shown(value: Any) -> str:
    """A value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _describe(wanted: Any) -> str:
    """A type in words: ``an integer``, ``a list of numbers, or null``."""
    plain = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        dict: "a section of keys",
        list: "a list",
        Any: "a value",
    }
    if wanted in plain:
        return plain[wanted]
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is dict:
        return plain[dict]
    if origin in (list, tuple):
        element = (
            {int: " of integers", float: " of numbers", str: " of texts"}.get(arguments[0], "") if arguments else ""
        )
        length = f" of length {len(arguments)}" if origin is tuple and Ellipsis not in arguments else ""
        return f"a list{element}{length}"
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if arguments:  # a union
        return " or ".join(_describe(argument) for argument in arguments)
    return "a section of keys" if is_dataclass(wanted) else getattr(wanted, "__name__", str(wanted))

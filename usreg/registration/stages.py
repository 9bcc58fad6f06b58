"""The stages of a registration as a config file has them, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..config.checks import Source, checked_component, checked_mapping
from ..config.loading import apply_overrides, read_yaml
from ..config.plugins import import_plugins
from ..errors import ConfigError
from ..losses import LOSS_REGISTRY

LINEAR = ("translation", "rigid", "affine")
DEFORMABLE = ("greedy",)
STAGES = LINEAR + DEFORMABLE
STARTS = ("headers", "centres")


@dataclass
class LinearStage:
    """A rigid or affine stage; see :class:`usreg.registration.Linear`."""

    stage: str
    levels: list[float] = field(default_factory=lambda: [8.0, 4.0])
    iterations: list[int] = field(default_factory=lambda: [100, 50])
    loss: dict[str, Any] = field(default_factory=dict)
    step: float = 0.5
    tolerance: float = 1e-6
    seconds: float | None = None


@dataclass
class GreedyStage:
    """A deformable stage; see :class:`usreg.registration.Greedy`."""

    stage: str
    levels: list[float] = field(default_factory=lambda: [4.0, 2.0, 1.0])
    iterations: list[int] = field(default_factory=lambda: [100, 70, 30])
    loss: dict[str, Any] = field(default_factory=dict)
    step: float = 0.5
    sigma_gradient: float = 1.0
    sigma_field: float = 0.5
    tolerance: float = 1e-7
    seconds: float | None = None


@dataclass
class RegisterConfig:
    """What ``usreg.register`` does.

    Attributes:
        start: ``headers`` takes both images where their headers say they are; ``centres`` first brings the centres of
            their boxes together.
        quantiles: of the intensities that become 0 and 1; what lies beyond is cut off.
        loss: of each stage that has none of its own.
        stages: one after another.
        device: ``cpu``, ``cuda``...; null for the fastest there is.
        plugins: modules to import, which register losses of your own.
    """

    start: str = "headers"
    quantiles: list[float] = field(default_factory=lambda: [0.005, 0.995])
    loss: dict[str, Any] = field(default_factory=dict)
    stages: list[Any] = field(default_factory=list)
    device: str | None = None
    plugins: list[str] = field(default_factory=list)


Stage = LinearStage | GreedyStage


def checked_stages(config: RegisterConfig, source: Source) -> list[Stage]:
    """The stages of a config, each with a loss.

    Raises:
        ConfigError: an unknown stage, key or loss; numbers that do not fit; no stage at all.
    """
    if config.start not in STARTS:
        raise ConfigError(f"start {source.of('start')} is {config.start!r}; it must be one of {', '.join(STARTS)}")
    low, high = config.quantiles if len(config.quantiles) == 2 else (1.0, 0.0)
    if not 0 <= low < high <= 1:
        raise ConfigError(
            f"quantiles {source.of('quantiles')} is {list(config.quantiles)}; it must be two numbers from 0 to 1, the "
            "smaller one first"
        )
    if not config.stages:
        raise ConfigError(f"stages is empty in {source.file}; it needs one stage or more: {', '.join(STAGES)}")
    return [_stage(number, given, config, source) for number, given in enumerate(config.stages)]


def _stage(number: int, given: Any, config: RegisterConfig, source: Source) -> Stage:
    key = f"stages[{number}]"
    kind = given.get("stage") if isinstance(given, Mapping) else None
    if kind not in STAGES:
        raise ConfigError(f"{key}.stage {source.of(key)} is {kind!r}; it must be one of {', '.join(STAGES)}")
    schema = LinearStage if kind in LINEAR else GreedyStage
    node = checked_mapping(schema, given, source, f"{key}.")
    if len(node.levels) != len(node.iterations) or not node.levels:
        raise ConfigError(
            f"{key} {source.of(key)} has {len(node.levels)} levels and {len(node.iterations)} iterations; "
            "it needs a number of iterations for each level"
        )
    if min(node.levels) < 1 or min(node.iterations) < 0:
        raise ConfigError(f"{key} {source.of(key)}: levels are numbers of at least 1, iterations of at least 0")
    for name in ("step", "sigma_gradient", "sigma_field", "seconds"):
        value = node.get(name)
        if value is not None and not (0 <= value < math.inf and (value > 0 or name.startswith("sigma"))):
            valid = "0 or more" if name.startswith("sigma") else "above 0"
            raise ConfigError(f"{key}.{name} {source.of(f'{key}.{name}')} is {value}; it must be a number {valid}")
    loss = dict(node.loss) or dict(config.loss)
    if not loss:
        raise ConfigError(f"{key}.loss is missing in {source.file}: give the stage a loss, or all by the key loss")
    checked = checked_component(f"{key}.loss", loss, LOSS_REGISTRY, source)
    values = {name: _plain(node[name]) for name in node}
    return schema(**{**values, "loss": checked})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def load_stages(path: str | Path | None = None, overrides: Sequence[str] = ()) -> tuple[RegisterConfig, list[Stage]]:
    """Read a config file of a registration and check every key.

    Args:
        path: the file; None for the packaged default, ``usreg/configs/register.yaml``.
        overrides: ``key=value`` with dots and numbers for nested keys: ``stages[1].sigma_field=0.7``.

    Raises:
        ConfigError: naming the key, where it was given, and what would be valid.
    """
    file = Path(path) if path is not None else Path(str(resources.files("usreg") / "configs" / "register.yaml"))
    given, overridden = apply_overrides(read_yaml(file), overrides)
    source = Source(str(file), frozenset(overridden))
    node = checked_mapping(RegisterConfig, given, source)
    config: RegisterConfig = OmegaConf.to_object(node)  # type: ignore[assignment]
    import_plugins(config.plugins, [Path.cwd(), file.resolve().parent], source.of("plugins"))
    return config, checked_stages(config, source)

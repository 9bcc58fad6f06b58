"""The stages of a registration as a config file has them, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ...config.checks import Source, checked_component, checked_mapping
from ...config.loading import apply_overrides, read_yaml
from ...config.plugins import import_plugins
from ...datasets.reading import NAN_RULES
from ...errors import ConfigError
from ...losses import LOSS_REGISTRY
from ..inputs.intensities import Scaling

PLACING = ("centres", "moments")
LINEAR = ("translation", "rigid", "affine")
DEFORMABLE = ("greedy", "svf", "displacement")
STAGES = LINEAR + DEFORMABLE + PLACING
STARTS = ("headers", "centres", "moments", "landmarks")
LANDMARK_MODELS = ("rigid", "affine")
REGULARISERS = ("gradient", "bending")
HEADERS = ("sform", "qform")
MODALITIES = ("same", "different")
BETWEEN_MODALITIES = {"name": "mutual_information"}
"""The loss of linear stages that have none of their own, for two images of different modalities."""


@dataclass
class PlacingStage:
    """``centres`` or ``moments``, which bring the images together without iterations; see :mod:`.starts`."""

    stage: str
    axes: bool = False
    levels: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    loss: dict[str, Any] = field(default_factory=dict)


@dataclass
class IterativeStage:
    """What stages with iterations have in common."""

    stage: str
    levels: list[float] = field(default_factory=lambda: [4.0, 2.0, 1.0])
    iterations: list[int] = field(default_factory=lambda: [100, 70, 30])
    loss: dict[str, Any] = field(default_factory=dict)
    labels_weight: float | None = None
    step: float = 0.5
    tolerance: float = 1e-7
    seconds: float | None = None


@dataclass
class LinearStage(IterativeStage):
    """A rigid or affine stage; see :class:`usreg.registration.Linear`."""

    levels: list[float] = field(default_factory=lambda: [8.0, 4.0])
    iterations: list[int] = field(default_factory=lambda: [100, 50])
    tolerance: float = 1e-6


@dataclass
class GreedyStage(IterativeStage):
    """A deformable stage; see :class:`usreg.registration.Greedy`."""

    sigma_gradient: float = 1.0
    sigma_field: float = 0.5


@dataclass
class VelocityStage(IterativeStage):
    """A stationary velocity field; see :class:`usreg.registration.FreeField`."""

    sigma_gradient: float = 1.5
    sigma_field: float = 0.7
    integration_steps: int = 7
    regulariser: str = "gradient"
    weight: float = 0.0


@dataclass
class DisplacementStage(IterativeStage):
    """A displacement field with a weighted penalty; see :class:`usreg.registration.FreeField`."""

    step: float = 0.25
    sigma_gradient: float = 0.5
    sigma_field: float = 0.0
    regulariser: str = "gradient"
    weight: float = 2.0


@dataclass
class RegisterConfig:
    """What ``usreg.register`` does.

    Attributes:
        start: ``headers`` takes both images where their headers say they are; ``centres`` first brings the centres of
            their boxes together, ``moments`` their centres of mass, ``landmarks`` pairs of points.
        landmarks_model: of the start from landmarks: ``rigid`` or ``affine``.
        quantiles: of the intensities that become 0 and 1; what lies beyond is cut off.
        window: the intensities that become 0 and 1, in place of quantiles; for CT in Hounsfield units.
        fixed_quantiles, moving_quantiles, fixed_window, moving_window: the same for one of the images only.
        nan: what NaN in an image is: ``error``; ``fill``, the lowest value; ``mask``, the same and left out by a mask.
        header: which form of a NIfTI header counts where it has two: ``sform`` or ``qform``.
        modalities: of the two images: ``same``; or ``different``, such as CT and MR: linear stages that have no loss of
            their own then take ``mutual_information`` in place of ``loss``.
        loss: of each stage that has none of its own.
        labels_weight: of the labels' soft Dice beside the loss, for stages without a weight of their own.
        stages: one after another.
        seconds: the most that all stages together may take; null for any time.
        device: ``cpu``, ``cuda``...; null for the fastest there is.
        plugins: modules to import, which register losses of your own.
    """

    start: str = "headers"
    landmarks_model: str = "rigid"
    quantiles: list[float] = field(default_factory=lambda: [0.005, 0.995])
    window: list[float] | None = None
    fixed_quantiles: list[float] | None = None
    moving_quantiles: list[float] | None = None
    fixed_window: list[float] | None = None
    moving_window: list[float] | None = None
    nan: str = "error"
    header: str | None = None
    modalities: str = "same"
    loss: dict[str, Any] = field(default_factory=dict)
    labels_weight: float = 0.0
    stages: list[Any] = field(default_factory=list)
    seconds: float | None = None
    device: str | None = None
    plugins: list[str] = field(default_factory=list)

    def scaling(self, side: str) -> Scaling:
        """How the intensities of the ``"fixed"`` or the ``"moving"`` image become 0 to 1."""
        own = getattr(self, f"{side}_window"), getattr(self, f"{side}_quantiles")
        window, quantiles = own if any(own) else (self.window, None)
        return Scaling(tuple(quantiles or self.quantiles), None if window is None else tuple(window))


Stage = PlacingStage | LinearStage | GreedyStage | VelocityStage | DisplacementStage

SCHEMAS: dict[str, type[Stage]] = {
    **dict.fromkeys(PLACING, PlacingStage),
    **dict.fromkeys(LINEAR, LinearStage),
    "greedy": GreedyStage,
    "svf": VelocityStage,
    "displacement": DisplacementStage,
}

_AT_LEAST_0 = ("sigma_gradient", "sigma_field", "weight", "labels_weight")
_ABOVE_0 = ("step", "seconds", "integration_steps")


def checked_stages(config: RegisterConfig, source: Source) -> list[Stage]:
    """The stages of a config, each with a loss.

    Raises:
        ConfigError: an unknown stage, key or loss; numbers that do not fit; no stage at all.
    """
    _check_choice("start", config.start, STARTS, source)
    _check_choice("landmarks_model", config.landmarks_model, LANDMARK_MODELS, source)
    _check_choice("nan", config.nan, NAN_RULES, source)
    _check_choice("modalities", config.modalities, MODALITIES, source)
    if config.header is not None:
        _check_choice("header", config.header, HEADERS, source)
    for key in ("quantiles", "fixed_quantiles", "moving_quantiles"):
        _check_rising(key, getattr(config, key), 0, 1, "two numbers from 0 to 1", source)
    for key in ("window", "fixed_window", "moving_window"):
        _check_rising(key, getattr(config, key), -math.inf, math.inf, "two numbers", source)
    _check_numbers(config, "", source)
    if not config.stages:
        raise ConfigError(f"stages is empty in {source.file}; it needs one stage or more: {', '.join(STAGES)}")
    return [_stage(number, given, config, source) for number, given in enumerate(config.stages)]


def _check_choice(key: str, value: str, valid: Sequence[str], source: Source) -> None:
    if value not in valid:
        raise ConfigError(f"{key} {source.of(key)} is {value!r}; it must be one of {', '.join(valid)}")


def _check_rising(
    key: str, values: Sequence[float] | None, lowest: float, highest: float, valid: str, source: Source
) -> None:
    if values is None:
        return
    low, high = values if len(values) == 2 else (1.0, 0.0)
    if not lowest <= low < high <= highest or math.isinf(low) or math.isinf(high):
        raise ConfigError(f"{key} {source.of(key)} is {list(values)}; it must be {valid}, the smaller one first")


def _check_numbers(settings: Any, prefix: str, source: Source) -> None:
    for name in (*_AT_LEAST_0, *_ABOVE_0):
        value = getattr(settings, name, None)
        if value is None:
            continue
        if not (0 <= value < math.inf and (value > 0 or name in _AT_LEAST_0)):
            valid = "0 or more" if name in _AT_LEAST_0 else "above 0"
            key = f"{prefix}{name}"
            raise ConfigError(f"{key} {source.of(key)} is {value}; it must be a number {valid}")


def _stage(number: int, given: Any, config: RegisterConfig, source: Source) -> Stage:
    key = f"stages[{number}]"
    kind = given.get("stage") if isinstance(given, Mapping) else None
    if kind not in STAGES:
        raise ConfigError(f"{key}.stage {source.of(key)} is {kind!r}; it must be one of {', '.join(STAGES)}")
    schema = SCHEMAS[kind]
    node = checked_mapping(schema, given, source, f"{key}.")
    values = {name: _plain(node[name]) for name in node}
    if schema is PlacingStage:
        if node.levels or node.iterations or node.loss:
            raise ConfigError(f"{key} {source.of(key)}: the stage {kind} has no levels, iterations or loss")
        return PlacingStage(**{**values, "loss": {}})
    if len(node.levels) != len(node.iterations) or not node.levels:
        raise ConfigError(
            f"{key} {source.of(key)} has {len(node.levels)} levels and {len(node.iterations)} iterations; "
            "it needs a number of iterations for each level"
        )
    if min(node.levels) < 1 or min(node.iterations) < 0:
        raise ConfigError(f"{key} {source.of(key)}: levels are numbers of at least 1, iterations of at least 0")
    if "regulariser" in node:
        _check_choice(f"{key}.regulariser", node.regulariser, REGULARISERS, source)
    is_between = config.modalities == "different" and kind in LINEAR
    loss = dict(node.loss) or dict(BETWEEN_MODALITIES if is_between else config.loss)
    if not loss:
        raise ConfigError(f"{key}.loss is missing in {source.file}: give the stage a loss, or all by the key loss")
    values["loss"] = checked_component(f"{key}.loss", loss, LOSS_REGISTRY, source)
    if values["labels_weight"] is None:
        values["labels_weight"] = config.labels_weight
    stage = schema(**values)
    _check_numbers(stage, f"{key}.", source)
    return stage


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

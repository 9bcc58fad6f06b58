"""How a YAML file becomes a checked configuration.

A file is read by OmegaConf's safe YAML loader, which makes plain values only: no tag of a file can run code. Code runs
for the modules that the key ``plugins`` names, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..errors import ConfigError
from .checks import (
    Source,
    check_values,
    checked_component,
    checked_mapping,
    drop_keys_of_replaced,
    gather_optimizer_options,
    missing_key,
)
from .plugins import import_plugins, registry_of
from .schema import Config

COMPONENTS = {
    "train_dataset": "dataset", "val_dataset": "dataset", "model": "model", "loss": "loss", "scheduler": "scheduler"
}  # fmt: skip
"""The sections that name a component, and the kind of registry each looks its name up in."""

SECTIONS = ("wandb", "tensorboard", "augmentation", "optimizer", "training")
"""The sections with fixed keys."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply the command line's overrides, import the plugins and check every key and value.

    Relative paths inside the file, such as ``train_dataset.json_file``, are relative to the current directory. An
    override that switches a component to another one (``loss.name=lncc``) keeps those of the file's keys that the new
    component has too, and drops the others with a warning in the log.

    Args:
        path: the file; None for the packaged default, ``usreg/configs/deepreg_synthetic.yaml``.
        overrides: ``key=value`` with dots for nested keys; the value is read as YAML: ``training.epochs=2``,
            ``image_size=[32,32,32]``, ``training.clip_grad_norm=null``. A section given whole
            (``loss={name: mse}``) replaces the file's.

    Returns:
        The configuration with its types checked; ``params`` of a component is merged into its section.

    Raises:
        ConfigError: naming the key, the file or "the command line", and what would be valid.
    """
    file = Path(path) if path is not None else _packaged_default()
    return config_of(read_yaml(file), file, overrides)


def config_of(from_file: dict[str, Any], file: Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration from keys that were read; as :func:`load_config`.

    Args:
        from_file: plain containers.
        file: where they are from, for messages; plugins may lie beside it.
        overrides: see :func:`load_config`.
    """
    given, overridden = apply_overrides(from_file, overrides)
    source = Source(str(file), frozenset(overridden))
    # An empty section, as in "wandb:", means its defaults.
    for key in ("plugins", "val_dataset", "scheduler", *SECTIONS):
        if given.get(key, {}) is None:
            del given[key]

    plugins = checked_mapping(Config, {"plugins": given.get("plugins", [])}, source, partial=True).plugins
    import_plugins(plugins, [Path.cwd(), file.resolve().parent], source.of("plugins"))
    for key, kind in COMPONENTS.items():
        if key not in given:
            continue
        drop_keys_of_replaced(key, given, from_file, registry_of(kind), source)

    gather_optimizer_options(given, source)
    if isinstance(given.get("training"), dict) and isinstance(given["training"].get("best"), str):
        given["training"]["best"] = [given["training"]["best"]]
    config = checked_mapping(Config, given, source)
    if not config.val_dataset and config.training.val_every:
        raise missing_key("val_dataset", dict, source)
    for key, kind in COMPONENTS.items():
        if key in ("val_dataset", "scheduler") and not config[key]:
            continue  # a training without validation, or with one learning rate
        config[key] = checked_component(key, OmegaConf.to_container(config[key]), registry_of(kind), source)
    typed: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    check_values(typed, source)
    return typed


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML that :func:`load_config` reads again; every default is written out."""
    OmegaConf.save(OmegaConf.structured(config), path)


def _packaged_default() -> Path:
    return Path(str(resources.files("usreg") / "configs" / "deepreg_synthetic.yaml"))


def read_yaml(file: Path) -> dict[str, Any]:
    """The file's keys as plain containers, interpolations untouched."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {file} (looked from {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error}") from error
    try:
        content = OmegaConf.create(text)
    except (YAMLError, OmegaConfBaseException, AssertionError) as error:
        problem = str(error).replace('"<unicode string>"', str(file)) or "it holds no keys"
        raise ConfigError(f"{file} is not a valid configuration file: {problem}") from error
    if not OmegaConf.is_dict(content):
        raise ConfigError(f"{file} must hold keys and values at its top level, not a list")
    return OmegaConf.to_container(content)  # type: ignore[return-value]


def apply_overrides(from_file: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The file's keys with the overrides applied and interpolations resolved, and the keys that were overridden."""
    merged = OmegaConf.create(from_file)
    keys = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"'{override}' on the command line must have the form key=value, as in training.epochs=2")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore
            OmegaConf.update(merged, key, value, merge=False)
        except (YAMLError, OmegaConfBaseException, AssertionError, TypeError, ValueError) as error:
            problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
            raise ConfigError(f"cannot apply '{override}' from the command line: {problem}") from error
        keys.append(key)
    try:
        return OmegaConf.to_container(merged, resolve=True), keys  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"cannot resolve {error.full_key} of the configuration: {problem}") from error

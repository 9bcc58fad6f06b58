"""The registries by kind, and the import of the user's own modules that add to them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..registry import Registry

_REGISTRIES = {
    "loss": ("usreg.losses", "LOSS_REGISTRY"),
    "model": ("usreg.models", "MODEL_REGISTRY"),
    "dataset": ("usreg.datasets", "DATASET_REGISTRY"),
    "metric": ("usreg.metrics", "METRIC_REGISTRY"),
    "scheduler": ("usreg.training.schedules", "SCHEDULER_REGISTRY"),
}


def registry_of(kind: str) -> Registry[Any]:
    """The registry of losses, models, datasets or metrics, with the built-ins registered."""
    package, attribute = _REGISTRIES[kind]
    registry: Registry[Any] = getattr(importlib.import_module(package), attribute)
    return registry


def import_plugins(modules: Sequence[str], folders: Sequence[Path], source: str) -> None:
    """Import the user's modules, which register what they define.

    The folders are appended to ``sys.path``, and stay there, so that a plugin may import its neighbours later on and
    worker processes find it again; behind everything installed, so that none of their files hides a library. Without
    a plugin the path stays as it is.

    A single file written as if it lay in ``usreg/losses`` (``from .utils import register_loss``, as the guide to custom
    losses has it), or in ``usreg/models`` or ``usreg/metrics``, is imported as a module of that package.

    Args:
        modules: names of Python modules, ``my_loss`` or ``my_package.losses``.
        folders: where they may lie, besides the places Python looks in anyway.
        source: where the names were given, for messages: ``"in FILE"`` or ``"on the command line"``.

    Raises:
        ConfigError: a module that does not exist, or whose import raises; the cause is named and chained.
    """
    if not modules:
        return
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    importlib.invalidate_caches()  # a file written a moment ago is found too
    for kind in _REGISTRIES:
        registry_of(kind)  # built-ins first: a plugin replaces one of them, never the reverse
    for module in modules:
        try:
            _import(module)
        except Exception as error:  # whatever the user's code raises is the cause to report
            raise ConfigError(_explain(module, folders, source, error)) from error


def _import(module: str) -> None:
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    package = _package_it_is_written_for(spec) if spec else None
    if spec is None or spec.origin is None or package is None:
        importlib.import_module(module)
        return
    name = f"{package}.plugin_{module}"  # no module of the package has such a name
    if name in sys.modules:
        return
    inside = importlib.util.spec_from_file_location(name, spec.origin)
    assert inside is not None
    assert inside.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(inside)
    try:
        inside.loader.exec_module(sys.modules[name])
    except BaseException:
        del sys.modules[name]
        raise


def _package_it_is_written_for(spec: ModuleSpec) -> str | None:
    """The package of usreg that a file's relative imports fit, or None: no such import, or none that fits."""
    if not (spec.origin or "").endswith(".py") or spec.submodule_search_locations is not None:
        return None
    tree = ast.parse(Path(str(spec.origin)).read_bytes(), filename=str(spec.origin))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    for kind in ("loss", "model", "metric") if relative else ():
        package = _REGISTRIES[kind][0]
        if all(_can_import_from(f"{package}.{node.module or ''}".rstrip("."), node.names) for node in relative):
            return package
    return None


def _can_import_from(module: str, names: Sequence[ast.alias]) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return all(hasattr(found, alias.name) for alias in names)


def _explain(module: str, folders: Sequence[Path], source: str, error: Exception) -> str:
    text = f"plugins {source}: cannot import '{module}': {type(error).__name__}: {error}."
    if module.endswith(".py") or "/" in module:
        return f"{text} Give the name of the module, '{Path(module).stem}', not of its file."
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
        return f"{text} It is neither installed nor in {looked}."
    if "attempted relative import" in str(error):
        return f"{text} Import by full names instead, as in 'from usreg.losses import register_loss'."
    return text

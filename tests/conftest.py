"""Set-up of all tests: ``bench`` can be imported, Triton kernels run without a GPU, and GPU tests without the extras.

A machine with a GPU often has little more than torch and pytest. ``pytest -m gpu`` (or ``-m large``) skips
modules that import a package which is not installed, and names it. Every other run fails on them, and so does every run
with ``CI`` in its environment: a development environment that lacks a package must not pass by testing less.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # behind everything that is installed

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported

LONGEST_FIRST = (
    "kernels/test_cuda_emulated.py",
    "kernels/test_triton_compiled.py",
    "kernels/test_backends.py",
    "kernels/test_interoperability.py",
    "kernels/test_gpu_stand_in.py",
)
"""The files that take longest, below this folder: several processes begin with them, or one would wait for the last.

See "Tests" in CONTRIBUTING.md.
"""

OWN = {"bench", "gpu_tools", "kernels", "tools", "usreg", "usreg_kernels"}
"""Packages of this repository, which are never missing."""


@pytest.fixture(autouse=True)
def own_registries() -> Iterator[None]:
    """Only this test sees what its plugins register: the next one sees the names that were there before."""
    plugins = sys.modules.get("usreg.config.plugins")  # a test of the kernels imports none of it
    loaded = [kind for kind, (package, _) in plugins._REGISTRIES.items() if package in sys.modules] if plugins else []
    registries = [plugins.registry_of(kind) for kind in loaded] if plugins else []
    before = [(dict(registry), set(registry._builtins)) for registry in registries]
    modules = set(sys.modules)
    yield
    for registry, (factories, builtins) in zip(registries, before, strict=True):
        for name, factory in registry.items() - factories.items():
            if factory.__module__ not in modules:
                sys.modules.pop(factory.__module__, None)  # so that another test's import registers it again
            del registry[name]
        registry.update(factories)
        registry._builtins |= builtins


@pytest.fixture
def device_queue(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a pretended GPU is asked for: ``"event"`` for an event, each 2 ms after the one before; ``"wait"``."""
    queue: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            queue.append("event")

        def elapsed_time(self, other: object) -> float:
            return 2.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: queue.append("wait"))
    return queue


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "of pytest-timeout, which is not installed: a test that hangs stalls the run")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): of pytest-timeout, which is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
        from kernels import fast_interpreter

        fast_interpreter.install()
    # A pytest that a test starts is no worker of pytest-xdist. pytest-benchmark would measure nothing in one.
    os.environ.pop("PYTEST_XDIST_WORKER", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist, which takes whole files in this order
        longest_first(items)


def longest_first(items: list[pytest.Item]) -> None:
    """Put the tests of the files of ``LONGEST_FIRST`` before the others, which stay in order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


class Module(pytest.Module):
    """A test module that is skipped where it needs a package that this environment may lack."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            missing = error.__cause__
            package = missing.name.split(".")[0] if isinstance(missing, ModuleNotFoundError) and missing.name else None
            if package is not None and package not in OWN:
                pytest.skip(f"needs {package}, which is not installed", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Module | None:
    """Modules that may be skipped, where only GPU tests are asked for."""
    marks = parent.config.option.markexpr.split()
    if marks[:1] not in (["gpu"], ["large"]) or os.environ.get("CI"):
        return None
    return Module.from_parent(parent, path=module_path)

"""USReg: 3-D image registration, by networks and by optimisation, on the fused operations of :mod:`usreg_kernels`.

``python -m usreg.train --config FILE`` trains a network, ``python -m usreg.register`` registers a pair without one;
:func:`usreg.register` does the same in Python. :mod:`usreg.losses`, :mod:`usreg.models`, :mod:`usreg.datasets` and
:mod:`usreg.metrics` hold the registries that the config's names refer to.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import evaluate
    from .registration.function import register
    from .transformation import apply

try:
    __version__ = version("usreg")
except PackageNotFoundError:  # used from a source tree that was never installed
    __version__ = "0+unknown"

COMMANDS = ("apply", "evaluate", "register")
"""Modules that are also functions, see :class:`CommandModule`; they are imported when they are first asked for."""

__all__ = ["__version__", "apply", "evaluate", "register"]


class CommandModule(ModuleType):
    """The module of a command that is called like its Python function.

    ``usreg.register`` is the module behind ``python -m usreg.register``, and ``usreg.register(fixed, moving)`` calls
    the function. Two objects of one name would not do: Python's import puts the module in the function's place.
    """

    FUNCTION: tuple[str, str]
    """Module and name of the function, which is imported when it is first called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; see its documentation."""
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def _function(self) -> Any:
        return getattr(importlib.import_module(self.FUNCTION[0]), self.FUNCTION[1])


def make_callable(module: str, function: tuple[str, str]) -> None:
    """Let a command's module be called as a function; the module does it for itself, with its ``__name__``.

    Args:
        module: its name.
        function: the name of the function's own module, and of the function.
    """
    found = sys.modules[module]
    found.__class__ = CommandModule
    found.FUNCTION = function  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    if name in COMMANDS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

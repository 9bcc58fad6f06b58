"""Triton's interpreter without the work that it repeats: an integration takes about two thirds of the time.

The interpreter replaces the functions of ``triton.language`` at the launch of a kernel, and puts them back after it. At
each call of a function by a kernel it looks once more through all of their names, and finds nothing left to replace.
Here a launch does that once per module of the language. No kernel is computed in another way
(test_fast_interpreter.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Nothing:
    """The scope of a replacement that was not needed."""

    def restore(self) -> None:
        pass


def install() -> None:
    """Make this process's interpreter fast; leaves a version of Triton that works in another way as it is."""
    from triton.runtime import interpreter

    replace: Callable[[Any], Any] | None = getattr(interpreter, "_patch_lang", None)
    if replace is None or not hasattr(interpreter, "_LangPatchScope") or hasattr(replace, "original"):
        return
    modules: dict[Any, frozenset[str]] = {}
    replaced: set[str] = set()

    def modules_of(function: Any) -> frozenset[str]:
        if function not in modules:
            values = function.__globals__.values()
            languages = (interpreter.tl, interpreter.tl.core)
            modules[function] = frozenset(lang.__name__ for lang in languages if any(value is lang for value in values))
        return modules[function]

    def replace_once(function: Any) -> Any:
        wanted = modules_of(function)
        if wanted and wanted <= replaced:
            return _Nothing()
        is_launch = not replaced
        scope = replace(function)
        replaced.update(wanted)
        if is_launch:
            put_back = scope.restore

            def restore() -> None:
                replaced.clear()
                put_back()

            scope.restore = restore
        return scope

    replace_once.original = replace  # type: ignore[attr-defined]
    interpreter._patch_lang = replace_once

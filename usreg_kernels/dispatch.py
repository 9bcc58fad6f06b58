"""Which backend runs an op: the automatic choice, the explicit one, and the reasons against the others.

A backend (:mod:`usreg_kernels.backend`) says why it cannot take a call. The choice is made once, before the forward
pass, and the backward pass stays with it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from usreg_kernels.backend import BACKEND_NAMES, Backend, BackendName, Tensors

_AUTOMATIC: dict[str, tuple[BackendName, ...]] = {
    "cpu": ("cpu", "reference"),
    "gpu": ("triton", "cuda", "reference"),
}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot take the call; the message holds every backend's reason."""


_backends: dict[str, dict[str, Backend]] = {}


def register_backend(op: str, backend: Backend) -> None:
    """Add a backend to an op, in place of one of the same name.

    Raises:
        ValueError: its name is not one of ``BACKEND_NAMES``.
    """
    if backend.name not in BACKEND_NAMES:
        raise ValueError(f"unknown backend name {backend.name!r}; valid: {', '.join(BACKEND_NAMES)}")
    _backends.setdefault(op, {})[backend.name] = backend


def get_backend(op: str, name: str) -> Backend:
    """The backend that :func:`register_backend` stored."""
    return _backends[op][name]


def _check_name(name: str, origin: str) -> BackendName:
    for known in BACKEND_NAMES:
        if name == known:
            return known
    raise ValueError(f"{origin}: unknown backend {name!r}; valid: {', '.join(BACKEND_NAMES)}")


@dataclass
class _Choice:
    """The explicit choice, None for the automatic one; a plain global, which torch.compile guards on."""

    name: BackendName | None = None


_choice = _Choice()
if os.environ.get("USREG_BACKEND"):
    _choice.name = _check_name(os.environ["USREG_BACKEND"], "environment variable USREG_BACKEND")


@contextmanager
def use_backend(name: BackendName) -> Iterator[None]:
    """Run every op inside the ``with`` block on one backend, for the whole process.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``. The environment variable ``USREG_BACKEND``,
            read at import, sets the same choice from outside.

    Raises:
        ValueError: for another name.
        BackendError: by the op, when the backend cannot take a call; an explicit choice never falls back.
    """
    previous, _choice.name = _choice.name, _check_name(name, "use_backend")
    try:
        yield
    finally:
        _choice.name = previous


def _candidates(device_type: str) -> tuple[BackendName, ...]:
    return _AUTOMATIC["cpu" if device_type == "cpu" else "gpu"]


def _not_written(op: str, name: str) -> str:
    return f"{op} has no {name!r} backend in this version"


def _reason(op: str, name: str, tensors: Tensors, params: dict[str, Any]) -> str | None:
    backend = _backends[op].get(name)
    return _not_written(op, name) if backend is None else backend.why_not(tensors, **params)


def select(op: str, tensors: Tensors, params: dict[str, Any]) -> BackendName:
    """The name of the backend that takes this call.

    Raises:
        BackendError: the explicitly chosen backend cannot take it.
    """
    first = tensors[0]
    assert first is not None
    if _choice.name is not None:
        reason = _reason(op, _choice.name, tensors, params)
        if reason is not None:
            raise BackendError(
                f"backend {_choice.name!r} was asked for, but {reason}.\n{explain_call(op, tensors, params)}"
            )
        return _choice.name
    for name in _candidates(first.device.type):
        if _reason(op, name, tensors, params) is None:
            return name
    return "reference"


def is_worthwhile(op: str, device_type: str) -> bool:
    """Whether a caller that has a library's function in hand should call an op instead.

    It should where a kernel of the op can run on that type of device; the reference is slow. Where a backend was asked
    for by name, it should if the op has that one.
    """
    kernels = tuple(name for name in _candidates(device_type) if name != "reference")
    names = kernels if _choice.name is None else (_choice.name,)
    found = _backends[op]
    return any(name in found and found[name].missing() is None for name in names)


_warned: set[str] = set()


def warn_if_slow(op: str, name: str, tensors: Tensors) -> None:
    """Say once per op that the automatic choice fell to the plain PyTorch reference on a GPU."""
    if name != "reference" or _choice.name is not None or op in _warned:
        return
    device = tensors[0].device  # type: ignore[union-attr]
    if device.type in ("cpu", "meta"):
        return
    _warned.add(op)
    reasons = "; ".join(
        f"{other}: {_backends[op][other].missing() or 'declined the call'}"
        for other in _candidates(device.type)
        if other != name and other in _backends[op]
    )
    warnings.warn(
        f"{op} runs on the plain PyTorch reference on {device}, which is exact but slow "
        f"({reasons or 'no GPU backend'}); `python -m usreg_kernels` shows what is missing",
        stacklevel=2,
    )


@dataclass(frozen=True)
class Explanation:
    """What :func:`usreg_kernels.explain` answers; print it to read it.

    Attributes:
        op: the op's name.
        chosen: the backend that would run.
        reasons: every backend with the reason why it cannot take the call, None for those that can.
        tensors: the op's tensors, checked.
        params: the op's other arguments, checked.
    """

    op: str
    chosen: str | None
    reasons: dict[BackendName, str | None] = field(default_factory=dict)
    tensors: Tensors = field(default=(), repr=False)
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'no backend'}"]
        for name, reason in self.reasons.items():
            state = "would run" if name == self.chosen else "could run" if reason is None else f"cannot run: {reason}"
            lines.append(f"  {name:<10} {state}")
        return "\n".join(lines)


_explaining = threading.local()


def is_explaining() -> bool:
    """Whether a call is made by :func:`explain`, in this thread."""
    return not torch.compiler.is_compiling() and getattr(_explaining, "now", False)


class Explained(BaseException):
    """Ends a call that :func:`explain` makes, with the explanation; no ``except Exception`` on the way stops it."""

    def __init__(self, explanation: Explanation) -> None:
        super().__init__(explanation)
        self.explanation = explanation


def explain(function: Callable[..., Any], *tensors: Any, **arguments: Any) -> Explanation:
    """Call a function for the explanation of the first op that it calls with checked arguments; it computes nothing.

    Raises:
        TypeError: the function calls no op.
    """
    _explaining.now = True
    try:
        function(*tensors, **arguments)
    except Explained as explained:
        return explained.explanation
    finally:
        _explaining.now = False
    raise TypeError(f"{function!r} calls no op of usreg_kernels: there is no choice of a backend to explain")


def explain_call(op: str, tensors: Tensors, params: dict[str, Any]) -> Explanation:
    """The choice for one call with checked arguments, and the reasons against the others."""
    first = tensors[0]
    assert first is not None
    reasons = {name: _reason(op, name, tensors, params) for name in BACKEND_NAMES}
    if _choice.name is not None:
        chosen = _choice.name if reasons[_choice.name] is None else None
    else:
        chosen = next((name for name in _candidates(first.device.type) if reasons[name] is None), "reference")
    return Explanation(op, chosen, reasons, tensors, params)


def ops() -> tuple[str, ...]:
    """The names of all ops."""
    return tuple(sorted(_backends))


def _check_op(op: str) -> None:
    if op not in _backends:
        raise ValueError(f"unknown op {op!r}; valid: {', '.join(ops())}")


def machine_reasons(op: str) -> dict[BackendName, str | None]:
    """Every backend of an op with the reason why this machine cannot run it, None where it can."""
    _check_op(op)
    found = _backends[op]
    return {name: found[name].missing() if name in found else _not_written(op, name) for name in BACKEND_NAMES}


def available_backends(op: str) -> tuple[BackendName, ...]:
    """The backends of an op that can run on this machine.

    Args:
        op: such as ``"lncc"``, ``"warp"`` or ``"field_adam"``: ``python -m usreg_kernels`` lists all.

    Raises:
        ValueError: for another op.
    """
    return tuple(name for name, reason in machine_reasons(op).items() if reason is None)

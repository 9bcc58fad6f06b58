"""What the Triton backends share: whether Triton can run here, and kernels that are imported at their first use.

Triton compiles kernels for CUDA and ROCm GPUs. With ``TRITON_INTERPRET=1`` in the environment (read at import) it
interprets them on CPU tensors instead: slow, and meant for tests. The backend then takes CPU tensors, if it is asked
for by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from usreg_kernels import dispatch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter."""

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
"""Of every launch: a product and a sum make one instruction. Triton's own default changes in 3.10."""

_INSTALLED = find_spec("triton") is not None

Declines = Callable[..., "str | None"]


def missing() -> str | None:
    """Why this machine cannot run Triton kernels, and the way out; None when it can."""
    if not _INSTALLED:
        return "Triton is not installed: `pip install triton` (Linux; on Windows, `pip install triton-windows`)"
    if not INTERPRETED and not torch.cuda.is_available():
        return (
            "torch sees no GPU (torch.cuda.is_available() is False); TRITON_INTERPRET=1 runs it on CPU tensors, slowly"
        )
    return None


def _declines(tensors: Sequence[torch.Tensor | None], more: Declines | None, params: dict[str, Any]) -> str | None:
    first = tensors[0]
    assert first is not None
    device = "cpu" if INTERPRETED else "cuda"
    if first.device.type != device:
        return f"it runs on {device} tensors, and these are on {first.device}"
    if first.dtype == torch.float64:
        return "its sums are float32, and these are float64"
    return None if more is None else more(tensors, **params)


def register(op: str, declines: Declines | None = None) -> None:
    """Register ``usreg_kernels.ops.<op>.triton`` as the op's Triton backend.

    Args:
        op: the op's name. Its module has ``forward`` and ``backward`` and, if forward saves tensors, ``saved_like``.
        declines: ``declines(tensors, **params)``, further reasons against a call.
    """

    def module() -> ModuleType:
        return import_module(f"usreg_kernels.ops.{op}.triton")

    def saved_like(*tensors: Any, **params: Any) -> list[torch.Tensor]:
        found = getattr(module(), "saved_like", None)
        return [] if found is None else found(*tensors, **params)

    def why_not(tensors: Sequence[torch.Tensor | None], **params: Any) -> str | None:
        return _declines(tensors, declines, params)

    dispatch.register_backend(
        op,
        dispatch.Backend(
            "triton",
            lambda *tensors, **params: module().forward(*tensors, **params),
            lambda *arguments, **params: module().backward(*arguments, **params),
            saved_like,
            missing=missing,
            declines=why_not,
        ),
    )


def device_guard(tensor: torch.Tensor) -> Any:
    """Makes the tensor's GPU the current one, which is where Triton launches kernels."""
    return torch.cuda.device_of(tensor)

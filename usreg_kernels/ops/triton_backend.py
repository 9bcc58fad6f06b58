"""What the Triton backends share: whether Triton can run here, and kernels that are imported at their first use.

Triton compiles kernels for CUDA and ROCm GPUs. With ``TRITON_INTERPRET=1`` in the environment (read at import) it
interprets them on CPU tensors instead: slow, and meant for tests. The backend then takes CPU tensors, if it is asked
for by name.
"""

from __future__ import annotations

import os
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from usreg_kernels.backend import Backend, Outputs, Tensors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter."""

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
"""Options of every launch: a product and a sum make one instruction. Triton's own default changes in 3.10."""

_INSTALLED = find_spec("triton") is not None


def missing() -> str | None:
    """Why this machine cannot run Triton kernels, and the way out; None when it can."""
    if not _INSTALLED:
        return "Triton is not installed: `pip install triton` (Linux; on Windows, `pip install triton-windows`)"
    if not INTERPRETED and not torch.cuda.is_available():
        return (
            "torch sees no GPU (torch.cuda.is_available() is False); TRITON_INTERPRET=1 runs it on CPU tensors, slowly"
        )
    return None


class TritonBackend(Backend):
    """The functions of an op's ``triton.py``: ``forward``, ``backward`` and, if forward saves tensors, ``saved_like``.

    Of an op that works in place it is ``run``.

    That module imports Triton, which takes a second and may not be installed: it is imported at its first use.
    """

    name = "triton"

    def __init__(self, op: str) -> None:
        self._module_name = f"usreg_kernels.ops.{op}.triton"

    @cached_property
    def module(self) -> ModuleType:
        """The op's ``triton.py``."""
        return import_module(self._module_name)

    def forward(self, *tensors: Any, **arguments: Any) -> tuple[Outputs, list[torch.Tensor]]:
        """See :class:`Backend`."""
        return self.module.forward(*tensors, **arguments)

    def backward(self, *arguments: Any, **params: Any) -> list[torch.Tensor]:
        """See :class:`Backend`."""
        return self.module.backward(*arguments, **params)

    def run(self, *tensors: torch.Tensor, **params: Any) -> None:
        """See :class:`Backend`."""
        self.module.run(*tensors, **params)

    def saved_like(self, *tensors: Any, **arguments: Any) -> list[torch.Tensor]:
        """See :class:`Backend`."""
        found = getattr(self.module, "saved_like", None)
        return [] if found is None else found(*tensors, **arguments)

    def missing(self) -> str | None:
        """Whether Triton can run here."""
        return missing()

    def declines(self, tensors: Tensors, **params: Any) -> str | None:
        """It takes float32 and half precision, and axes of less than 2^31 voxels, on GPUs; interpreted, on CPUs."""
        first = tensors[0]
        assert first is not None
        device = "cpu" if INTERPRETED else "cuda"
        if first.device.type != device:
            return f"it runs on {device} tensors, and these are on {first.device}"
        if first.dtype == torch.float64:
            return "it computes in float32, and these are float64"
        if any(length >= 2**31 for length in first.shape[2:]):
            return "it takes at most 2^31 - 1 voxels along an axis"
        return None


class SavingTritonBackend(TritonBackend):
    """A Triton backend whose forward saves gradients, which backward may scale where they lie."""

    overwrites_saved = True


def device_guard(tensor: torch.Tensor) -> Any:
    """Makes the tensor's GPU the current one, which is where Triton launches kernels."""
    return torch.cuda.device_of(tensor)

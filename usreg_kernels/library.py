"""The compiled libraries: loads them, and says why one is missing and how to get it.

Both lie beside this file: ``libusreg_cpu.so`` (from ``csrc/cpu``) and ``libusreg_cuda.so`` (from ``csrc/cuda``; on
Windows ``libusreg_cuda.dll``). They hold only kernels; the ops' schemas are declared in Python, so that the ops exist
without them. torch takes the two in either order: a kernel that is loaded first waits for its schema.

Environment variables:

``USREG_DISABLE_LIBRARIES``
    ``1``: go on as if no library had been built.
``USREG_CPU_CAPABILITY``
    ``base``, ``avx2`` or ``avx512``: the most that the CPU kernels may use; read by the library at its first op. Where
    it is not set, some kernels use less than the machine has, because that is faster there.
``USREG_KEEP_MEMORY``
    ``0``: the CPU library gives the memory of large outputs back to the system when they are freed, in place of keeping
    it for the next ones.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

CAPABILITIES = ("base", "avx2", "avx512")
"""Instruction sets of the CPU kernels, in rising order."""

_TOOLS = {"cpu": "a C++ compiler", "cuda": "the CUDA toolkit and a C++ compiler"}


def path(name: str) -> Path:
    """Where the library called ``name`` (``"cpu"`` or ``"cuda"``) lies once it is built."""
    return Path(__file__).with_name(f"libusreg_{name}{'.dll' if sys.platform == 'win32' else '.so'}")


def _load(name: str) -> str | None:
    """Load a library; None when that worked, else why not and the way out."""
    file = path(name)
    build = f"`USREG_BUILD_{name.upper()}=1 pip install --no-build-isolation .`"
    if os.environ.get("USREG_DISABLE_LIBRARIES") == "1":
        return f"{file.name} is switched off: unset USREG_DISABLE_LIBRARIES"
    if name == "cuda" and torch.version.cuda is None:
        return f"{file.name} needs a torch with CUDA, and this one ({torch.__version__}) has none: install such a torch"
    if name == "cpu" and sys.platform != "linux":
        return f"{file.name} is made only for Linux: elsewhere CPUs run plain PyTorch"
    if not file.exists():
        return f"{file.name} is not built: install {_TOOLS[name]} and run {build}"
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"{file.name} does not load ({error.__cause__ or error}): build it again with {build}"
    return None


_reasons = {name: _load(name) for name in _TOOLS}  # at import, so that torch.compile sees a plain dictionary


def reason(name: str) -> str | None:
    """Why a library is not loaded, and the way out; None when it is.

    Args:
        name: ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: for another name.
    """
    if name not in _reasons:
        raise ValueError(f"unknown library {name!r}; valid: {', '.join(_reasons)}")
    return _reasons[name]


def cpu_capability() -> str | None:
    """The instruction set that the CPU kernels use: one of :data:`CAPABILITIES`, or None without the library.

    Raises:
        ValueError: ``USREG_CPU_CAPABILITY`` holds none of them.
    """
    if reason("cpu") is not None:
        return None
    function = ctypes.CDLL(str(path("cpu"))).usreg_cpu_capability
    function.restype = ctypes.c_char_p
    capability = function()
    if capability is None:
        given = os.environ.get("USREG_CPU_CAPABILITY")
        raise ValueError(f"USREG_CPU_CAPABILITY={given} is not valid: use {', '.join(CAPABILITIES)}, or unset it")
    return str(capability.decode())

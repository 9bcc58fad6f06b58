"""The ``cuda`` backend on CPU tensors: the product's kernels, compiled by :mod:`cuda_on_cpu.build`.

``USREG_CUDA_ON_CPU_FLAGS`` holds more flags of the compiler, e.g. of a sanitizer.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from kernels.cuda_on_cpu import build

from usreg_kernels import dispatch
from usreg_kernels.ops.compiled import CompiledBackend


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """Build the library, load it, and declare its operators."""
    path = build.build(tuple(os.environ.get("USREG_CUDA_ON_CPU_FLAGS", "").split()))
    library = torch.library.Library(build.NAMESPACE, "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        if re.match("usreg::.*_(native|cuda)_", name):
            schema = str(getattr(torch.ops.usreg, name.removeprefix("usreg::")).default._schema)
            library.define(schema.removeprefix("usreg::"))
    load.library = library  # type: ignore[attr-defined]  # a library that is collected takes its operators with it
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@contextmanager
def emulated(multiprocessors: int = 1) -> Iterator[None]:
    """Inside, the ``cuda`` backend of every op that has one takes CPU tensors, on a pretended GPU."""
    load().cuda_on_cpu_set_multiprocessors(multiprocessors)
    backends = {op: named["cuda"] for op, named in dispatch._backends.items() if "cuda" in named}
    try:
        for op, backend in backends.items():
            if isinstance(backend, CompiledBackend):  # others are made of these
                dispatch.register_backend(op, _emulation(type(backend)))
        yield
    finally:
        for op, backend in backends.items():
            dispatch.register_backend(op, backend)


def _emulation(cls: type[CompiledBackend]) -> CompiledBackend:
    """The same backend on CPU tensors, with the operators of the emulation."""

    class Emulated(cls):  # type: ignore[misc, valid-type]
        kernels = getattr(torch.ops, build.NAMESPACE)

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.device_type = "cpu"

        def missing(self) -> None:
            return None

    return Emulated("cuda")

"""The ``cuda`` backend on CPU tensors: the product's kernels, compiled by :mod:`cuda_on_cpu.build`.

``USREG_CUDA_ON_CPU_FLAGS`` holds more flags of the compiler, e.g. of a sanitizer.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial

import torch
from kernels.cuda_on_cpu import build

from usreg_kernels import dispatch
from usreg_kernels.ops.native import declines


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
    """Inside, the ``cuda`` backend of every op takes CPU tensors, on a pretended GPU."""
    load().cuda_on_cpu_set_multiprocessors(multiprocessors)
    operators = getattr(torch.ops, build.NAMESPACE)
    records = {op: dispatch.get_backend(op, "cuda") for op in dispatch.ops()}
    try:
        for op, record in records.items():
            if record.forward.args != (torch.ops.usreg,):  # type: ignore[attr-defined]
                continue  # made of other records
            redirected = replace(
                record,
                forward=partial(record.forward.func, operators),  # type: ignore[attr-defined]
                backward=partial(record.backward.func, operators),  # type: ignore[attr-defined]
                missing=lambda: None,
                declines=declines("cpu"),
            )
            dispatch.register_backend(op, redirected)
        yield
    finally:
        for op, record in records.items():
            dispatch.register_backend(op, record)

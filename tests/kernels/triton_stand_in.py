"""Stands for an H100 where there is no GPU: Triton compiles for it as usual, and launches do nothing.

A program, for a process without Triton's interpreter: ``python triton_stand_in.py`` calls LNCC's Triton backend a few
times and prints, as JSON, which kernels were compiled and loaded, and how each call was cut into programs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

MULTIPROCESSORS = 132
GPU = torch.device("cuda", 0)

loaded: list[tuple[str, int]] = []
"""Kernels in the order in which the driver was given them, with the registers that it found."""


def gpu_properties(device: Any = None) -> SimpleNamespace:
    """As much of an H100's properties as plans are made from."""
    return SimpleNamespace(multi_processor_count=MULTIPROCESSORS, max_threads_per_multi_processor=2048)


class _Utilities:
    """What Triton asks of a driver to load a kernel."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        from tools.sass.compile_triton import resources

        found = resources(binary)
        loaded.append((name, found["REG"]))
        return 1, 1, found["REG"], found["STACK"], 1024

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": MULTIPROCESSORS, "warpSize": 32}


class _Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        pass


class _Driver:
    utils = _Utilities()
    launcher_cls = _Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def backend() -> ModuleType:
    """LNCC's Triton backend, which takes CPU tensors for those of the stand-in."""
    from triton.runtime import driver

    from usreg_kernels.ops.lncc import triton as lncc

    def on_gpu(plan: Callable[..., Any]) -> Callable[..., Any]:
        return lambda shape, dtype, device, *rest: plan(shape, dtype, GPU, *rest)

    driver.set_active(_Driver())
    mock.patch.object(torch.cuda, "get_device_properties", gpu_properties).start()
    for name in ("_plan_correlate", "_plan_propagate"):
        mock.patch.object(lncc, name, on_gpu(getattr(lncc, name))).start()
    return lncc


def main() -> None:
    lncc = backend()
    params = {"kernel_type": "rectangular", "kernel_size": [9] * 3, "smooth_nr": 0.0, "smooth_dr": 1e-5}
    calls = []

    def call(depth: int, offset: int = 0) -> None:
        """Forward and backward of images with some depth, which begin some elements into memory."""
        voxels = depth * 128 * 128
        images = [torch.empty(voxels + offset)[offset:].view(1, 1, depth, 128, 128) for _ in range(2)]
        before = len(loaded)
        options = {**params, "needs_grad": [True, False], "reduction": "mean"}
        loss, saved = lncc.forward(*images, None, **options)
        lncc.backward(loss, saved, *images, None, **options)
        window = "rectangular", (9, 9, 9)
        key = images[0].shape, images[0].dtype, GPU, window
        forward = lncc._plan_correlate(*key, False, False, 3, None)
        backward = lncc._plan_propagate(*key, False, 3, (True, False), None)
        plans = {"correlate": forward.numbers, "propagate": backward.numbers}
        calls.append({"depth": depth, "offset": offset, "loaded": loaded[before:], "plans": plans})

    for depth, offset in ((128, 0), (128, 0), (96, 0), (1, 0), (128, 1)):
        call(depth, offset)
    print(json.dumps(calls))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    main()

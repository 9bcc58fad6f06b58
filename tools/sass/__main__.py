"""``python -m tools.sass``: what the kernels for GPUs compile to, without a GPU. Times are not among it.

A row per kernel, of Triton and of CUDA C++, and way to launch it: registers per thread, bytes of stack (where registers
spill to memory) and of shared memory, instructions per voxel of the main loop, and the share of a multiprocessor's
threads that the registers leave room for; of Triton also the bytes per voxel that move if each volume moves once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any

import torch

from tools.sass import compile_cuda
from tools.sass.compile_triton import DTYPES, TARGETS, Compiled, compile_launch, recording

HALVES = (torch.float16, torch.bfloat16)
COUNTED = {DTYPES[dtype]: dtype for dtype in (torch.float32, *HALVES)}
"""The dtypes of Triton's rows, by Triton's names."""
WINDOWS = (3, 5, 7, 9, 11, 13, 15)

Call = Callable[[ModuleType, torch.dtype], None]


def _smoothness(module: ModuleType, dtype: torch.dtype, **changes: Any) -> None:
    dvf = torch.empty(1, 3, 64, 64, 64, dtype=dtype)
    params = {"penalty": "l2", "scheme": "forward", "spacing": None, "normalize": False, "reduction": "mean", **changes}
    loss, saved = module.forward(dvf, needs_grad=[True], **params)
    module.backward(loss, saved, dvf, needs_grad=[True], **params)


def _bending(module: ModuleType, dtype: torch.dtype, reduction: str = "mean") -> None:
    dvf = torch.empty(1, 3, 64, 64, 64, dtype=dtype)
    loss, saved = module.forward(dvf, needs_grad=[True], normalize=False, reduction=reduction)
    module.backward(loss, saved, dvf, needs_grad=[True], normalize=False, reduction=reduction)


def _dvf_mse(module: ModuleType, dtype: torch.dtype, masked: bool = False) -> None:
    pred, gt = torch.empty(2, 1, 3, 64, 64, 64, dtype=dtype)
    mask = torch.empty(1, 1, 64, 64, 64) if masked else None
    loss, saved = module.forward(pred, gt, mask, reduction="mean")
    module.backward(loss, saved, pred, gt, mask, needs_grad=[True, False], reduction="mean")


def _supervision(module: ModuleType, dtype: torch.dtype) -> None:
    pred, gt = torch.empty(2, 1, 3, 64, 64, 64, dtype=dtype)
    params = {"mse_weight": 1.0, "smooth_weight": 0.1, "spacing": None}
    loss, saved = module.forward(pred, gt, needs_grad=[True, False], **params)
    module.backward(loss, saved, pred, gt, needs_grad=[True, False], **params)


def _adam(module: ModuleType, dtype: torch.dtype, longest: bool) -> None:
    tensors = torch.empty(4, 1, 3, 64, 64, 64, dtype=dtype)
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    module.run(*tensors[:3], torch.zeros(()), tensors[3], **numbers, longest=longest, replace=longest)


def _determinant(module: ModuleType, dtype: torch.dtype) -> None:
    ddf = torch.empty(1, 3, 64, 64, 64, dtype=dtype)
    values, saved = module.forward(ddf, needs_grad=[True], spacing=None)
    module.backward(values, saved, ddf, needs_grad=[True], spacing=None)


def _folding(module: ModuleType, dtype: torch.dtype, reduction: str = "mean") -> None:
    ddf = torch.empty(1, 3, 64, 64, 64, dtype=dtype)
    params = {"spacing": None, "margin": 0.0, "reduction": reduction}
    loss, saved = module.forward(ddf, needs_grad=[True], **params)
    module.backward(loss, saved, ddf, needs_grad=[True], **params)


def _smoothing(
    module: ModuleType,
    dtype: torch.dtype,
    sigma: float = 1.0,
    shape: Sequence[int] = (1, 3, 64, 64, 64),
    **changes: Any,
) -> None:
    """Forward, or backward where that is asked for: both launch the same kernels."""
    x = torch.empty(shape, dtype=dtype)
    params = {"sigma": [sigma] * (len(shape) - 2), "truncate": 3.0, "padding_mode": "border", **changes}
    if params.pop("adjoint", False):
        module.backward(x.float(), [], x, needs_grad=[True], **params)
    else:
        module.forward(x, needs_grad=[True], **params)


def _warp(
    module: ModuleType,
    dtype: torch.dtype,
    *,
    by: str = "field",
    to: str = "field",
    channels: int = 1,
    mode: str = "bilinear",
    padding_mode: str = "border",
) -> None:
    """Forward, and the gradient to the image, the field or the affine."""
    size = [128, 128, 128]
    image = torch.empty(1, channels, *size, dtype=dtype)
    ddf = torch.empty(1, 3, *size, dtype=dtype) if by == "field" else None
    affine = torch.empty(1, 3, 4) if by == "affine" else None
    params = {"size": size, "mode": mode, "padding_mode": padding_mode}
    needs_grad = [to == "image", to == "field", to == "affine"]
    warped, saved = module.forward(image, ddf, affine, needs_grad=needs_grad, **params)
    module.backward(warped, saved, image, ddf, affine, needs_grad=needs_grad, **params)


def _compose(module: ModuleType, dtype: torch.dtype) -> None:
    outer, inner = torch.empty(2, 1, 3, 128, 128, 128, dtype=dtype)
    params = {"needs_grad": [True, True], "padding_mode": "border"}
    composed, saved = module.forward(outer, inner, **params)
    module.backward(composed, saved, outer, inner, **params)


def _lncc(
    module: ModuleType,
    dtype: torch.dtype,
    window: int,
    shape: Sequence[int] = (1, 1, 128, 128, 128),
    masked: bool = False,
    **changes: Any,
) -> None:
    """Forward and backward with a rectangular window, or with other arguments of the backend."""
    pred, target = torch.empty(2, *shape, dtype=dtype)
    mask = torch.empty(shape) if masked else None
    params = {
        "needs_grad": [True, False],
        "kernel_type": "rectangular",
        "reduction": "mean",
        "kernel_size": [window] * (len(shape) - 2),
        "smooth_nr": 0.0,
        "smooth_dr": 1e-5,
        **changes,
    }
    loss, saved = module.forward(pred, target, mask, **params)
    module.backward(loss, saved, pred, target, mask, **params)


def _information(
    module: ModuleType, dtype: torch.dtype, kernel: str = "gaussian", masked: bool = False, **changes: Any
) -> None:
    pred, target = torch.empty(2, 1, 1, 64, 64, 64, dtype=dtype)
    mask = torch.empty(1, 1, 64, 64, 64) if masked else None
    params = {
        "needs_grad": [True, kernel == "gaussian"],
        "kernel_type": kernel,
        "num_bins": 32,
        "normalized": False,
        "sigma_ratio": 0.5,
        "reduction": "mean",
        "smooth_nr": 1e-7,
        "smooth_dr": 1e-7,
        **changes,
    }
    loss, saved = module.forward(pred, target, mask, **params)
    module.backward(loss, saved, pred, target, mask, **params)


def _mind(module: ModuleType, dtype: torch.dtype, masked: bool = False, **changes: Any) -> None:
    """Forward, which computes the gradients too."""
    pred, target = torch.empty(2, 1, 1, 64, 64, 64, dtype=dtype)
    mask = torch.empty(pred.shape) if masked else None
    params = {"needs_grad": [True, False], "radius": 2, "dilation": 2, "reduction": "mean", **changes}
    module.forward(pred, target, mask, **params)


def _mind_ssc(module: ModuleType, dtype: torch.dtype) -> None:
    image = torch.empty(1, 1, 64, 64, 64, dtype=dtype)
    params = {"needs_grad": [True], "radius": 2, "dilation": 2}
    descriptor, saved = module.forward(image, **params)
    module.backward(descriptor, saved, image, **params)


_BOTH = {"needs_grad": [True, True]}

CALLS: dict[str, dict[str, Call]] = {
    "lncc": {
        **{f"window {size}": partial(_lncc, window=size) for size in WINDOWS},
        **{f"gaussian {size}": partial(_lncc, window=size, kernel_type="gaussian") for size in (3, 7, 9, 15)},
        **{f"window {size}, both gradients": partial(_lncc, window=size, **_BOTH) for size in (3, 7, 9, 15)},
        "window 7, mask": partial(_lncc, window=7, masked=True),
        "window 7, map": partial(_lncc, window=7, reduction="none"),
        "window 7, gradient to target": partial(_lncc, window=7, needs_grad=[False, True]),
        "window 7, width 64": partial(_lncc, window=7, shape=(1, 1, 64, 64, 64)),
        "window 7, width 95": partial(_lncc, window=7, shape=(1, 1, 64, 64, 95)),
        "window 7, 2-D": partial(_lncc, window=7, shape=(8, 1, 512, 512)),
        "window 7, 1-D": partial(_lncc, window=7, shape=(8, 1, 4096)),
    },
    "gradient_smoothness": {
        "forward, l2": _smoothness,
        "central, l1": partial(_smoothness, scheme="central", penalty="l1"),
        "forward, l2, map": partial(_smoothness, reduction="none"),
    },
    "bending_energy": {"mean": _bending, "map": partial(_bending, reduction="none")},
    "dvf_mse": {"mean": _dvf_mse, "mask": partial(_dvf_mse, masked=True)},
    "dvf_supervision": {"mean": _supervision},
    "field_adam": {"plain": partial(_adam, longest=False), "longest": partial(_adam, longest=True)},
    "jacobian_determinant": {"map": _determinant},
    "folding": {"mean": _folding, "map": partial(_folding, reduction="none")},
    "gaussian_smooth": {
        "sigma 1": _smoothing,
        "sigma 1, adjoint": partial(_smoothing, adjoint=True),
        "sigma 1, reflection": partial(_smoothing, padding_mode="reflection"),
        "sigma 1, reflection, adjoint": partial(_smoothing, padding_mode="reflection", adjoint=True),
        "sigma 3": partial(_smoothing, sigma=3.0),
    },
    "mind": {
        "mean": _mind,
        "no gradient": partial(_mind, needs_grad=[False, False]),
        "both gradients, mask": partial(_mind, **_BOTH, masked=True),
    },
    "mind_ssc": {"descriptor": _mind_ssc},
    "warp": {
        "field": _warp,
        "field, gradient to image": partial(_warp, to="image"),
        "affine": partial(_warp, by="affine", to="affine"),
        "zeros": partial(_warp, padding_mode="zeros"),
        "zeros, gradient to image": partial(_warp, padding_mode="zeros", to="image"),
        "reflection": partial(_warp, padding_mode="reflection"),
        "nearest": partial(_warp, mode="nearest", to="image"),
        "three channels": partial(_warp, channels=3),
    },
    "compose_ddf": {"border": _compose},
    "mutual_information": {
        "b-spline": partial(_information, kernel="b-spline"),
        "gaussian": _information,
    },
}
"""By op and title: calls of the Triton backend, each of which launches the kernels of forward and backward."""


@dataclass(frozen=True)
class Row:
    """A row of the table; what only machine code of CUDA, or only Triton, tells is None for the others."""

    backend: str
    kernel: str
    call: str
    dtype: str
    target: str
    registers: int
    stack: int
    shared: int
    instructions: float | None
    occupancy: float | None
    bytes: float | None
    barriers: int | None
    conversions: int | None
    lane_bits: int | None
    narrowest_load: int | None


def _row(title: str, dtype: torch.dtype, found: Compiled) -> Row:
    cuda = found.is_cuda
    return Row(
        backend="triton",
        kernel=found.launch.name,
        call=title,
        dtype=DTYPES[dtype],
        target=found.target,
        registers=found.resources["REG"],
        stack=found.resources["STACK"],
        shared=found.resources["SHARED"],
        instructions=found.per_voxel if cuda else None,
        occupancy=found.occupancy if cuda else None,
        bytes=found.launch.bytes_per_voxel,
        barriers=found.opcodes["BAR"] if cuda else None,
        conversions=found.layout_conversions,
        lane_bits=found.launch.lane_bits,
        narrowest_load=found.narrowest_load if cuda else None,
    )


def triton_rows(ops: Sequence[str], targets: Sequence[str], dtypes: Sequence[str]) -> Iterator[Row]:
    """The rows of Triton. Half precision only changes loads and stores: of two ops it takes the plain calls."""
    known = set()
    for op in ops:
        for title, call in CALLS[op].items():
            for dtype in (COUNTED[name] for name in dtypes):
                if op == "lncc" and dtype in HALVES and title not in {f"window {size}" for size in WINDOWS}:
                    continue
                if op == "mutual_information" and dtype in HALVES and title != "b-spline":
                    continue
                if op == "field_adam" and dtype in HALVES:
                    continue  # which it does not take
                with recording(op) as (module, launches):
                    call(module, dtype)
                seen = set()
                for launch in launches:
                    if launch.name.endswith(".finish") and (title, dtype) != ("window 7", torch.float32):
                        continue  # the second stage is one kernel for all
                    if launch.name.endswith(".count_step") and title != "plain":
                        continue  # and so is the first stage of a step
                    if launch.name in seen:
                        continue  # a march per gradient: the same code twice
                    seen.add(launch.name)
                    if op in ("mind", "mind_ssc"):  # whose calls share kernels, and have those of smoothing
                        code = launch.source().hash()
                        if code in known or launch.name.endswith((".filter_rows", ".filter_columns")):
                            continue
                        known.add(code)
                    for target in targets:
                        yield _row(title, dtype, compile_launch(launch, target))


def cuda_row(kernel: compile_cuda.Kernel, target: str) -> Row:
    """The row of a kernel in CUDA C++."""
    found = kernel.compile(target)
    return Row(
        backend="cuda",
        kernel=kernel.name,
        call=kernel.call,
        dtype=kernel.dtype,
        target=target,
        registers=found.resources["REG"],
        stack=found.resources["STACK"],
        shared=found.resources["SHARED"],
        instructions=kernel.per_voxel(found),
        occupancy=found.occupancy,
        bytes=None,
        barriers=found.opcodes["BAR"],
        conversions=None,
        lane_bits=None,
        narrowest_load=found.narrowest_load,
    )


def cuda_rows(ops: Sequence[str], targets: Sequence[str], dtypes: Sequence[str]) -> Iterator[Row]:
    """The rows of CUDA C++, which need nvcc."""
    for kernel in compile_cuda.kernels():
        if kernel.name.split(".")[0] in ops and kernel.dtype in dtypes:
            yield from (cuda_row(kernel, target) for target in targets if TARGETS[target][0] == "cuda")


BACKENDS = {"triton": triton_rows, "cuda": cuda_rows}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.sass", description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=sorted(CALLS), action="append")
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="sm_80 and sm_90 unless given")
    parser.add_argument("--dtype", choices=list(COUNTED), action="append", help="all three unless given")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--backend", choices=list(BACKENDS), action="append", help="both unless given")
    options = parser.parse_args()
    backends = options.backend or list(BACKENDS)
    if "cuda" in backends and compile_cuda.NVCC is None:
        print("CUDA C++ is left out: nvcc was not found", file=sys.stderr)
        backends.remove("cuda")
    ops, targets = options.op or list(CALLS), options.target or ["sm_80", "sm_90"]
    dtypes = options.dtype or list(COUNTED)
    found = chain.from_iterable(BACKENDS[backend](ops, targets, dtypes) for backend in backends)
    if options.json:
        for row in found:
            print(json.dumps(asdict(row)), flush=True)
        return
    shown = [f.name for f in fields(Row)][:11]
    print("| " + " | ".join(shown) + " |\n" + "|---" * len(shown) + "|")
    for row in found:
        cells = {**asdict(row), "occupancy": None if row.occupancy is None else f"{100 * row.occupancy:.0f} %"}
        print("| " + " | ".join(_cell(cells[name]) for name in shown) + " |", flush=True)


if __name__ == "__main__":
    main()

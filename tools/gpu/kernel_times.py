"""``python -m tools.gpu.kernel_times``: times of all losses and backends on the GPU's own clock.

A measurement goes through the public functions and autograd, as training does. It gives, per call and backend:

- ``forward``: seconds of the forward pass that prepares a gradient; ``step``: forward and backward. The difference is
  what backward costs. CUDA graphs over several input sets time both (:mod:`tools.gpu.clock`).
- ``loop`` and ``launch``: a step in a Python loop, and the CPU's part of it: what launching costs without a graph.
- ``saved_bytes``: what forward keeps for backward. Together with the inputs and gradients it gives the bytes that each
  pass must move, and their share of the memory's peak, which large additions and copies measure.
- ``kernels``: seconds of each kernel of a step, where ``--kernels`` asks for them.

``--compile 3/12`` compiles a part of the calls and measures nothing: several processes at once fill Triton's cache.
``--trial`` runs everything once on the CPU, with tiny inputs: the program without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import torch

import usreg_kernels as uk
from bench.cases import IMAGES, INPUTS, OF_IMAGES
from tools.gpu.clock import Clock, GraphClock, Run, TrialClock
from tools.gpu.tables import HEADER, Row, line
from usreg_kernels.dispatch import machine_reasons
from usreg_kernels.functional import LOSSES
from usreg_kernels.ops.lncc.saving import RECOMPUTE

GPU_BACKENDS = ("triton", "cuda")
SHAPES = ("64", "128", "brain", "wide")
WINDOWS = (3, 5, 7, 9, 11, 15)
WINDOWS_OF_MOST_SHAPES = (3, 7, 9)
MOST_SETS = 64
PEAK_BYTES = 256 * 2**20
"""Of each tensor that the memory's peak is measured with: far above any cache."""


@dataclass(frozen=True)
class Call:
    """A call of a loss that is measured.

    Attributes:
        op: a key of ``usreg_kernels.functional.LOSSES``.
        variant: what tells it from other calls of the op, in words.
        shape_name: a key of ``bench.cases.IMAGES``.
        arguments: keyword arguments of the function.
        dtype: of the inputs.
        gradients: of how many inputs; 0 for a forward pass without any.
    """

    op: str
    variant: str
    shape_name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    gradients: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each input: the image's, or that of a field with a component per axis."""
        batch, channels, *space = IMAGES[self.shape_name]
        return (batch, channels if self.op in OF_IMAGES else len(space), *space)

    @property
    def input_bytes(self) -> int:
        """Of all inputs together."""
        return INPUTS[self.op] * self.tensor_bytes

    @property
    def tensor_bytes(self) -> int:
        """Of one input, or one gradient."""
        return prod(self.shape) * self.dtype.itemsize


def calls(ops: Sequence[str], shapes: Sequence[str], windows: Sequence[int] = WINDOWS) -> Iterator[Call]:
    """What is measured: every window on the volume of a brain, the usual ones elsewhere, and variants of dtype."""
    for op in ops:
        for shape in shapes:
            if op == "lncc":
                yield from _lncc_calls(shape, windows)
            elif IMAGES[shape][1] == 1 or shape == "64":
                yield from _field_calls(op, shape)


def _lncc_calls(shape: str, windows: Sequence[int]) -> Iterator[Call]:
    brain = shape == "brain"
    for window in windows:
        if brain or window in WINDOWS_OF_MOST_SHAPES:
            yield Call("lncc", f"window {window}", shape, {"kernel_size": window})
    if brain and 9 in windows:
        nine = {"kernel_size": 9}
        yield Call("lncc", "window 9", shape, nine, torch.float16)
        yield Call("lncc", "window 9", shape, nine, torch.bfloat16)
        yield Call("lncc", "window 9, both gradients", shape, nine, gradients=2)
        yield Call("lncc", "window 9, no gradient", shape, nine, gradients=0)
        yield Call("lncc", "window 9, gaussian", shape, {**nine, "kernel_type": "gaussian"})
        yield Call("lncc", "window 9", shape, nine, torch.float64)


def _field_calls(op: str, shape: str) -> Iterator[Call]:
    yield Call(op, "", shape)
    if shape == "brain":
        yield Call(op, "", shape, dtype=torch.float16)
        if op == "gradient_smoothness":
            yield Call(op, "central", shape, {"scheme": "central"})


def input_sets(call: Call, device: str, count: int) -> list[list[torch.Tensor]]:
    """Sets of noise; the first inputs of each want gradients."""
    sets = []
    for seed in range(count):
        generator = torch.Generator(device).manual_seed(seed)
        tensors = [
            torch.rand(call.shape, generator=generator, device=device).to(call.dtype) for _ in range(INPUTS[call.op])
        ]
        sets.append([tensor.requires_grad_(i < call.gradients) for i, tensor in enumerate(tensors)])
    return sets


def set_count(call: Call, clock: Clock) -> int:
    """As many sets as no cache holds together, but at least two."""
    return max(2, min(MOST_SETS, -(-clock.cache_bytes // call.input_bytes)))


def passes(call: Call, sets: list[list[torch.Tensor]]) -> tuple[list[Run], list[Run]]:
    """Forward passes, and steps, of all input sets; no steps where no gradient is wanted."""
    loss = LOSSES[call.op]

    def forward(tensors: list[torch.Tensor]) -> torch.Tensor:
        return loss(*tensors, **call.arguments)

    def step(tensors: list[torch.Tensor]) -> object:
        return torch.autograd.grad(forward(tensors), tensors[: call.gradients], incoming)

    incoming = torch.ones_like(forward(sets[0]).detach())
    steps: list[Run] = [lambda s=s: step(s) for s in sets] if call.gradients else []  # type: ignore[misc]
    return [lambda s=s: forward(s) for s in sets], steps  # type: ignore[misc]


def measure(call: Call, backend: str, clock: Clock, with_kernels: bool = False) -> Row:
    """Times of one call on one backend; a problem becomes a part of the row."""
    names = call.op, call.variant, call.shape_name, str(call.dtype).removeprefix("torch."), backend
    try:
        with uk.use_backend(backend):
            forwards, steps = passes(call, input_sets(call, clock.device, set_count(call, clock)))
            saved = clock.held_bytes(forwards[0]) if call.gradients else 0
            forward = clock.seconds(forwards)
            loop, launch = clock.loop(steps or forwards)
            return Row(
                *names,
                forward=forward,
                step=clock.seconds(steps) if steps else None,
                loop=loop,
                launch=launch,
                saved_bytes=saved,
                forward_bytes=call.input_bytes + saved,
                backward_bytes=saved + call.input_bytes + call.gradients * call.tensor_bytes if steps else 0,
                kernels=_kernels(clock, (steps or forwards)[0]) if with_kernels else {},
            )
    except (uk.BackendError, torch.OutOfMemoryError) as reason:
        return Row(*names, problem=_first_line(reason))
    except Exception as failure:
        return Row(*names, problem=f"{type(failure).__name__}: {_first_line(failure)}", failed=True)


def _kernels(clock: Clock, run: Run) -> dict[str, float]:
    """Nothing where the profiler fails, as it may in a virtual machine: the times are worth having without it."""
    try:
        return clock.kernels(run)
    except Exception as failure:
        print(f"no times of single kernels: {_first_line(failure)}", flush=True)
        return {}


def compile_only(call: Call, backend: str, clock: Clock) -> None:
    """Run a call once; a failure is left to the measurement, which reports it."""
    try:
        with uk.use_backend(backend):
            forwards, steps = passes(call, input_sets(call, clock.device, count=1))
            (steps or forwards)[0]()
    except Exception as failure:
        print(f"{call.op} {call.variant} {backend}: {_first_line(failure)}", flush=True)


def _first_line(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0][:200]


def peak_rate(clock: Clock, size: int = PEAK_BYTES) -> float:
    """Bytes per second that the memory moves at most: the better of an addition and a copy of large tensors."""
    first, second, third = (torch.ones(size // 4, device=clock.device) for _ in range(3))
    add = clock.seconds([lambda: torch.add(first, second, out=third)])
    copy = clock.seconds([lambda: third.copy_(first)])
    return max(3 * size / add, 2 * size / copy)


def combinations(options: argparse.Namespace) -> Iterator[tuple[Call, str]]:
    """The calls with the backends that this machine runs."""
    for call in calls(options.op, options.shape, options.window):
        for backend in options.backend:
            if machine_reasons(call.op)[backend] is None:
                yield call, backend


def versions() -> dict[str, str]:
    """What times depend on."""
    found = {"torch": str(torch.__version__)}
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = "not installed"
    return found


def change_processors(factor: float) -> None:
    """Let the Triton march be planned for ``factor`` times the multiprocessors, and so for more or fewer programs.

    Raises:
        AttributeError: the plan no longer asks ``triton_plan._multiprocessors``.
    """
    from usreg_kernels.ops.lncc import triton_plan

    real: Callable[[torch.device], int] = triton_plan._multiprocessors
    triton_plan._multiprocessors = lambda device: max(1, round(factor * real(device)))


def main(arguments: Sequence[str] | None = None, clock: Clock | None = None) -> int:
    """The command line; ``clock`` replaces the GPU's."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu.kernel_times", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--op", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--backend", nargs="+", default=list(GPU_BACKENDS), help="of `python -m usreg_kernels`")
    parser.add_argument("--shape", nargs="+", choices=list(IMAGES), default=list(SHAPES))
    parser.add_argument("--window", nargs="+", type=int, default=list(WINDOWS), help="of LNCC")
    parser.add_argument("--json", type=Path, help="where the results go, after each measurement")
    parser.add_argument("--compile", metavar="PART/PARTS", help="compile a part of the calls, and measure nothing")
    parser.add_argument("--kernels", action="store_true", help="also the time of each kernel")
    parser.add_argument("--processors", type=float, metavar="FACTOR", help="plan for FACTOR times the multiprocessors")
    parser.add_argument("--trial", action="store_true", help="once on the CPU: tries the program without a GPU")
    options = parser.parse_args(arguments)
    if clock is None:
        clock = TrialClock() if options.trial else GraphClock()
    if options.processors is not None:
        change_processors(options.processors)
    chosen = list(combinations(options))
    if options.compile:
        part, parts = map(int, options.compile.split("/"))
        for call, backend in chosen[part::parts]:
            compile_only(call, backend, clock)
        return 0

    content: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if clock.device == "cuda" else "none: times mean nothing",
        "versions": versions(),
        "recompute": RECOMPUTE,
        "peak": peak_rate(clock, 2**20 if options.trial else PEAK_BYTES),
        "rows": [],
    }
    print(f"peak of the memory: {content['peak'] / 1e12:.2f} TB/s\n{HEADER}", flush=True)
    failed = 0
    for call, backend in chosen:
        row = measure(call, backend, clock, options.kernels)
        failed += row.failed
        print(line(row, content["peak"]), flush=True)
        content["rows"].append(asdict(row))
        if options.json is not None:
            options.json.write_text(json.dumps(content, indent=1))
        if (reason := clock.lost()) is not None:
            print(f"the GPU no longer works ({reason}): nothing more is measured in this process", flush=True)
            return 1
    if not chosen:
        print("nothing to measure: no chosen backend runs here (`python -m usreg_kernels` says why)")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())

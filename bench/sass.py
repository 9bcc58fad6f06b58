"""``python -m bench.sass``: what the Triton kernels compile to, without a GPU.

Calls the product's own code on CPU tensors, notes how it launches each kernel instead of launching it, and compiles the
kernel ahead of time with just these parameters. What the machine code holds are facts: registers, stack, instructions.
Times are not among them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
_TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
_REGISTERS_PER_MULTIPROCESSOR = 65536
_THREADS_PER_MULTIPROCESSOR = 2048


@dataclass(frozen=True)
class Launch:
    """How the product launches a kernel.

    Attributes:
        name: ``op.kernel``.
        kernel: the Triton function.
        grid: programs along each axis.
        arguments: by the names of the kernel's parameters.
        options: of the compiler.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]

    def source(self) -> Any:
        """What Triton's compiler takes, with the arguments specialised as at a launch."""
        from triton.compiler import ASTSource

        signature, constants, attributes = {}, {}, {}
        for i, (name, value) in enumerate(self.arguments.items()):
            is_constant = self.kernel.params[i].is_constexpr or value is None or (type(value) is int and value == 1)
            if is_constant:
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{_TYPES[value.dtype]}"
                attributes[(i,)] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32"
        return ASTSource(self.kernel, signature=signature, constexprs=constants, attrs=attributes)


class _Recorder:
    """Stands for a Triton function in a module, and notes its launches."""

    def __init__(self, name: str, kernel: Any, launches: list[Launch]) -> None:
        self._name, self._kernel, self._launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **keywords: Any) -> None:
            options = {name: keywords.pop(name) for name in _OPTIONS if name in keywords}
            names = [parameter.name for parameter in self._kernel.params]
            given = {**dict(zip(names, arguments, strict=False)), **keywords}
            ordered = {name: given[name] for name in names}
            self._launches.append(Launch(self._name, self._kernel, tuple(grid), ordered, options))

        return launch


@contextmanager
def recording(op: str) -> Iterator[tuple[ModuleType, list[Launch]]]:
    """The module of an op's Triton backend, whose launches are noted instead of carried out."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 leaves nothing to compile: unset it")
    from triton.runtime.jit import JITFunction

    module = import_module(f"usreg_kernels.ops.{op}.triton")
    second_stage = import_module("usreg_kernels.ops.triton_reduction")
    launches: list[Launch] = []
    replaced = []
    for owner in (module, second_stage):
        for name, kernel in vars(owner).items():
            if isinstance(kernel, JITFunction):
                replaced.append((owner, name, kernel))
    try:
        for owner, name, kernel in replaced:
            setattr(owner, name, _Recorder(f"{op}.{name.lstrip('_')}", kernel, launches))
        yield module, launches
    finally:
        for owner, name, kernel in replaced:
            setattr(owner, name, kernel)


@dataclass
class Compiled:
    """What a launch compiles to for one target.

    Attributes:
        launch: what was compiled.
        target: a key of :data:`TARGETS`.
        assembly: the code of each stage, by the compiler's names.
    """

    launch: Launch
    target: str
    assembly: Mapping[str, Any] = field(repr=False)

    @cached_property
    def resources(self) -> dict[str, int]:
        """Registers per thread (``REG``), bytes of stack (``STACK``) and of shared memory (``SHARED``)."""
        text = _tool("cuobjdump", self.assembly["cubin"], "--dump-resource-usage")
        return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", text)}

    @cached_property
    def instructions(self) -> list[str]:
        """The machine code (SASS), an instruction each; labels end with a colon."""
        found = []
        for line in _tool("nvdisasm", self.assembly["cubin"], "-c").splitlines():
            if label := re.match(r"\s*(\.L_\w+):", line):
                found.append(f"{label.group(1)}:")
            elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
                found.append(code.group(1))
        return found

    @cached_property
    def main_loop(self) -> list[str]:
        """The instructions of the longest loop; of the whole kernel, where there is none."""
        labels, loops = {}, []
        for i, text in enumerate(self.instructions):
            if text.endswith(":"):
                labels[text[:-1]] = i
            elif (jump := re.search(r"BRA.*`\((\.L_\w+)\)", text)) and labels.get(jump.group(1), i) < i - 1:
                loops.append((labels[jump.group(1)], i + 1))  # a jump to itself only fills up the end of the code
        begin, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, len(self.instructions)))
        return [text for text in self.instructions[begin:end] if not text.endswith(":")]

    @property
    def opcodes(self) -> Counter[str]:
        """How often each instruction occurs in the main loop, without its modifiers."""
        return Counter(re.sub(r"^@\S+\s+", "", text).split()[0].split(".")[0] for text in self.main_loop)

    @property
    def layout_conversions(self) -> int:
        """Exchanges of values between threads through shared memory."""
        return str(self.assembly["ttgir"]).count("ttg.convert_layout")

    @property
    def threads(self) -> int:
        """Threads per program."""
        return 32 * int(self.launch.options.get("num_warps", 4))

    @property
    def per_voxel(self) -> float:
        """Instructions of the main loop per voxel; of the second stage of a reduction, per partial sum."""
        sizes = [
            int(self.launch.arguments[name]) for name in ("BLOCK", "TX", "BY", "BG") if name in self.launch.arguments
        ]
        return len(self.main_loop) * self.threads / prod(sizes)

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's threads that registers leave room for."""
        per_warp = -(-self.resources["REG"] * 32 // 256) * 256
        programs = _REGISTERS_PER_MULTIPROCESSOR // (per_warp * (self.threads // 32))
        return min(1.0, programs * self.threads / _THREADS_PER_MULTIPROCESSOR)


def _tool(name: str, binary: bytes, *options: str) -> str:
    """What a tool of the CUDA toolkit that comes with Triton prints of a binary."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([path, *options, file.name], capture_output=True, text=True, check=True).stdout


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile a noted launch for one of :data:`TARGETS`."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = dict(launch.options)
    if TARGETS[target][0] == "hip":
        options.pop("maxnreg", None)
    compiled = triton.compile(launch.source(), target=GPUTarget(*TARGETS[target]), options=options)
    return Compiled(launch, target, compiled.asm)


# ---- the calls of the table ------------------------------------------------------------------------------------------

Call = Callable[[ModuleType, torch.dtype], None]


def _smoothness(module: ModuleType, dtype: torch.dtype) -> None:
    dvf = torch.empty(1, 3, 16, 32, 48, dtype=dtype)
    for reduction in ("mean", "none"):
        for scheme, penalty in (("forward", "l2"), ("central", "l1")):
            params = {"penalty": penalty, "scheme": scheme, "spacing": None, "normalize": False, "reduction": reduction}
            loss, saved = module.forward(dvf, needs_grad=[True], **params)
            module.backward(loss, saved, dvf, needs_grad=[True], **params)


def _bending(module: ModuleType, dtype: torch.dtype) -> None:
    dvf = torch.empty(1, 3, 16, 32, 48, dtype=dtype)
    for reduction in ("mean", "none"):
        loss, saved = module.forward(dvf, needs_grad=[True], normalize=False, reduction=reduction)
        module.backward(loss, saved, dvf, needs_grad=[True], normalize=False, reduction=reduction)


def _dvf_mse(module: ModuleType, dtype: torch.dtype) -> None:
    pred = torch.empty(1, 3, 16, 32, 48, dtype=dtype)
    for mask in (None, torch.empty(1, 1, 16, 32, 48)):
        loss, saved = module.forward(pred, pred, mask, reduction="mean")
        module.backward(loss, saved, pred, pred, mask, needs_grad=[True, False], reduction="mean")


def _lncc(module: ModuleType, dtype: torch.dtype) -> None:
    for window in (3, 5, 7, 9, 11, 15):
        lncc_step(module, dtype, window)


def lncc_step(module: ModuleType, dtype: torch.dtype, window: int, **changes: Any) -> None:
    """Forward and backward of LNCC with a rectangular window, or with other arguments of its Triton backend."""
    arguments = {
        "shape": (1, 1, 64, 64, 64),
        "needs_grad": [True, False],
        "kernel_type": "rectangular",
        "reduction": "mean",
        **changes,
    }
    image = torch.empty(arguments.pop("shape"), dtype=dtype)
    arguments |= {"kernel_size": [window] * (image.ndim - 2), "smooth_nr": 0.0, "smooth_dr": 1e-5}
    loss, saved = module.forward(image, image, None, **arguments)
    module.backward(loss, saved, image, image, None, **arguments)


CALLS: dict[str, Call] = {
    "gradient_smoothness": _smoothness,
    "bending_energy": _bending,
    "dvf_mse": _dvf_mse,
    "lncc": _lncc,
}
"""By op: calls of its Triton backend that launch each of its kernels."""


def launches(op: str, dtype: torch.dtype) -> list[Launch]:
    """The launches of an op's calls in :data:`CALLS`."""
    with recording(op) as (module, found):
        CALLS[op](module, dtype)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.sass", description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=sorted(CALLS), action="append")
    parser.add_argument("--target", choices=[name for name in TARGETS if name.startswith("sm")], action="append")
    options = parser.parse_args()
    print(
        "| kernel | dtype | target | registers | stack | shared | instructions per voxel | occupancy |\n"
        + "|---" * 8
        + "|"
    )
    for op in options.op or sorted(CALLS):
        for dtype in (torch.float32, torch.float16):
            seen = set()
            for launch in launches(op, dtype):
                key = (launch.name, tuple(launch.source().constants.items()))
                if key in seen:
                    continue
                seen.add(key)
                for target in options.target or ["sm_80", "sm_90"]:
                    found = compile_launch(launch, target)
                    row = [launch.name, _TYPES[dtype], target, found.resources["REG"], found.resources["STACK"]]
                    row += [found.resources["SHARED"], f"{found.per_voxel:.1f}", f"{100 * found.occupancy:.0f} %"]
                    print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()

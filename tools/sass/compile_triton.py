"""What a kernel compiles to, without a GPU. Of Triton: notes how the product launches it, and compiles it for a target.

The product's own code is called on CPU tensors; its launches are noted instead of carried out, and each kernel is
compiled with just these parameters. What the machine code holds are facts: registers, stack, instructions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
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
DTYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
}
"""Triton's names of dtypes."""

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
            parameter = self.kernel.params[i]
            specialized = not parameter.do_not_specialize
            aligned = specialized and not parameter.do_not_specialize_on_alignment
            if parameter.is_constexpr or value is None or (specialized and type(value) is int and value == 1):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = f"*{'i32' if value.dtype == torch.int32 else DTYPES[value.dtype]}"
                if aligned:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if aligned and value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            elif isinstance(value, tuple):
                signature[name] = tuple("fp32" for _ in value)
            else:
                signature[name] = "fp32"
        return ASTSource(self.kernel, signature=signature, constexprs=constants, attrs=attributes)

    @property
    def bytes_per_voxel(self) -> float | None:
        """What must move if each image, field and map is read or written once; None for a second stage."""
        large = {n: v for n, v in self.arguments.items() if isinstance(v, torch.Tensor) and v.ndim >= 3}
        voxels = next((large[name].numel() for name in ("pred", "dvf", "ddf") if name in large), None)
        return sum(v.numel() * v.element_size() for v in large.values()) / voxels if voxels else None

    @property
    def lane_bits(self) -> int | None:
        """How wide a load of a lane's voxels is, for kernels whose lanes own several."""
        columns = self.arguments.get("TX")
        return columns and columns * self.arguments["pred"].element_size() * 8


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
    others = ("triton_reduction", "warp.triton", "gaussian_smooth.triton", "mind_ssc.triton")
    shared = [import_module(f"usreg_kernels.ops.{name}") for name in others]
    launches: list[Launch] = []
    replaced = []
    for owner in (module, *(other for other in shared if other is not module)):
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

    @property
    def is_cuda(self) -> bool:
        """Whether there is machine code that the tools of CUDA can read."""
        return "cubin" in self.assembly

    @cached_property
    def resources(self) -> dict[str, int]:
        """Registers per thread (``REG``), bytes of stack (``STACK``) and of shared memory (``SHARED``)."""
        if not self.is_cuda:
            text = str(self.assembly["amdgcn"])
            names = {"REG": "vgpr_count", "STACK": "private_segment_fixed_size", "SHARED": "group_segment_fixed_size"}
            return {name: int(re.findall(rf"\.{key}:\s+(\d+)", text)[0]) for name, key in names.items()}
        return resources(self.assembly["cubin"])

    @cached_property
    def instructions(self) -> list[str]:
        """The machine code (SASS), an instruction each; labels end with a colon."""
        found = []
        # Analysing the stack of branches takes a third of the time, and finds nothing in Triton's code.
        for line in _tool("nvdisasm", self.assembly["cubin"], "-c", "--no-dataflow").splitlines():
            if label := re.match(r"\s*(\.L_\w+):", line):
                found.append(f"{label.group(1)}:")
            elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
                found.append(code.group(1))
        return found

    @cached_property
    def _loops(self) -> list[range]:
        """Where loops lie among the instructions, longest first; the whole kernel, where there is none."""
        labels: dict[str, int] = {}
        ends: dict[int, int] = {}
        for i, text in enumerate(self.instructions):
            if text.endswith(":"):
                labels[text[:-1]] = i
            elif (jump := re.search(r"BRA.*`\((\.L_\w+)\)", text)) and labels.get(jump.group(1), i) < i - 1:
                ends[labels[jump.group(1)]] = i + 1  # a jump to itself only fills up the end of the code
        # What always leaves the kernel is no loop, but a path outside of the loop that jumps back. A loop may leave it
        # at a condition.
        code = {range(*loop): "\n".join(self.instructions[slice(*loop)]) for loop in ends.items()}
        found = [loop for loop, text in code.items() if not re.search(r"^(EXIT|RET)\b", text, re.MULTILINE)]
        return sorted(found, key=len, reverse=True) or [range(len(self.instructions))]

    def _code(self, where: range) -> list[str]:
        return [text for text in self.instructions[where.start : where.stop] if not text.endswith(":")]

    @property
    def main_loop(self) -> list[str]:
        """The instructions of the longest loop; of the whole kernel, where there is none."""
        return self._code(self._loops[0])

    @property
    def inner_loop(self) -> list[str]:
        """The instructions of the longest loop inside that one; none, where there is none."""
        main = self._loops[0]
        inside = [loop for loop in self._loops if main.start < loop.start and loop.stop < main.stop]
        return self._code(inside[0]) if inside else []

    @property
    def opcodes(self) -> Counter[str]:
        """How often each instruction occurs in the main loop, without its modifiers."""
        return Counter(re.sub(r"^@\S+\s+", "", text).split()[0].split(".")[0] for text in self.main_loop)

    @property
    def narrowest_load(self) -> int:
        """The fewest bits that a load from global memory in the main loop takes; 0 without loads."""
        loads = [re.search(r"\bLDG\.E\.?[A-Z]*(\d*)", text) for text in self.main_loop]
        return min((int(load.group(1) or 32) for load in loads if load), default=0)

    @property
    def layout_conversions(self) -> int:
        """Exchanges of values between threads through shared memory."""
        return str(self.assembly["ttgir"]).count("ttg.convert_layout")

    @property
    def threads(self) -> int:
        """Threads per program."""
        return TARGETS[self.target][2] * int(self.launch.options.get("num_warps", 4))

    @property
    def per_voxel(self) -> float:
        """Instructions of the main loop per voxel; of the second stage of a reduction, per partial sum."""
        sizes = [
            int(self.launch.arguments[name])
            for name in ("BLOCK", "SPAN", "TX", "BY", "BG")
            if name in self.launch.arguments
        ]
        return len(self.main_loop) * self.threads / prod(sizes)

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's threads that registers leave room for."""
        per_warp = -(-self.resources["REG"] * 32 // 256) * 256
        programs = _REGISTERS_PER_MULTIPROCESSOR // (per_warp * (self.threads // 32))
        return min(1.0, programs * self.threads / _THREADS_PER_MULTIPROCESSOR)


@cache
def _tool_path(name: str) -> Path:
    """Where a tool of the CUDA toolkit is: the one that comes with Triton, or that of an installed toolkit.

    Raises:
        FileNotFoundError: nowhere.
    """
    import triton

    folders = [Path(triton.__file__).parent / "backends" / "nvidia" / "bin"]
    folders += [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    found = [folder / name for folder in folders if (folder / name).is_file()]
    if on_path := shutil.which(name):
        found.append(Path(on_path))
    if not found:
        searched = ", ".join(map(str, folders))
        raise FileNotFoundError(f"{name} is neither in {searched} nor on PATH: install the CUDA toolkit's binary tools")
    return found[0]


def _tool(name: str, binary: bytes, *options: str) -> str:
    """What a tool of the CUDA toolkit prints of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [_tool_path(name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread (``REG``), bytes of stack (``STACK``) and of shared memory (``SHARED``) of a CUDA kernel."""
    text = _tool("cuobjdump", cubin, "--dump-resource-usage")
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED):(\d+)", text)}


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile a noted launch for one of :data:`TARGETS`."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = dict(launch.options)
    if TARGETS[target][0] == "hip":
        options.pop("maxnreg", None)
    compiled = triton.compile(launch.source(), target=GPUTarget(*TARGETS[target]), options=options)
    return Compiled(launch, target, compiled.asm)

"""``python -m bench.sass_cuda``: what the CUDA C++ kernels compile to, without a GPU; rows like those of bench.sass."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ahead_of_time import Compiled, Launch

CSRC = Path(__file__).parents[1] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
TARGETS = ("sm_80", "sm_90")
_MARCH_THREADS, _MARCH_COLUMNS = 128, 2
_LARGEST_MARCH = 15  # whose rows are not unrolled


@dataclass(frozen=True)
class Kernel:
    """A kernel with its template arguments.

    Attributes:
        name: ``op.kernel``, and what sets this one apart.
        header: of ``csrc/cuda``.
        code: the kernel, in C++.
        threads: per block.
        voxels: per block and turn of the main loop; None where no loop is the main one.
        turns: of a loop inside the main loop; 1 where that is unrolled.
    """

    name: str
    header: str
    code: str
    threads: int = 256
    voxels: int | None = 256
    turns: int = 1

    def compile(self, target: str) -> Compiled:
        """The machine code for a target."""
        launch = Launch(self.name, None, (1,), {"BLOCK": self.voxels or 1}, {"num_warps": self.threads // 32})
        return Compiled(launch, target, {"cubin": _cubin(self, target)})

    def per_voxel(self, found: Compiled) -> float | None:
        """Instructions of the main loop per voxel, those of the loop inside it as often as it turns."""
        if self.voxels is None:
            return None
        more = (self.turns - 1) * _inner_loop(found.instructions) if self.turns > 1 else 0
        return (len(found.main_loop) + more) * self.threads / self.voxels


def _inner_loop(instructions: list[str]) -> int:
    """How many instructions the longest loop inside the longest one has."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for i, text in enumerate(instructions):
        if text.endswith(":"):
            labels[text[:-1]] = i
        elif (jump := re.search(r"BRA.*`\((\.L_\w+)\)", text)) and jump.group(1) in labels:
            loops.append((labels[jump.group(1)], i + 1))
    begin, end = max(loops, key=lambda loop: loop[1] - loop[0])
    inner = [(b, e) for b, e in loops if begin < b and e < end]
    b, e = max(inner, key=lambda loop: loop[1] - loop[0])
    return sum(not text.endswith(":") for text in instructions[b:e])


def _cubin(kernel: Kernel, target: str) -> bytes:
    """Compiled with the flags of setup.py, by itself."""
    assert NVCC is not None, "nvcc was not found: install the CUDA toolkit"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        code = f"usreg::cuda::{kernel.code}"
        source.write_text(f'#include "cuda/{kernel.header}"\nusing namespace usreg;\nauto* kernel = &{code};\n')
        flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-arch={target}", f"-I{CSRC}"]
        done = subprocess.run(
            [NVCC, *flags, "-cubin", str(source), "-o", str(cubin)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return cubin.read_bytes()


def march(
    direction: str, window: int, *, box: bool = True, maps: int = 3, plain: bool = True, dtype: str = "float"
) -> Kernel:
    """A kernel of the LNCC march: ``direction`` is ``"forward"`` or ``"backward"``."""
    flags = ", ".join(str(flag).lower() for flag in (box, maps, plain))
    words = [
        f"window {window}",
        *["weighted"] * (not box),
        f"{maps} maps",
        *["mask or map"] * (not plain and box),
        dtype,
    ]
    return Kernel(
        f"lncc.{direction} ({', '.join(words)})",
        f"lncc_march_{direction}.cuh",
        f"lncc_march_{direction}<{window // 2}, {flags}, {dtype if dtype == 'float' else f'cuda::{dtype}'}>",
        _MARCH_THREADS,
        _MARCH_THREADS * _MARCH_COLUMNS,
        window if window == _LARGEST_MARCH or not box else 1,
    )


def _field(name: str, kernel: str, kind: str, penalty: str) -> Kernel:
    arguments = f"FieldLossKind::{kind}, Penalty::{penalty}, 0, float, int32_t"
    return Kernel(name, "field_losses.cuh", f"{kernel}<{arguments}>")


def kernels() -> Iterator[Kernel]:
    """The kernels of the table."""
    for window in range(3, 17, 2):
        yield march("forward", window)
        yield march("backward", window)
    for dtype in ("Float16", "BFloat16"):
        yield march("forward", 7, dtype=dtype)
        yield march("backward", 7, dtype=dtype)
    yield march("forward", 7, maps=0)
    yield march("forward", 7, maps=5)
    yield march("backward", 7, maps=5)
    yield march("forward", 7, box=False, plain=False)
    yield march("backward", 7, box=False, plain=False)
    yield _field("gradient_smoothness.forward", "sum_penalties", "kForwardDifferences", "kSquare")
    yield _field("gradient_smoothness.backward", "write_field_gradient", "kForwardDifferences", "kSquare")
    yield _field("bending_energy.forward", "sum_penalties", "kBendingEnergy", "kSquare")
    yield _field("bending_energy.backward", "write_field_gradient", "kBendingEnergy", "kSquare")
    yield Kernel("dvf_mse.forward", "dvf_mse.cuh", "sum_errors<float>", voxels=None)
    yield Kernel("dvf_mse.backward", "dvf_mse.cuh", "write_error_gradients<float>", voxels=None)


def rows(targets: tuple[str, ...] = TARGETS) -> Iterator[str]:
    """Rows of the table of bench.sass, a kernel and a target each."""
    for kernel in kernels():
        for target in targets:
            found = kernel.compile(target)
            row: list[object] = [f"{kernel.name}, CUDA C++", target, found.resources["REG"], found.resources["STACK"]]
            per_voxel = kernel.per_voxel(found)
            row += [found.resources["SHARED"], "" if per_voxel is None else f"{per_voxel:.1f}"]
            row.append(f"{100 * found.occupancy:.0f} %")
            yield "| " + " | ".join(map(str, row)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.sass_cuda", description=__doc__)
    parser.add_argument("--target", action="append", help="such as sm_80; may be repeated")
    targets = tuple(parser.parse_args().target or TARGETS)
    print("| kernel | target | registers | stack | shared | instructions per voxel | occupancy |\n" + "|---" * 7 + "|")
    for row in rows(targets):
        print(row, flush=True)


if __name__ == "__main__":
    main()

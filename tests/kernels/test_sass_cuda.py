"""What nvcc makes of the CUDA C++ kernels, without a GPU: registers, spills, memory, instructions per voxel."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from kernels.budgets import CUDA, SHARED

from tools.sass import compile_cuda
from tools.sass.compile_cuda import Kernel

pytestmark = [
    pytest.mark.skipif(compile_cuda.NVCC is None, reason="needs nvcc"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs the disassembler that comes with Triton"),
]

TARGETS = ("sm_80", "sm_90")
KERNELS = {
    (kernel.name, kernel.call if kernel.dtype == "fp32" else f"{kernel.call}, {kernel.dtype}"): kernel
    for kernel in compile_cuda.kernels()
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "kernel"), KERNELS.items(), ids=map(str, KERNELS.values()))
def test_the_budget_holds(name: tuple[str, str], kernel: Kernel, target: str) -> None:
    found = kernel.compile(target)
    instructions, registers = CUDA[name]
    assert kernel.per_voxel(found) <= instructions
    assert not {"BAR", "LDS", "STS", "LDL", "STL"} & set(found.opcodes)
    assert found.resources["REG"] <= registers
    assert found.resources["STACK"] == 0
    assert found.resources["SHARED"] <= SHARED


def test_every_kernel_has_a_budget() -> None:
    assert set(CUDA) == set(KERNELS)


def test_the_budgets_meet_the_design() -> None:
    """Four blocks of the march per multiprocessor; of the others, enough for half of its threads.

    But for three: the gradients of a map of bending energy and of gaussian windows in float64, and MIND's comparison of
    24 distances.
    """
    for direction, most in (("forward", 175), ("backward", 115)):
        instructions, registers = CUDA[f"lncc.march_{direction}", "window 7"]
        assert instructions <= most
        assert registers <= 128
    for (name, call), (_, registers) in CUDA.items():
        large = (
            ("bending_energy.write_gradient", "map"),
            ("mind.compare", "mean"),
            ("mutual_information.write_gradients", "gaussian"),
        )
        if not name.startswith("lncc") and (name, call) not in large:
            assert registers <= 64


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("window", range(3, 17, 2))
def test_the_march_without_a_gradient_never_spills(window: int, target: str) -> None:
    (kernel,) = compile_cuda.march("no gradient", window, maps=0)
    assert kernel.compile(target).resources["STACK"] == 0

"""What nvcc makes of the CUDA C++ kernels: registers, spills and instructions per voxel, without a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from bench import sass_cuda
from bench.sass_cuda import TARGETS, march

pytestmark = [
    pytest.mark.skipif(sass_cuda.NVCC is None, reason="needs nvcc"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs the disassembler that comes with Triton"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("direction", "most"), [("forward", 175), ("backward", 115)])
def test_the_march_at_window_7_keeps_its_budget(direction: str, most: int, target: str) -> None:
    kernel = march(direction, 7)
    found = kernel.compile(target)
    assert found.resources["REG"] <= 128
    assert found.resources["STACK"] == 0
    per_voxel = kernel.per_voxel(found)
    assert per_voxel is not None
    assert per_voxel <= most
    assert found.occupancy >= 0.25  # four blocks per multiprocessor
    assert not {"BAR", "LDS", "STS", "LDL", "STL"} & set(found.opcodes)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("window", range(3, 17, 2))
def test_the_march_never_spills(window: int, target: str) -> None:
    for direction, maps in (("forward", 0), ("forward", 3), ("backward", 3)):
        assert march(direction, window, maps=maps).compile(target).resources["STACK"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills(target: str) -> None:
    for kernel in sass_cuda.kernels():
        assert kernel.compile(target).resources["STACK"] == 0, kernel.name

"""How a call of LNCC in Triton is cut into programs: from the registers of the compiled kernel, the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels.triton_stand_in import GPU, MULTIPROCESSORS, gpu_properties

from usreg_kernels.ops.lncc import triton_plan
from usreg_kernels.ops.lncc.triton_plan import Plan, Tile, ceil_div, programs_per_multiprocessor
from usreg_kernels.windows import make_window, trimmed_weights

CUBE = (1, 1, 128, 128, 128)
REGISTERS = {3: 91, 5: 94, 7: 128, 9: 154, 11: 168, 13: 216, 15: 250}
"""Of the forward march by window, on an H100."""


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpu_properties)


def _tile(window: int, shape: tuple[int, ...] = CUBE) -> Tile:
    return triton_plan.best_by_counts(shape, _weights(window), False, 5)


def _weights(window: int) -> Any:
    return trimmed_weights(make_window("rectangular", (window,) * 3))


def _plan(window: int, registers: int | None, shape: tuple[int, ...] = CUBE) -> Plan:
    return triton_plan.make_plan(shape, _weights(window), _tile(window, shape), {}, GPU, lambda constants: registers)


def _planes_in_turn(plan: Plan, window: int, registers: int) -> int:
    """How many planes are marched one after the other, until the last program ends."""
    slots = MULTIPROCESSORS * programs_per_multiprocessor(registers, plan.constants["num_warps"], 2048)
    return ceil_div(plan.programs, slots) * (plan.numbers[-1] + window - 1)


@pytest.mark.parametrize(
    ("registers", "warps", "programs"),
    [
        *[(32, 4, 16), (64, 4, 8), (96, 4, 5), (104, 4, 4), (128, 4, 4), (129, 4, 3), (168, 4, 3), (169, 4, 2)],
        *[(255, 4, 2), (255, 16, 1), (128, 8, 2), (128, 2, 8), (162, 2, 6)],
    ],
)
def test_programs_per_multiprocessor_follow_from_registers(registers: int, warps: int, programs: int) -> None:
    assert programs_per_multiprocessor(registers, warps, 2048) == programs


def test_threads_limit_the_programs_of_small_kernels() -> None:
    assert programs_per_multiprocessor(16, 4, 2048) == 16
    assert programs_per_multiprocessor(16, 4, 1536) == 12


@pytest.mark.parametrize("window", [7, 9, 15])
def test_a_cube_of_128_takes_one_wave(window: int) -> None:
    registers = REGISTERS[window]
    plan = _plan(window, registers)
    slots = MULTIPROCESSORS * programs_per_multiprocessor(registers, 4, 2048)
    assert plan.programs <= slots
    assert plan.programs > 0.7 * slots


@pytest.mark.parametrize("shape", [CUBE, (1, 1, 160, 192, 224), (2, 16, 128, 128, 128), (2, 1, 64, 64, 64)])
@pytest.mark.parametrize("window", REGISTERS)
def test_to_know_the_registers_never_costs_planes(window: int, shape: tuple[int, ...]) -> None:
    registers = REGISTERS[window]
    known, unknown = (_plan(window, known, shape) for known in (registers, None))
    assert _planes_in_turn(known, window, registers) <= _planes_in_turn(unknown, window, registers)


def test_windows_of_9_and_15_gain_by_it() -> None:
    """Three programs fit at 9 and two at 15: planned for four, a second wave would be nearly empty."""
    for window, before, after in ((9, 68, 40), (15, 80, 78)):
        assert _planes_in_turn(_plan(window, None), window, REGISTERS[window]) == before
        assert _planes_in_turn(_plan(window, REGISTERS[window]), window, REGISTERS[window]) == after


class _StandIn:
    """Stands for a Triton function and for what it compiles to, which has registers once it is loaded."""

    def __init__(self, registers: int) -> None:
        self.registers = registers
        self.warmups: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **constants: Any) -> _StandIn:
        self.warmups.append((arguments, constants))
        return self

    @property
    def run(self) -> Callable[..., None]:
        self.n_regs = self.registers
        return lambda *arguments: None


def test_the_compiled_kernel_is_asked_with_all_its_constants() -> None:
    kernel = _StandIn(162)
    ask = partial(triton_plan.registers_of, kernel, (1,))
    plan = triton_plan.make_plan(CUBE, _weights(9), _tile(9), {"MAPS": 3}, GPU, ask)
    assert plan.numbers == _plan(9, 162).numbers
    assert kernel.warmups == [((1,), plan.constants)]
    assert plan.constants["MAPS"] == 3


def test_registers_of_rocm_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    kernel = _StandIn(162)
    assert triton_plan.registers_of(kernel, (), {}) is None
    assert not kernel.warmups


def test_without_a_device_four_programs_share_a_multiprocessor() -> None:
    cpu = torch.device("cpu")
    plan = triton_plan.make_plan(CUBE, _weights(9), _tile(9), {}, cpu, lambda constants: None)
    assert plan.numbers == (128, 128, 32, 3, 1, 128)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_plans_follow_from_what_triton_compiles_from_the_first_call_on() -> None:
    """By Triton's own launcher, on a stand-in for a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("triton_stand_in.py")
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, again, less_depth, one_plane, elsewhere = json.loads(done.stdout)
    registers = dict(first["loaded"])
    assert set(registers) == {"correlate", "propagate", "_finish"}
    assert len(first["loaded"]) == 3  # what a plan asks for is what is launched
    assert first["plans"]["correlate"] == list(_plan(9, registers["correlate"]).numbers)
    for call in (again, less_depth, one_plane):
        assert not call["loaded"]  # another depth is no other kernel
    assert again["plans"] == first["plans"]
    # Tensors that are not aligned have kernels of their own, and the plans of the others.
    assert {name for name, _ in elsewhere["loaded"]} == {"correlate", "propagate"}
    assert elsewhere["plans"] == first["plans"]

"""The Triton kernels compiled ahead of time, launched as the product launches them: they compile, and keep budgets.

Environment variables:

``USREG_BUDGETS``
    ``few``: only for sm_80 and sm_90, in float32 and float16, a third of the kernels. ``make budgets`` runs other
    versions of Triton like this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from kernels.budgets import STACK, triton_budgets
from kernels.budgets import TRITON as BUDGETS

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(3000),  # over a thousand kernels, before the first test
]

Row = dict[str, Any]
FEW = os.environ.get("USREG_BUDGETS") == "few"
COUNTED = ("sm_80", "sm_90")  # the targets of the budgets
CUDA = COUNTED if FEW else (*COUNTED, "sm_100")
TARGETS = CUDA if FEW else (*CUDA, "gfx942")
DTYPES = ("fp32", "fp16") if FEW else ("fp32", "fp16", "bf16")


def _table(*targets: str) -> list[Row]:
    """The rows of ``python -m tools.sass``, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = [word for target in targets for word in ("--target", target)]
    options += [word for dtype in DTYPES for word in ("--dtype", dtype)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.sass", "--backend", "triton", "--json", *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def table() -> list[Row]:
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda targets: _table(*targets), (TARGETS[::2], TARGETS[1::2]))
        return [row for half in halves for row in half]


def test_everything_is_compiled_for_every_target(table: list[Row]) -> None:
    by_target = {t: {(r["kernel"], r["call"], r["dtype"]) for r in table if r["target"] == t} for t in TARGETS}
    assert len({frozenset(rows) for rows in by_target.values()}) == 1
    rows = by_target["sm_90"]
    for window in (3, 5, 7, 9, 15):
        for dtype in DTYPES:
            for kernel in ("lncc.correlate", "lncc.propagate"):
                assert (kernel, f"window {window}", dtype) in rows
    assert {(kernel, call) for kernel, call, dtype in rows if dtype == "fp32"} == set(BUDGETS)


def test_the_budgets_of_instructions_and_registers_hold(table: list[Row]) -> None:
    over = []
    budgets = triton_budgets(version("triton"))
    for row in table:
        if row["dtype"] == "fp32" and row["target"] in COUNTED:
            instructions, registers = budgets[row["kernel"], row["call"]]
            if row["instructions"] > instructions or row["registers"] > registers:
                over.append(row)
    assert not over


def test_the_default_window_meets_the_design(table: list[Row]) -> None:
    """Four programs per multiprocessor, and at most as many instructions as the design allows."""
    for kernel, most in (("lncc.correlate", 175), ("lncc.propagate", 115)):
        for width in ("", ", width 64", ", width 95"):
            instructions, registers = BUDGETS[kernel, f"window 7{width}"]
            assert instructions <= most
            assert registers <= 128


def test_no_registers_spill(table: list[Row]) -> None:
    for row in table:
        allowed = STACK.get((row["kernel"], row["call"], row["target"]), 0)
        assert row["stack"] <= allowed, row


def test_the_march_has_no_barrier_and_no_exchange_through_memory(table: list[Row]) -> None:
    marches = [row for row in table if row["lane_bits"] and row["target"] in CUDA]
    assert marches
    for row in marches:
        assert row["conversions"] == 0, row
        assert row["barriers"] == 0, row


def test_the_march_loads_all_voxels_of_a_lane_at_once(table: list[Row]) -> None:
    for row in table:
        ragged = row["kernel"] == "lncc.propagate" and "width 95" in row["call"]
        if row["lane_bits"] and row["target"] in CUDA and not ragged:
            assert row["narrowest_load"] >= row["lane_bits"], row


def test_volumes_move_once(table: list[Row]) -> None:
    """20 + 24 bytes per voxel in float32: two images and three maps each way, and the gradient."""
    moved = {(row["kernel"], row["dtype"]): row["bytes"] for row in table if row["call"] == "window 7"}
    assert moved["lncc.correlate", "fp32"] == 2 * 4 + 3 * 4
    assert moved["lncc.propagate", "fp32"] == 3 * 4 + 2 * 4 + 4
    assert moved["lncc.correlate", "fp16"] == 2 * 2 + 3 * 4

"""The Triton kernels compiled ahead of time, launched as the product launches them: they compile, and keep budgets.

Environment variables:

``USREG_BUDGETS``
    ``all``: for every target in every dtype, over a thousand kernels. Unless it is set, it is every kernel for every
    target in float32, in float16 for sm_90 and in bfloat16 for gfx942: half precision only changes loads and stores.
    ``few``: only for sm_80 and sm_90, in float32 and float16. ``make budgets`` runs the product of everything with the
    Triton at hand, and a few with other versions.
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
    pytest.mark.timeout(3000),  # hundreds of kernels, before the first test
]

Row = dict[str, Any]
COUNTED = ("sm_80", "sm_90")  # the targets of the budgets
PARTS: dict[str | None, dict[str, tuple[str, ...]]] = {
    None: {"sm_80": ("fp32",), "sm_90": ("fp32", "fp16"), "sm_100": ("fp32",), "gfx942": ("fp32", "bf16")},
    "all": dict.fromkeys(("sm_80", "sm_90", "sm_100", "gfx942"), ("fp32", "fp16", "bf16")),
    "few": dict.fromkeys(COUNTED, ("fp32", "fp16")),
}
COMPILED = PARTS[os.environ.get("USREG_BUDGETS") or None]
"""The dtypes that are compiled, by target."""


def _rows(target: str) -> list[Row]:
    """The rows of ``python -m tools.sass`` for a target, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--target", target, *(word for dtype in COMPILED[target] for word in ("--dtype", dtype))]
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
        return [row for rows in pool.map(_rows, COMPILED) for row in rows]


def test_everything_is_compiled_for_every_target(table: list[Row]) -> None:
    found = {(target, dtype): set() for target, dtypes in COMPILED.items() for dtype in dtypes}
    for row in table:
        found[row["target"], row["dtype"]].add((row["kernel"], row["call"]))
    halves = {frozenset(rows) for (_, dtype), rows in found.items() if dtype != "fp32"}
    assert len(halves) == 1
    for (_, dtype), rows in found.items():
        if dtype == "fp32":
            assert rows == set(BUDGETS)
        for window in (3, 5, 7, 9, 15):
            assert {("lncc.correlate", f"window {window}"), ("lncc.propagate", f"window {window}")} <= rows


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
    marches = [row for row in table if row["lane_bits"] and row["target"].startswith("sm_")]
    assert marches
    for row in marches:
        assert row["conversions"] == 0, row
        assert row["barriers"] == 0, row


def test_the_march_loads_all_voxels_of_a_lane_at_once(table: list[Row]) -> None:
    for row in table:
        ragged = row["kernel"] == "lncc.propagate" and "width 95" in row["call"]
        if row["lane_bits"] and row["target"].startswith("sm_") and not ragged:
            assert row["narrowest_load"] >= row["lane_bits"], row


def test_volumes_move_once(table: list[Row]) -> None:
    """20 + 24 bytes per voxel in float32: two images and three maps each way, and the gradient."""
    moved = {(row["kernel"], row["dtype"]): row["bytes"] for row in table if row["call"] == "window 7"}
    assert moved["lncc.correlate", "fp32"] == 2 * 4 + 3 * 4
    assert moved["lncc.propagate", "fp32"] == 3 * 4 + 2 * 4 + 4
    assert moved["lncc.correlate", "fp16"] == 2 * 2 + 3 * 4

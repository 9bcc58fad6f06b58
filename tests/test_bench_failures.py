"""A contender that fails or is wrong leaves the others of its comparison as they are, and is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import usreg_kernels as uk
from bench import tables
from bench import test_bench_overhead as overhead
from bench import test_bench_variants as variants
from bench.cases import Case, Loss
from bench.contenders import Contender
from bench.failures import Failure
from bench.measure import Plan, Session, compare
from bench.outcomes import Measured, NotMeasured, Outcome
from bench.results import load, ours
from bench.timing import interleave
from usreg_kernels.functional import LOSSES

ROOT = Path(__file__).parent.parent
CASE = Case("dvf_mse", (1, 3, 6, 7, 8))
PLAN = Plan(rounds=2, seconds_per_turn=0.0)
EXACT = Contender("exact", lambda case: torch.nn.functional.mse_loss)


def _compare(*contenders: Contender) -> dict[str, Outcome]:
    return compare(CASE, contenders, PLAN, Session())


def _fails(error: Exception, ours: bool, first: int = 1) -> Contender:
    """Fails from its n-th call on."""
    calls = 0

    def loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= first:
            raise error
        return torch.nn.functional.mse_loss(pred, target)

    return Contender("fails", lambda case: loss, ours=ours)


def test_a_wrong_result_of_ours_is_timed_and_marked() -> None:
    wrong = Contender("wrong", lambda case: lambda a, b: 1.25 * uk.dvf_mse_loss(a, b), ours=True)
    found = _compare(wrong, EXACT)
    assert isinstance(found["wrong"], Measured)
    assert found["wrong"].wrong
    assert not found["wrong"].exact
    assert found["wrong"].times.wall
    assert isinstance(found["exact"], Measured)
    assert not found["exact"].wrong


def test_a_nan_of_others_is_marked_and_no_fault() -> None:
    """As MONAI's LNCC may give on a GPU, whose convolutions are those of TF32."""
    nan = Contender("MONAI", lambda case: lambda a, b: (a - b).sum() * float("nan"), standard=True)
    found = _compare(nan, EXACT)["MONAI"]
    assert isinstance(found, Measured)
    assert not found.exact
    assert not found.wrong


@pytest.mark.parametrize("first", [1, 4], ids=["first call", "timed runs"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_failure_leaves_the_others(first: int, ours: bool) -> None:
    found = _compare(_fails(RuntimeError("broken\nmore"), ours, first), EXACT)
    assert found["fails"] == NotMeasured("fails with RuntimeError: broken", is_fault=ours)
    assert isinstance(found["exact"], Measured)
    assert len(found["exact"].times.wall) == PLAN.rounds


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("too large"), uk.BackendError("declines"), RuntimeError("can't allocate memory: 1 TB")],
)
def test_too_little_memory_and_a_call_that_is_declined_are_no_fault(error: Exception) -> None:
    found = _compare(_fails(error, ours=True), EXACT)["fails"]
    assert isinstance(found, NotMeasured)
    assert not found.is_fault


def test_the_memory_of_one_that_ran_out_of_it_is_free_before_the_next() -> None:
    held: list[weakref.ref] = []
    seen: list[object] = []

    def greedy(*tensors: torch.Tensor) -> torch.Tensor:
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        cycle: list[object] = [large]
        cycle.append(cycle)
        raise torch.OutOfMemoryError("too large")

    def next_one(case: Case) -> Loss:
        seen.append(held[0]())
        return torch.nn.functional.mse_loss

    _compare(Contender("greedy", lambda case: greedy), Contender("next", next_one))
    assert seen == [None]


def test_who_fails_in_its_turn_takes_no_further_part() -> None:
    calls: list[str] = []

    def fail() -> None:
        calls.append("b")
        if calls.count("b") == 2:
            raise ValueError("no")

    failures: dict[str, Failure] = {}
    runs = {"a": lambda: calls.append("a"), "b": fail, "c": lambda: calls.append("c")}
    times = interleave(runs, 3, warm_up=False, failures=failures)
    assert "".join(calls) == "abc" + "abc" + "ac"
    assert set(times) == {"a", "c"}
    assert failures == {"b": Failure(ValueError, "no")}


def test_without_a_place_for_failures_the_first_one_ends_everything() -> None:
    with pytest.raises(ValueError, match="no"):
        interleave({"a": lambda: None, "b": _raise}, 1)


def _raise() -> None:
    raise ValueError("no")


def test_an_overhead_that_is_wrong_or_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    def wrong(*tensors: torch.Tensor) -> torch.Tensor:
        factor = 1.25 if tensors[0].dtype == torch.float32 else 1.0  # the reference gets float64
        return factor * uk.lncc_loss(*tensors)

    monkeypatch.setitem(LOSSES, "lncc", wrong)
    monkeypatch.setitem(LOSSES, "bending_energy", fail)
    monkeypatch.setattr(overhead, "SECONDS_PER_TURN", 0.0)
    found = overhead.overheads(replace(PLAN, rounds=1), backward=True)
    assert isinstance(found["bending_energy"], Failure)
    measured = {name: part for name, part in found.items() if not isinstance(part, Failure)}
    assert {name for name, part in measured.items() if part.wrong} == {"lncc"}
    assert set(measured) == {*LOSSES, overhead.YARDSTICK} - {"bending_energy"}
    assert all(part.seconds > 0 for part in measured.values())
    assert measured["dvf_mse"].error is not None
    assert measured[overhead.YARDSTICK].error is None


def test_a_variant_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    make = variants.make_runs

    def broken(shape: tuple[int, ...], device: str) -> dict:
        runs = make(shape, device)
        return {
            variants.BASE: runs[variants.BASE],
            "window 3": iter([torch.tensor(0.5), torch.tensor(0.25)]).__next__,
            "window 15": _raise,
        }

    monkeypatch.setattr(variants, "make_runs", broken)
    assert variants.check("cpu") == {
        "window 3": "0.5 instead of 0.25",
        "window 15": "fails with ValueError: no",
    }


PLUGIN = """
from dataclasses import replace
import bench.contenders

backend = bench.contenders._backend

def broken(op, name):
    contender = backend(op, name)
    if name != "reference":
        return contender
    return replace(contender, build=lambda case: lambda *tensors: 1.25 * contender.build(case)(*tensors))

bench.contenders._backend = broken
"""


@pytest.mark.slow
def test_a_wrong_backend_fails_its_test_and_is_in_the_results(tmp_path: Path) -> None:
    """From the command to the tables."""
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "wrong_backend.py").write_text(PLUGIN)
    file = tmp_path / "run.json"
    options = ["--benchmark-only", "--bench-shapes=tiny", "--bench-rounds=2", "--bench-contenders=mse_loss", "-q"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "wrong_backend",
        "bench/test_bench_losses.py",
        "-k",
        "dvf_mse",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, f"--benchmark-json={file}"], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "USReg reference is wrong for dvf_mse" in done.stdout
    results = load(file)
    by_name = {entry["contender"]: entry for entry in results.entries if entry["pass"] == "forward+backward"}
    wrong = by_name["USReg reference"]
    assert wrong["wrong"] is True
    assert wrong["exact"] is False
    assert wrong["loss_error"] == pytest.approx(0.25, rel=1e-5)
    assert by_name["PyTorch mse_loss"]["exact"]
    assert ours([wrong]) is None
    assert "| **USReg reference: wrong** | **" in tables.details(results, "dvf_mse")
    assert "USReg reference: wrong" in tables.summary(results)
    assert json.loads(file.read_text())["absent"]

"""The benchmark's machinery: its checks, its contenders, its cases and its options. Its speeds are nobody's test."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import usreg_kernels as uk
from bench import contenders, measure, plain, tables, test_bench_end_to_end
from bench.cases import ALL_WINDOWS, IMAGES, INPUTS, Case, cases
from bench.conftest import shapes
from bench.contenders import REFERENCE, Absent, Contender
from bench.measure import Plan, Session, compare
from bench.outcomes import Measured, NotMeasured, Outcome
from bench.results import load
from bench.steps import Oracle, error_of
from bench.ties import has_one_gradient
from usreg_kernels.functional import LOSSES

ROOT = Path(__file__).parent.parent
CASE = Case("dvf_mse", (1, 3, 6, 7, 8))
PLAN = Plan(rounds=2, seconds_per_turn=0.0)

OURS = Contender("USReg", lambda case: uk.dvf_mse_loss, ours=True)
EXACT = Contender("exact", lambda case: torch.nn.functional.mse_loss)
WRONG = Contender("wrong", lambda case: lambda a, b: 1.25 * torch.nn.functional.mse_loss(a, b))


def _compare(*contenders: Contender, plan: Plan = PLAN, session: Session | None = None) -> dict[str, Outcome]:
    return compare(CASE, contenders, plan, session or Session())


def test_a_wrong_contender_is_timed_and_marked_with_its_error() -> None:
    found = _compare(OURS, EXACT, WRONG)
    exact, wrong = found["exact"], found["wrong"]
    assert isinstance(exact, Measured)
    assert isinstance(wrong, Measured)
    assert exact.exact
    assert not wrong.exact
    assert wrong.error.loss == pytest.approx(0.25, rel=1e-5)
    assert wrong.error.gradient == pytest.approx(0.25, rel=1e-5)
    assert wrong.times.wall


def test_who_cannot_take_part_says_why() -> None:
    def absent(case: Case) -> Any:
        raise Absent("not installed")

    def failing(case: Case) -> Any:
        return lambda *tensors: torch.zeros(2) + torch.zeros(3)

    found = _compare(EXACT, Contender("absent", absent), Contender("failing", failing))
    assert found["absent"] == NotMeasured("not installed")
    assert isinstance(found["failing"], NotMeasured)
    assert found["failing"].reason.startswith("fails with RuntimeError: The size of tensor a (2) must match")
    assert not found["failing"].is_fault
    assert isinstance(found["exact"], Measured)


def test_the_slow_are_not_waited_for() -> None:
    def sleepy(*tensors: torch.Tensor) -> torch.Tensor:
        time.sleep(0.12)
        return torch.nn.functional.mse_loss(*tensors)

    session = Session()
    slow = Contender("slow", lambda case: sleepy)
    plan = replace(PLAN, patience=0.05)
    assert "s a run; --bench-patience gives it" in str(_compare(slow, EXACT, plan=plan, session=session)["slow"])
    assert "are expected" in str(_compare(slow, EXACT, plan=plan, session=session)["slow"])


@pytest.mark.parametrize(("long_trial", "trials"), [(0.02, 1), (60.0, 2)])
def test_a_long_first_run_is_not_repeated_before_the_turns(
    long_trial: float, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def sleepy(*tensors: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        time.sleep(0.03)
        return torch.nn.functional.mse_loss(*tensors)

    monkeypatch.setattr(measure, "LONG_TRIAL", long_trial)
    measured = _compare(Contender("slow", lambda case: sleepy))["slow"]
    assert isinstance(measured, Measured)
    assert calls == trials + len(measured.times.wall)


def test_a_larger_volume_is_expected_to_cost_more_per_voxel() -> None:
    session, larger = Session(), replace(CASE, shape=(1, 3, 12, 14, 16))
    assert session.expect(larger, "any") == 0
    session.note(CASE, "any", 2.0)
    assert session.expect(CASE, "any") == 2.0
    assert session.expect(larger, "any") == 2.0 * 8 * measure.GROWTH


def test_the_short_run_compiles_what_training_runs() -> None:
    usual = Case("lncc", (1, 1, 128, 128, 128), window=9)
    assert usual.is_compiled
    changes = [{"window": 5}, {"backward": False}, {"dtype": torch.bfloat16}, {"shape": (1, 1, 96, 96, 96)}]
    assert not any(replace(usual, **change).is_compiled for change in changes)


def test_the_reference_has_few_turns_and_little_patience() -> None:
    def sleepy(*tensors: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return torch.nn.functional.mse_loss(*tensors)

    plan = replace(PLAN, rounds=9)
    oracle, other = (Contender(name, lambda case: sleepy) for name in (REFERENCE, "other"))
    found = _compare(oracle, other, plan=plan)
    assert [len(found[name].times.wall) for name in (REFERENCE, "other")] == [measure.FEWEST_TURNS, 9]
    found = _compare(oracle, other, plan=replace(plan, patience=0.06))
    assert "gives it 0.02" in str(found[REFERENCE])
    assert isinstance(found["other"], Measured)


@pytest.mark.parametrize("shape", [(2, 1, 12, 13), (1, 2, 9, 10, 11)])
@pytest.mark.parametrize("formula", [plain.pooled_lncc, plain.conv_lncc, plain.separable_conv_lncc])
def test_the_plain_formulas_are_lncc(formula: Callable[[int], Callable], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = uk.lncc_loss(pred, target, kernel_size=5)
    torch.testing.assert_close(formula(5)(pred, target), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_the_plain_differences_are_the_smoothness(scheme: str) -> None:
    dvf = torch.rand(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = uk.gradient_smoothness_loss(dvf, scheme=scheme)
    torch.testing.assert_close(plain.finite_differences(central=scheme == "central")(dvf), expected)


def test_the_plain_supervision_is_ours() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, gt = (torch.rand(2, 3, 5, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(plain.supervision()(pred, gt), uk.dvf_supervision_loss(pred, gt))


def test_the_plain_folding_is_ours() -> None:
    ddf = 3 * torch.rand(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert uk.folding_loss(ddf) > 0
    torch.testing.assert_close(plain.folding(ddf), uk.folding_loss(ddf))


@pytest.mark.parametrize("pooled", [True, False])
def test_the_plain_mind_is_ours(pooled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(2, 1, 5, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(plain.mind(pooled)(pred, target), uk.mind_loss(pred, target))


def test_every_loss_of_ours_is_measured_and_has_a_table() -> None:
    ops = {name.removesuffix("_loss") for name in uk.__all__ if name.endswith("_loss")}
    assert set(LOSSES) == set(INPUTS) == set(tables.TITLES) == ops


CASE_OF_LNCC = Case("lncc", (1, 1, 20, 24, 28), window=5)
PACKAGES = {
    "neurite.nn.modules": ("VoxelMorph (neurite)", "VoxelMorph's formula, conv"),
    "fireants.losses.cc": ("FireANTs (not fused)", "FireANTs' formula, separable conv"),
}


@pytest.mark.parametrize("module", PACKAGES)
def test_a_formula_stands_in_for_a_package_that_is_not_there(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, formula = PACKAGES[module]
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    failure = contenders.import_failure.__wrapped__
    monkeypatch.setattr(contenders, "import_failure", failure)  # without what it found out before
    taking_part = [c for c in contenders.contenders("lncc") if c.name in (own, formula)]
    found = compare(CASE_OF_LNCC, taking_part, PLAN, Session())
    assert isinstance(found[own], NotMeasured)
    assert found[own].reason.startswith(f"{module} cannot be imported")
    assert found[own].reason.endswith("(`make contenders`)")
    measured = found[formula]
    assert isinstance(measured, Measured)
    assert measured.exact


@pytest.mark.parametrize("module", PACKAGES)
def test_a_package_computes_our_loss(module: str) -> None:
    try:
        with contenders.third_party_warnings_ignored():
            __import__(module)
    except ImportError as error:
        pytest.skip(f"{error} (`make contenders`)")
    own, formula = PACKAGES[module]
    by_name = {c.name: c for c in contenders.contenders("lncc")}
    assert formula not in by_name
    measured = compare(CASE_OF_LNCC, [by_name[own]], PLAN, Session())[own]
    assert isinstance(measured, Measured), measured
    assert measured.exact


def test_no_contender_can_change_torch() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installed = re.findall(r"^(?:GPU_)?CONTENDERS := .*", makefile, re.MULTILINE)
    assert len(installed) == 2
    assert not any("torch" in line for line in installed)
    commands = [line for line in makefile.splitlines() if "pip install" in line and "CONTENDERS)" in line]
    assert len(commands) == 2
    assert all("--no-deps" in line for line in commands)


@pytest.mark.parametrize("op", LOSSES)
def test_the_full_run_holds_the_short_one(op: str) -> None:
    short, full = cases(op), cases(op, full=True)
    assert set(short) < set(full)
    sizes = {case.shape for case in full}
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    varieties = {(case.window, case.scheme) for case in full}
    assert len(varieties) == {"lncc": len(ALL_WINDOWS), "gradient_smoothness": 2, "mutual_information": 2}.get(op, 1)
    assert {(case.shape, case.dtype, case.backward, (case.window, case.scheme)) for case in full} == set(
        itertools.product(sizes, dtypes, (False, True), varieties)
    )
    assert len({case.name for case in full}) == len(full)
    assert [case.voxels for case in full] == sorted(case.voxels for case in full)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], []),  # the usual ones
        (["--bench-shapes=tiny,96"], ["tiny", "96"]),
        (["--bench-full"], ["64", "96", "128", "brain", "2d", "wide"]),
        (["--bench-full", "--bench-shapes=tiny"], ["tiny"]),
    ],
)
def test_shapes_that_are_chosen_hold_for_the_full_run_too(options: list[str], expected: list[str]) -> None:
    given = {option.partition("=")[0]: option.partition("=")[2] or True for option in options}

    class Config:
        def getoption(self, name: str) -> Any:
            return given.get("--" + name.replace("_", "-"))

    assert shapes(Config()) == expected


def test_registrations_of_both_sizes_run_where_no_shapes_are_chosen() -> None:
    sizes = [size for size in test_bench_end_to_end.REGISTRATIONS if test_bench_end_to_end.is_chosen(size, [])]
    assert [IMAGES[size][2:] for size in sizes] == [(96, 96, 96), (160, 192, 224)]
    assert not test_bench_end_to_end.is_chosen("brain", ["tiny"])


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """From the command to the JSON, which holds the recorded times and the facts, and no name of the machine."""
    pytest.importorskip("pytest_benchmark")
    file = tmp_path / "run.json"
    options = ["--benchmark-only", "--bench-shapes=tiny", "--bench-rounds=2", "--bench-contenders=none", "-q"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench/test_bench_losses.py",
        "-k",
        "dvf_mse",
        *options,
        f"--benchmark-json={file}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    content = json.loads(file.read_text())
    assert "node" not in content["machine_info"]
    assert set(content["commit_info"]) <= {"id", "time", "dirty"}
    for entry in load(file).entries:
        assert entry["op"] == "dvf_mse"
        assert entry["exact"]
        assert entry["voxels_per_second"] == pytest.approx(entry["voxels"] / entry.seconds)
        assert {"processor", "threads", "versions", "revision", "peak_extra_bytes", "cpu_seconds"} <= set(entry.info)
    results = load(file)
    assert [entry["contender"] for entry in results.entries][-1] == "USReg reference"
    took_part = {(entry.case, entry["contender"]) for entry in results.entries}
    absent = {(entry.case, entry["contender"]): entry["reason"] for entry in results.absent}
    assert not took_part & set(absent)
    assert {name for _, name in took_part | set(absent)} == {
        f"USReg {b}" for b in ("cpu", "triton", "cuda", "reference")
    }
    assert all(absent.values())


def test_a_gradient_of_mind_counts_where_no_distances_are_lowest_together() -> None:
    image = torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert has_one_gradient(image).all()
    image[..., 6:, :, :] = 0.5  # all distances are 0 where nothing else is seen
    counts = has_one_gradient(image)
    assert counts[0, 0, :4].all()
    assert not counts[0, 0, 8:].any()
    loss, wanted = torch.tensor(2.0), torch.ones_like(image)
    oracle = Oracle(loss, wanted, counts)
    assert error_of(loss, torch.where(counts, 1.0, 7.0), oracle).gradient == 0
    assert error_of(loss, torch.where(counts, 1.5, 1.0), oracle).gradient == 0.5
    assert error_of(loss, torch.where(counts, 1.0, 7.0), Oracle(loss, wanted)).gradient > 1

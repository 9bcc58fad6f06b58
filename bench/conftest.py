"""Options of the benchmark, and what its tests share. ``pytest bench --benchmark-only`` runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # behind everything that is installed

from bench.cases import EAGER_SHAPES, IMAGES, TRAINED_WINDOWS, Case, cases
from bench.contenders import Contender, absent, contenders
from bench.measure import Measured, Plan, Session, WrongResult, compare
from bench.recording import CLOCK, processor, record

Outcomes = dict[str, "Measured | str"]

ABSENT = pytest.StashKey[list[dict[str, Any]]]()
"""Who did not take part in a comparison that ran: what identifies the measurement, and ``reason``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "registration losses")
    group.addoption(
        "--bench-full", action="store_true", help="every combination of the shapes, however slow (hours on a CPU)"
    )
    group.addoption(
        "--bench-shapes", metavar="NAMES", help=f"shapes instead of the device's usual ones, of {', '.join(IMAGES)}"
    )
    group.addoption(
        "--bench-contenders", metavar="NAMES", help="contenders whose names hold one of these words, and ours"
    )
    group.addoption("--bench-device", choices=["cpu", "cuda"], help="cuda where there is a GPU")
    group.addoption("--bench-threads", type=int, help="CPU threads of torch")
    group.addoption("--bench-rounds", type=int, help=f"turns of each contender ({Plan.rounds})")
    group.addoption(
        "--bench-patience",
        type=float,
        metavar="SECONDS",
        help=f"leave out what takes longer, but MONAI eager ({Plan.patience:g}; with --bench-full nothing)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if results := config.getoption("benchmark_json", None):
        Path(results).parent.mkdir(parents=True, exist_ok=True)  # not found missing after minutes of measuring
    if threads := config.getoption("bench_threads"):
        torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The clock of recorded times; no limit of time; and contenders may warn of what they like."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))
            item.add_marker(pytest.mark.timeout(0))
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the module's ``OP`` with every contender."""
    if "contender" in metafunc.fixturenames:
        config, op = metafunc.config, metafunc.module.OP
        pairs = [(case, contender) for case in _cases(config, op) for contender in _contenders(config, case)]
        ids = [f"{case.name}-{contender.name}" for case, contender in pairs]
        metafunc.parametrize(("case", "contender"), pairs, ids=ids)


@pytest.fixture(scope="session")
def chosen_shapes(pytestconfig: pytest.Config) -> list[str]:
    """What end-to-end tests and variants choose by; empty: the usual ones."""
    return shapes(pytestconfig)


@pytest.fixture(scope="session")
def plan(pytestconfig: pytest.Config) -> Plan:
    """How long to measure, on which device."""
    full = pytestconfig.getoption("bench_full")
    given = {"rounds": pytestconfig.getoption("bench_rounds"), "patience": pytestconfig.getoption("bench_patience")}
    usual = {"patience": float("inf"), "budget": 60.0} if full else {}
    return Plan(device=_device(pytestconfig), **{**usual, **{k: v for k, v in given.items() if v is not None}})


@pytest.fixture(scope="session")
def session() -> Session:
    """What comparisons learn of each other."""
    return Session()


@pytest.fixture(scope="session")
def compared() -> dict[Case, Outcomes | WrongResult]:
    """The comparisons so far."""
    return {}


@pytest.fixture
def show_speed(
    pytestconfig: pytest.Config,
    plan: Plan,
    session: Session,
    compared: dict[Case, Outcomes | WrongResult],
    benchmark: Any,
) -> Any:
    """Reports a contender's part in a comparison, which its first contender runs for all."""

    def show(case: Case, contender: Contender) -> None:
        if case not in compared:
            try:
                compared[case] = compare(case, _contenders(pytestconfig, case), plan, session)
            except WrongResult as wrong:
                compared[case] = wrong
            pytestconfig.stash.setdefault(ABSENT, []).extend(_absent(case, compared[case], plan))
        outcomes = compared[case]
        if isinstance(outcomes, WrongResult):
            pytest.fail(f"no speeds are shown: {outcomes}")
        outcome = outcomes[contender.name]
        if isinstance(outcome, str):
            pytest.skip(f"{contender.name}: {outcome}")
        record(benchmark, f"{case.op} {case.name}", outcome.times, _extra(case, contender, outcome, plan))

    return show


def _extra(case: Case, contender: Contender, measured: Measured, plan: Plan) -> dict[str, Any]:
    rate = case.least_bytes / measured.times.median
    return {
        **_identity(case, contender.name, plan),
        "ours": contender.ours,
        "loss_error": measured.error.loss,
        "gradient_error": measured.error.gradient,
        "exact": measured.exact,
        "peak_extra_bytes": measured.peak_extra_bytes,
        "voxels": case.voxels,
        "voxels_per_second": case.voxels / measured.times.median,
        "bytes_per_second": rate,
        "streaming_bytes_per_second": measured.streaming_bytes_per_second,
        "streaming_fraction": rate / measured.streaming_bytes_per_second,
    }


def _absent(case: Case, outcomes: Outcomes | WrongResult, plan: Plan) -> list[dict[str, Any]]:
    if isinstance(outcomes, WrongResult):
        return [{**_identity(case, "everybody", plan), "reason": str(outcomes)}]
    reasons = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
    return [{**_identity(case, name, plan), "reason": reason} for name, reason in reasons.items()]


def _identity(case: Case, contender: str, plan: Plan) -> dict[str, Any]:
    """The values of ``results.IDENTITY``."""
    return {
        "kind": "loss",
        "op": case.op,
        "contender": contender,
        "pass": case.passes,
        "shape": list(case.shape),
        "dtype": case.dtype_name,
        "window": case.window,
        "scheme": case.scheme,
        "device": plan.device,
    }


def shapes(config: pytest.Config) -> list[str]:
    """The names that ``--bench-shapes`` holds; with ``--bench-full`` all but the trial's where it is not given."""
    chosen = _chosen(config)
    return chosen or [name for name in IMAGES if name != "tiny" and config.getoption("bench_full")]


def _device(config: pytest.Config) -> str:
    return config.getoption("bench_device") or ("cuda" if torch.cuda.is_available() else "cpu")


def _cases(config: pytest.Config, op: str) -> list[Case]:
    chosen = _chosen(config)
    if unknown := set(chosen) - set(IMAGES):
        raise pytest.UsageError(f"--bench-shapes: unknown {', '.join(sorted(unknown))}; valid: {', '.join(IMAGES)}")
    return cases(op, _device(config), config.getoption("bench_full"), chosen)


def _chosen(config: pytest.Config) -> list[str]:
    return [name for name in (config.getoption("bench_shapes") or "").split(",") if name]


def _contenders(config: pytest.Config, case: Case) -> list[Contender]:
    """Those that were chosen; compilation takes much of the short run, which spends it on the usual cases alone."""
    words = [word.strip().lower() for word in (config.getoption("bench_contenders") or "").split(",")]
    chosen = [c for c in contenders(case.op) if c.ours or any(word in c.name.lower() for word in words)]
    if case.is_compiled or config.getoption("bench_full"):
        return chosen
    windows, eager = " or ".join(map(str, TRAINED_WINDOWS)), " or ".join(EAGER_SHAPES)
    rule = f"compiled for forward+backward in float32, LNCC with window {windows}, not {eager}; --bench-full for all"
    return [absent(c, rule) if c.compiles and not c.ours else c for c in chosen]


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Adds who was absent. A test's parameters are objects, which JSON cannot hold; ``extra_info`` has their values."""
    output_json["absent"] = config.stash.get(ABSENT, [])
    for entry in output_json["benchmarks"]:
        del entry["params"], entry["param"]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Results are committed: the processor belongs in them, the name of the machine does not."""
    machine_info.pop("node", None)
    machine_info["cpu"] = {"brand_raw": processor()}


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """The commit alone, without the branch or folder that it happened to be measured in."""
    for key in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[key]

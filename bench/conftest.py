"""Options of the benchmark, and what its tests share. ``pytest bench --benchmark-only`` runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # behind everything that is installed

from bench.cases import EAGER_SHAPES, IMAGES, TRAINED_WINDOWS, Case, cases
from bench.contenders import Contender, absent, contenders
from bench.gpu import DeviceLost, survive
from bench.measure import Plan, Session, compare, streamed_bytes
from bench.outcomes import Measured, NotMeasured, Outcome
from bench.recording import CLOCK, identity, on_gpu, processor, record
from usreg_kernels.functional import LOSSES

Outcomes = dict[str, Outcome]

ABSENT = pytest.StashKey[list[dict[str, Any]]]()
"""Who did not take part in a comparison that ran: what identifies the measurement, and ``reason``."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.has_plugin("timeout"):  # the benchmark needs no limit of time
        parser.addini("timeout", "seconds for one test, with pytest-timeout")
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
    config.addinivalue_line("markers", "timeout: seconds for one test, with pytest-timeout")
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
    """Every case of every op with every contender."""
    if "contender" in metafunc.fixturenames:
        config = metafunc.config
        found = [case for op in LOSSES for case in _cases(config, op)]
        pairs = [(case, contender) for case in found for contender in _contenders(config, case)]
        ids = [f"{case.op}-{case.name}-{contender.name}" for case, contender in pairs]
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
def once() -> Callable[[object, Callable[[], Any]], Any]:
    """``once(key, make)``: what ``make()`` returned the first time. The first of several tests measures for all."""
    found: dict[object, Any] = {}

    def get(key: object, make: Callable[[], Any]) -> Any:
        if key not in found:
            found[key] = make()
        return found[key]

    return get


@pytest.fixture(autouse=True)
def _device_works(request: pytest.FixtureRequest, plan: Plan, session: Session) -> Iterator[None]:
    """Nothing runs on a GPU that a test before broke; a comparison says so itself, for each contender."""
    if session.lost is not None and "show_speed" not in request.fixturenames:
        pytest.fail(session.lost, pytrace=False)
    yield
    if plan.device == "cuda" and session.lost is None:
        try:
            survive(plan.device, request.node.name)
        except DeviceLost as lost:
            session.lost = str(lost)


@pytest.fixture
def show_speed(
    pytestconfig: pytest.Config,
    plan: Plan,
    session: Session,
    once: Callable[..., Any],
    benchmark: Any,
) -> Any:
    """Reports a contender's part in a comparison, which its first contender runs for all."""

    def measure(case: Case) -> Outcomes:
        outcomes = compare(case, _contenders(pytestconfig, case), plan, session)
        pytestconfig.stash.setdefault(ABSENT, []).extend(_absent(case, outcomes, plan))
        return outcomes

    def show(case: Case, contender: Contender) -> None:
        outcome = once(case, lambda: measure(case))[contender.name]
        if isinstance(outcome, NotMeasured):
            if outcome.is_fault:
                pytest.fail(f"{contender.name}: {outcome.reason}", pytrace=False)
            pytest.skip(f"{contender.name}: {outcome.reason}")
        wrong = f"{contender.name} is wrong for {case.op} {case.name}: {outcome.error}" if outcome.wrong else None
        record(benchmark, f"{case.op} {case.name}", outcome.times, _extra(case, contender, outcome, plan), wrong)

    return show


def _extra(case: Case, contender: Contender, measured: Measured, plan: Plan) -> dict[str, Any]:
    rate = case.least_bytes / measured.times.median
    return {
        **identity("loss", case, contender.name, plan.device),
        "ours": contender.ours,
        "loss_error": measured.error.loss,
        "gradient_error": measured.error.gradient,
        "exact": measured.exact,
        "peak_extra_bytes": measured.peak_extra_bytes,
        "voxels": case.voxels,
        "voxels_per_second": case.voxels / measured.times.median,
        "bytes_per_second": rate,
        **_streaming(case, measured, rate),
        **on_gpu(measured.on_gpu),
    }


def _streaming(case: Case, measured: Measured, rate: float) -> dict[str, float | None]:
    """The share of the memory's speed. On a GPU both speeds are those of CUDA graphs, without launches."""
    seconds = measured.streaming
    if measured.on_gpu is not None:
        seconds = measured.streaming_on_gpu
        rate = case.least_bytes / measured.on_gpu.seconds if measured.on_gpu.seconds else 0.0
    stream = streamed_bytes(case) / seconds if seconds else None
    return {
        "streaming_bytes_per_second": stream,
        "streaming_fraction": rate / stream if stream and rate else None,
    }


def _absent(case: Case, outcomes: Outcomes, plan: Plan) -> list[dict[str, Any]]:
    return [
        {**identity("loss", case, name, plan.device), "reason": outcome.reason, "fault": outcome.is_fault}
        for name, outcome in outcomes.items()
        if isinstance(outcome, NotMeasured)
    ]


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
    """Those that were chosen; compilation takes much of the short run, which spends it only on the usual cases."""
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
    """Only the commit, without the branch or folder that it happened to be measured in."""
    for key in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[key]

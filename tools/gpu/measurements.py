"""The stages that measure. Each runs commands, and says what it found."""

from __future__ import annotations

import json
from pathlib import Path

from tools.gpu.common import NO_MODULE, PYTEST, at_once, need, need_tool
from tools.gpu.runner import CannotRun, Context, Result
from tools.gpu.tables import load, load_tiles, whole, worst

NCU_SECTIONS = (
    "LaunchStats",
    "Occupancy",
    "SpeedOfLight",
    "SchedulerStats",
    "WarpStateStats",
    "MemoryWorkloadAnalysis",
)
NCU_METRICS = (
    "gpu__time_duration.sum",
    "launch__registers_per_thread",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "l1tex__t_sector_hit_rate.pct",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum",
)


# ---- times -----------------------------------------------------------------------------------------------------------


def times(context: Context, result: Result) -> None:
    """Kernel times of all losses and backends; then LNCC again without maps that are kept for backward."""
    for old in context.out.glob("times-*.json"):
        old.unlink()
    module, count = ("-m", "tools.gpu.kernel_times"), at_once(context)
    context.run_parts(count, *module, "--compile", limit=context.seconds_left / 3)  # the measurement reports failures
    # A process per backend: an illegal access of one leaves the other's numbers.
    for backend in ("triton", "cuda"):
        file = context.out / f"times-{backend}.json"
        ran = context.run_python(*module, "--backend", backend, "--kernels", "--json", str(file))
        if ran.last_line.startswith("nothing to measure"):
            result.findings.append(f"{backend} does not run here")
        else:
            result.note(backend, ran)
    few = ("--op", "lncc", "--window", "3", "9", "--json", str(context.out / "times-recompute.json"))
    result.note("recompute", context.run_python(*module, *few, environment={"USREG_LNCC_RECOMPUTE": "1"}))
    result.findings += _times_findings(context.out)


def _times_findings(out: Path) -> list[str]:
    found = []
    for file in sorted(out.glob("times-*.json")):
        content, rows = load(file)
        found.append(f"{file.stem}: peak {content['peak'] / 1e12:.2f} TB/s")
        brain = [row for row in rows if row.shape == "brain" and row.dtype == "float32" and row.problem is None]
        usual = [row for row in brain if row.variant in ("", "window 9")]
        found.append(", ".join(f"{row.op} {row.backend} {1e6 * whole(row):.0f} µs" for row in usual))
    return [line for line in found if line]


def tiles(context: Context, result: Result) -> None:
    """The tiles of the Triton march and its number of programs, against what the library chooses."""
    need(context, "triton", "triton")
    file = context.out / "tiles.json"
    arguments = ("--json", str(file), "--folder", str(context.out / "tiles"), "--at-once", str(at_once(context)))
    file.unlink(missing_ok=True)
    result.note("tiles", context.run_python("-m", "tools.gpu.tiles", *arguments))
    if file.exists() and (found := worst(load_tiles(file)["tiles"])) is not None:
        result.findings.append(f"the tile by counts loses most at {found[0]}: {found[1]:.2f} times the fastest")


def profile(context: Context, result: Result) -> None:
    """ncu's counters of each kernel. Clocks stay as they are, which ncu would otherwise lock."""
    ncu = need_tool(context, "ncu")
    report = context.out / "kernels"
    ran = context.run(
        ncu, "--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all", "-f",
        "-o", str(report), *(f"--section={name}" for name in NCU_SECTIONS), "--metrics", ",".join(NCU_METRICS),
        context.python, "-m", "tools.gpu.profile_target",
    )  # fmt: skip
    if "ERR_NVGPUCTRPERM" in ran.output:
        raise CannotRun(
            "ncu may not read the GPU's counters: run as root, or see https://developer.nvidia.com/ERR_NVGPUCTRPERM"
        )
    if not result.note("ncu", ran):
        return
    command = (ncu, "--import", f"{report}.ncu-rep", "--csv", "--page", "raw", "--metrics", ",".join(NCU_METRICS))
    listed = context.run(*command)
    if result.note("ncu --import", listed):
        (context.out / "kernels.csv").write_text(listed.output[listed.output.find('"ID"') :])
        result.findings.append(f"{max(0, listed.output.count(chr(10)) - 2)} kernels in kernels.csv and kernels.ncu-rep")


# ---- benchmark -------------------------------------------------------------------------------------------------------


def bench(context: Context, result: Result) -> None:
    """Our losses against everything that one would pick instead; then the report, where its packages are here."""
    need(context, "pytest", "pytest")
    need(context, "pytest_benchmark", "pytest-benchmark")
    file = context.out / "bench.json"
    file.unlink(missing_ok=True)
    ran = context.run_python(
        *PYTEST, "bench", "--benchmark-only", "--benchmark-columns=median,iqr,rounds", f"--benchmark-json={file}",
    )  # fmt: skip
    result.note("bench", ran)
    if not file.exists() or not file.stat().st_size:
        return
    result.findings.append(f"{len(json.loads(file.read_text())['benchmarks'])} measurements in {file.name}")
    report = context.run_python("-m", "bench.report", str(file), "--pictures", str(context.out / "pictures"))
    if report.code == 0:
        (context.out / "bench.md").write_text(report.output)
        result.findings.append("tables in bench.md")
    elif (missing := NO_MODULE.search(report.output)) is not None:
        result.findings.append(
            f"no tables, since {missing[1]} is not installed: run `python -m bench.report bench.json`"
        )
    else:
        result.note("the report", report)

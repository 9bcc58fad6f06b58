"""The stages that build and check. Each runs commands, and says what it found."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tools.gpu.common import PYTEST, at_once, need, need_tool
from tools.gpu.runner import ROOT, CannotRun, Context, Result

USUAL, LARGE = "gpu and not slow and not large", "gpu and (slow or large)"
"""Marks, in the words of pytest's ``-m``."""

CHECKED = re.compile(r"(\d+) checks, \d+ wrong; largest error in float32: (\S+)")

# ---- machine, build, smoke -------------------------------------------------------------------------------------------


def machine(context: Context, result: Result) -> None:
    """The GPU, its clocks as they are, versions, and which backend runs."""
    tools = context.machine.tools
    if (nvidia_smi := tools.get("nvidia-smi")) is not None:
        query = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu,utilization.gpu"
        asked = context.run(nvidia_smi, f"--query-gpu={query}", "--format=csv,noheader")
        if result.note("nvidia-smi", asked):
            result.findings.append(asked.last_line)
    if (nvcc := tools.get("nvcc")) is not None and result.note("nvcc", found := context.run(nvcc, "--version")):
        result.findings.append(next((line for line in found.output.splitlines() if "release" in line), "nvcc"))
    result.note("python -m usreg_kernels", context.run_python("-m", "usreg_kernels"))


def build(context: Context, result: Result) -> None:
    """Both libraries, in place, with CUDA code for this GPU only."""
    nvcc = need_tool(context, "nvcc")
    device = context.machine.device
    assert device is not None  # a requirement of all stages
    environment = {"USREG_BUILD_CUDA": "1", "USREG_CUDA_ARCHS": device.capability, "NVCC": nvcc}
    if result.note("build", context.run_python("setup.py", "-q", "build_ext", "--inplace", environment=environment)):
        sizes = [
            f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in (ROOT / "usreg_kernels").glob("libusreg_*")
        ]
        result.findings.append(f"capability {device.capability}: {', '.join(sizes)}")
        code = "import sys; from usreg_kernels import library; sys.exit(library.reason('cuda'))"
        result.note("the CUDA library does not load", context.run_python("-c", code))


def smoke(context: Context, result: Result) -> None:
    """Every kernel once, against the float64 reference; and whether torch.compile works with this Triton."""
    parts = context.run_parts(at_once(context), "-m", "tools.gpu.sanitize_target", "--check", "--part")
    for part in parts:
        wrong = [line for line in part.output.splitlines() if line.startswith("WRONG")]
        result.failures += wrong
        if not wrong:
            result.note("smoke", part)
    lines = [line for part in parts for line in part.output.splitlines()]
    totals = [found for line in lines if (found := CHECKED.fullmatch(line)) is not None]
    count, most = sum(int(found[1]) for found in totals), max((float(found[2]) for found in totals), default=0.0)
    result.findings.append(f"{count} checks; largest error in float32: {most:.1e}")
    if not count and not result.failures:
        result.failures.append("no GPU backend runs here: see machine.log")
    result.findings += sorted({line for line in lines if " has no " in line})
    code = "import torch; torch.compile(lambda x: (x * 2).sin().sum())(torch.ones(10**5, device='cuda')).item()"
    compiled = context.run_python("-c", code, limit=60)
    if compiled.code != 0:
        result.findings.append(f"torch.compile does not work here: {compiled.last_line}")


# ---- tests -----------------------------------------------------------------------------------------------------------


def files_with_gpu_tests(folder: Path) -> list[str]:
    """Test modules that mark something ``gpu``, relative to the repository's root."""
    modules = sorted(folder.rglob("test_*.py"))
    return [path.relative_to(ROOT).as_posix() for path in modules if "mark.gpu" in path.read_text()]


def tests(context: Context, result: Result) -> None:
    """Tests marked gpu, except the large ones, in as many processes as the GPU's memory allows."""
    need(context, "pytest", "pytest")
    count, parallel = at_once(context), []
    if "xdist" in context.machine.packages and count > 1:
        # pytest-benchmark warns where tests run in parallel, and warnings are errors.
        parallel = ["-n", str(count), "-p", "no:benchmark"]
    elif count > 1:
        result.findings.append("one process: `pip install pytest-xdist` for several")
    junit = context.out / "junit.xml"
    junit.unlink(missing_ok=True)
    ran = context.run_python(
        *PYTEST, *files_with_gpu_tests(ROOT / "tests"), "-m", USUAL, *parallel, f"--junitxml={junit}", "--durations=15",
        environment={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))},
    )  # fmt: skip
    result.note("pytest", ran)
    if junit.exists():
        summary, failures = read_junit(junit)
        result.findings.insert(0, summary)
        if failures:
            result.failures[:] = failures


def read_junit(file: Path) -> tuple[str, list[str]]:
    """Counts in words, and each failure with the first line of its message."""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    failures, skipped = [], 0
    for case in cases:
        skipped += case.find("skipped") is not None
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            message = (problem.get("message") or "").strip().splitlines() or [""]
            failures.append(f"{case.get('name')}: {message[0][:200]}")
    return f"{len(cases) - skipped - len(failures)} passed, {skipped} skipped, {len(failures)} failed", failures


def large(context: Context, result: Result) -> None:
    """Tests of more than 2^31 elements, and other slow ones: a process each, as torch keeps what the next one needs."""
    need(context, "pytest", "pytest")
    files = files_with_gpu_tests(ROOT / "tests")
    listed = context.run_python(*PYTEST, *files, "-m", LARGE, "--collect-only")
    ids = test_ids(listed.output)
    if not ids and result.note("collecting", listed):
        result.failures.append(f"pytest found no test that is {LARGE}")
    outcomes = {"passed": 0, "skipped": 0}
    for test in ids:
        ran = context.run_python(*PYTEST, test)
        if result.note(test.rpartition("::")[2], ran):
            outcomes["passed" if re.search(r"\b\d+ passed", ran.output) else "skipped"] += 1
    result.findings.append(f"of {len(ids)}: {outcomes['passed']} passed, {outcomes['skipped']} skipped")


def test_ids(output: str) -> list[str]:
    """The tests in what ``pytest --collect-only -q`` printed."""
    return [line.strip() for line in output.splitlines() if re.match(r"\S+\.py::", line)]


# ---- sanitizers ------------------------------------------------------------------------------------------------------

SANITIZERS = ("memcheck", "racecheck", "synccheck")
SUMMARY_OF_SANITIZER = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (.*)")


def sanitize(context: Context, result: Result) -> None:
    """compute-sanitizer over every kernel, without torch's allocator, whose blocks hide what lies beyond a tensor."""
    tool = need_tool(context, "compute-sanitizer")
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    target = ("-m", "tools.gpu.sanitize_target")
    if not result.note("without a sanitizer", context.run_python(*target, environment=environment)):  # compiles
        return
    for number, name in enumerate(SANITIZERS):
        share = context.seconds_left / (len(SANITIZERS) - number)
        ran = context.run(
            tool, "--tool", name, "--target-processes", "all", "--print-limit", "20", "--error-exitcode", "9",
            context.python, *target, environment=environment, limit=share,
        )  # fmt: skip
        summaries = SUMMARY_OF_SANITIZER.findall(ran.output)
        if "Device not supported" in ran.output:
            raise CannotRun("compute-sanitizer refuses this device, as it does in some virtual machines")
        if ran.code == 9:
            reports = [line.strip("= ") for line in ran.output.splitlines() if line.startswith("=========")]
            first = next((line for line in reports if line and line != "COMPUTE-SANITIZER"), "")
            result.failures.append(f"{name}: {'; '.join(summaries)}: {first}")
        elif result.note(name, ran):
            result.findings.append(f"{name}: {'; '.join(summaries) or 'no summary'}")

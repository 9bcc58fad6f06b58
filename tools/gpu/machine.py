"""What this machine has for the GPU kernels, what is missing, and how to get it.

This module imports no torch: it runs before torch is installed. A process of its own asks torch, so that a driver that
hangs or crashes does not take the report with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "ncu")
PACKAGES = ("triton", "pytest", "xdist", "pytest_timeout", "pytest_benchmark")
"""Python modules that stages need beside torch."""

WIDTH = 120
"""Of messages."""

SECONDS_FOR_TORCH = 120
"""The first import of torch from a cold disk may take a minute."""

CUDA_TORCH = (
    "`make gpu VENV=.venv-gpu TORCH=torch` makes an environment with PyPI's build, which has CUDA. Where pip is set to "
    "an index of CPU builds, name a CUDA build: `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu130 make gpu "
    "VENV=.venv-gpu TORCH=torch==VERSION+cu130`. `make gpu GPU_PYTHON=python3` uses an environment that has such a "
    "torch, and installs nothing"
)
TOOLKIT = "it comes with the CUDA toolkit (https://developer.nvidia.com/cuda-downloads)"

_ASK_TORCH = """
import json, torch
cuda = torch.cuda
found = cuda.is_available()
devices = []
for i in range(cuda.device_count() if found else 0):
    p = cuda.get_device_properties(i)
    devices.append({"name": p.name, "capability": "%d%d" % cuda.get_device_capability(i),
                    "memory_gib": p.total_memory / 2**30, "multiprocessors": p.multi_processor_count})
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
                  "devices": devices}))
"""


@dataclass(frozen=True)
class Device:
    """A GPU as torch sees it; ``capability`` is written as in ``USREG_CUDA_ARCHS``: 90 for 9.0."""

    name: str
    capability: str
    memory_gib: float
    multiprocessors: int


@dataclass(frozen=True)
class Torch:
    """The torch of this Python: its version, the CUDA or ROCm that it was built for, and the GPUs that it sees."""

    version: str
    cuda: str | None = None
    hip: str | None = None
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        tools: the path of each of :data:`TOOLS`, None where it was not found.
        gpus: the lines of ``nvidia-smi -L``; empty where it is missing or fails.
        torch: None where it cannot be imported; ``torch_error`` says why.
        packages: those of :data:`PACKAGES` that are installed.
    """

    tools: dict[str, str | None] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    torch: Torch | None = None
    torch_error: str = ""
    packages: frozenset[str] = frozenset()

    @property
    def device(self) -> Device | None:
        """The first GPU, which the stages use."""
        return self.torch.devices[0] if self.torch is not None and self.torch.devices else None

    def facts(self) -> dict[str, Any]:
        """For ``summary.json``. Paths and names of users stay out of it: summaries are passed on."""
        return {
            "gpu": asdict(self.device) if self.device is not None else None,
            "torch": self.torch.version if self.torch is not None else None,
            "cuda": self.torch.cuda if self.torch is not None else None,
            "python": sys.version.split()[0],
            "tools": sorted(name for name, path in self.tools.items() if path is not None),
            "packages": sorted(self.packages),
        }


@dataclass(frozen=True)
class Requirement:
    """Something that the stages need.

    Attributes:
        name: what is needed.
        found: what was found; None where it is missing.
        remedy: why it counts as missing, and how to get it.
        needed_for: the stages that do not run without it; empty: none does.
    """

    name: str
    found: str | None
    remedy: str
    needed_for: tuple[str, ...] = ()

    @property
    def stops_everything(self) -> bool:
        """Whether nothing can run."""
        return self.found is None and not self.needed_for


def find_tool(name: str) -> str | None:
    """The path of a program of the driver or the CUDA toolkit, which often is not on the PATH."""
    if name == "nvcc" and os.environ.get("NVCC"):
        return shutil.which(os.environ["NVCC"])
    homes = [os.environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(variable)]
    folders = [str(Path(home) / "bin") for home in (*homes, "/usr/local/cuda")]
    newest_first = sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join([*folders, *map(str, newest_first)]))


def inspect() -> Machine:
    """Look at this machine, with the Python that runs this."""
    tools = {name: find_tool(name) for name in TOOLS}
    torch, error = _ask_torch()
    packages = frozenset(name for name in PACKAGES if find_spec(name) is not None)
    return Machine(tools, _list_gpus(tools["nvidia-smi"]), torch, error, packages)


def _list_gpus(nvidia_smi: str | None) -> tuple[str, ...]:
    if nvidia_smi is None:
        return ()
    try:
        found = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.partition(" (UUID")[0] for line in found.splitlines() if line.startswith("GPU"))


def _ask_torch() -> tuple[Torch | None, str]:
    if find_spec("torch") is None:
        return None, "torch is not installed"
    command = [sys.executable, "-c", _ASK_TORCH]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_FOR_TORCH, check=False)
    except subprocess.TimeoutExpired:
        return None, f"torch did not answer within {SECONDS_FOR_TORCH} s: the driver may hang"
    if asked.returncode != 0:
        return None, f"torch fails: {(asked.stderr.strip().splitlines() or ['it was killed'])[-1]}"
    answer = json.loads(asked.stdout.splitlines()[-1])
    devices = tuple(Device(**device) for device in answer.pop("devices"))
    return Torch(**answer, devices=devices), ""


def requirements(machine: Machine, set_up_follows: bool = False) -> list[Requirement]:
    """What the stages need, and what of it is here.

    Args:
        machine: what was found.
        set_up_follows: Python packages, torch among them, may be missing: they are installed next.
    """
    found = [_driver(machine), _torch(machine, set_up_follows)]
    for name, stages in (("nvcc", ("build",)), ("compute-sanitizer", ("sanitize",)), ("ncu", ("profile",))):
        found.append(Requirement(name, machine.tools.get(name), f"{name} was not found: {TOOLKIT}", stages))
    if not set_up_follows:
        found += [
            _package(machine, "triton", "triton", "without it the Triton kernels do not run", ("tiles",)),
            _package(machine, "pytest", "pytest", "it runs the tests", ("tests", "large", "bench")),
            _package(machine, "pytest_benchmark", "pytest-benchmark", "it runs the benchmark", ("bench",)),
        ]
    return found


def _driver(machine: Machine) -> Requirement:
    name = "NVIDIA driver"
    if machine.gpus or machine.device is not None:
        return Requirement(name, "; ".join(machine.gpus) or "torch sees a GPU", "")
    if machine.tools.get("nvidia-smi") is None:
        why = "nvidia-smi was not found: this machine has no NVIDIA GPU, or no driver for it"
    else:
        why = "nvidia-smi lists no GPU: run it by itself to see why"
    return Requirement(
        name, None, f"{why}. Install the driver (https://www.nvidia.com/drivers); start a container with `--gpus all`"
    )


def _torch(machine: Machine, set_up_follows: bool) -> Requirement:
    name, torch = "torch with CUDA", machine.torch
    if torch is None:
        if set_up_follows and find_spec("torch") is None:
            return Requirement(name, "comes with the set-up", "")
        return Requirement(name, None, f"{machine.torch_error}. {CUDA_TORCH}")
    if torch.hip is not None:
        remedy = f"torch {torch.version} is for AMD GPUs, and this tool for NVIDIA's: run `pytest tests -m gpu` there"
        return Requirement(name, None, remedy)
    if torch.cuda is None:
        return Requirement(name, None, f"torch {torch.version} has no CUDA. {CUDA_TORCH}")
    if not torch.devices:
        remedy = (
            f"torch {torch.version} sees no GPU (torch.cuda.is_available() is False): its CUDA {torch.cuda} needs a "
            "driver at least as new; check CUDA_VISIBLE_DEVICES too"
        )
        return Requirement(name, None, remedy)
    return Requirement(name, f"{torch.version}, CUDA {torch.cuda}", "")


def _package(machine: Machine, module: str, package: str, why: str, stages: tuple[str, ...]) -> Requirement:
    found = "installed" if module in machine.packages else None
    return Requirement(package, found, f"{package} is not installed (`pip install {package}`): {why}", stages)


def describe(found: list[Requirement]) -> str:
    """The requirements as lines of text: what is missing for everything first."""
    lines = []
    for one in sorted(found, key=lambda one: (not one.stops_everything, one.found is not None)):
        if one.found is not None:
            lines.append(f"  found    {one.name}: {one.found}")
        else:
            stages = ", ".join(one.needed_for)
            lines.append(f"  missing  {one.name}{f' (only for {stages})' if stages else ''}: {one.remedy}")
    wrap = TextWrapper(WIDTH, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False).fill
    return "\n".join(map(wrap, lines))

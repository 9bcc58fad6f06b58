"""What ``tools.gpu`` finds on a machine, and what it asks for where something is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_tools.stand_ins import EVERYTHING, GPU, ROOT, TOOLS

from tools.gpu import __main__ as command_line
from tools.gpu import machine as machines
from tools.gpu.machine import Machine, Torch


def _missing(machine: Machine, set_up_follows: bool = False) -> dict[str, machines.Requirement]:
    return {one.name: one for one in machines.requirements(machine, set_up_follows) if one.found is None}


def test_a_machine_with_everything_lacks_nothing() -> None:
    assert _missing(EVERYTHING) == {}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"gpus": (), "tools": {}, "torch": None}, "NVIDIA driver", "nvidia-smi was not found"),
        ({"gpus": (), "torch": None}, "NVIDIA driver", "lists no GPU"),
        ({"torch": None, "torch_error": "torch is not installed"}, "torch with CUDA", "GPU_PYTHON=python3"),
        ({"torch": Torch("2.13.0+cpu")}, "torch with CUDA", "make gpu VENV=.venv-gpu TORCH=torch"),
        ({"torch": Torch("2.13.0", "13.0")}, "torch with CUDA", "CUDA_VISIBLE_DEVICES"),
        ({"torch": Torch("2.13.0", None, "7.1", (GPU,))}, "torch with CUDA", "AMD"),
    ],
)
def test_without_a_gpu_nothing_starts_and_the_message_says_what_to_install(
    change: dict, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = replace(EVERYTHING, **change)
    requirement = _missing(machine)[name]
    assert requirement.stops_everything
    assert words in requirement.remedy
    out = tmp_path / "out"
    assert command_line.main(["--out", str(out)], lambda: machine) == 2
    assert re.sub(r"\s+", " ", words) in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(("tool", "stage"), [("nvcc", "build"), ("compute-sanitizer", "sanitize"), ("ncu", "profile")])
def test_a_missing_tool_costs_its_stage_only(tool: str, stage: str) -> None:
    machine = replace(EVERYTHING, tools={**TOOLS, tool: None})
    (requirement,) = _missing(machine).values()
    assert requirement.needed_for == (stage,)
    assert "CUDA toolkit" in requirement.remedy


def test_before_the_set_up_packages_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(EVERYTHING, torch=None, torch_error="torch is not installed", packages=frozenset())
    monkeypatch.setattr(machines, "find_spec", lambda name: None)
    assert _missing(bare, set_up_follows=True) == {}
    assert "torch with CUDA" in _missing(bare)
    # A torch that is there stays, so it must be the right one.
    cpu = replace(EVERYTHING, torch=Torch("2.13.0+cpu"))
    assert "torch with CUDA" in _missing(cpu, set_up_follows=True)


def test_tools_are_found_beside_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert machines.find_tool("compute-sanitizer") == str(tool)
    monkeypatch.setenv("NVCC", str(tool))
    assert machines.find_tool("nvcc") == str(tool)


def test_this_machine_can_be_inspected() -> None:
    found = machines.inspect()
    assert found.torch is not None
    assert found.torch.version == torch.__version__
    assert "pytest" in found.packages


def test_the_driver_lists_its_gpus(tmp_path: Path) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-0123)'\n")
    nvidia_smi.chmod(0o755)
    assert machines._list_gpus(str(nvidia_smi)) == ("GPU 0: NVIDIA H100",)  # the card's own number is nobody's business
    nvidia_smi.write_text("#!/bin/sh\necho 'no driver is loaded'\nexit 9\n")
    assert machines._list_gpus(str(nvidia_smi)) == ()


def test_a_torch_that_crashes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_ASK_TORCH", "raise SystemExit('libcuda.so.1 is broken')")
    assert machines._ask_torch() == (None, "torch fails: libcuda.so.1 is broken")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_module_and_make_gpu_end_at_once_without_a_gpu() -> None:
    direct = [sys.executable, "-m", "tools.gpu", "smoke"]
    make = ["make", "--no-print-directory", "gpu", f"GPU_PYTHON={sys.executable}"]
    for command in (direct, make):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "cannot run on this machine" in done.stderr
        assert "summary" not in done.stdout

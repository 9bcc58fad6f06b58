"""Loading of the compiled libraries, and what is said where one is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from usreg_kernels import library

needs_cpu_library = pytest.mark.skipif(
    library.reason("cpu") is not None, reason=f"looks into the CPU library, but {library.reason('cpu')}"
)


def report(**variables: str) -> subprocess.CompletedProcess[str]:
    """Print the CPU capability, and try an op, in a process with these environment variables."""
    code = (
        "import torch; from usreg_kernels import library\n"
        "try: print(library.cpu_capability())\n"
        "except ValueError as error: print(error)\n"
        "torch.ops.usreg.dvf_mse_native_forward(torch.ones(1, 3, 4), torch.ones(1, 3, 4), None, 1)\n"
    )
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_an_unknown_library_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown library 'gpu'; valid: cpu, cuda"):
        library.reason("gpu")


def test_a_library_that_is_not_built_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("USREG_DISABLE_LIBRARIES", raising=False)
    monkeypatch.setattr(library, "path", lambda name: tmp_path / f"libusreg_{name}.so")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert library._load("cpu") == (
        "libusreg_cpu.so is not built: install a C++ compiler and run "
        "`USREG_BUILD_CPU=1 pip install --no-build-isolation .`"
    )
    assert "USREG_BUILD_CUDA=1" in str(library._load("cuda"))


def test_a_library_that_does_not_load_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("USREG_DISABLE_LIBRARIES", raising=False)
    file = tmp_path / "libusreg_cpu.so"
    file.write_bytes(b"no library")
    monkeypatch.setattr(library, "path", lambda name: file)
    reason = library._load("cpu")
    assert reason is not None
    assert reason.startswith("libusreg_cpu.so does not load (")
    assert "build it again" in reason


def test_libraries_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USREG_DISABLE_LIBRARIES", "1")
    assert library._load("cpu") == "libusreg_cpu.so is switched off: unset USREG_DISABLE_LIBRARIES"


def test_no_one_is_told_to_build_what_their_system_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USREG_DISABLE_LIBRARIES", raising=False)
    monkeypatch.setattr(library.sys, "platform", "win32")
    assert library._load("cpu") == "libusreg_cpu.dll is made only for Linux: elsewhere CPUs run plain PyTorch"
    assert library.path("cuda").name == "libusreg_cuda.dll"


def test_the_cuda_library_needs_a_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USREG_DISABLE_LIBRARIES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "needs a torch with CUDA" in str(library._load("cuda"))


def test_without_the_library_there_is_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(library._reasons, "cpu", "libusreg_cpu.so is not built")
    assert library.reason("cpu") == "libusreg_cpu.so is not built"
    assert library.cpu_capability() is None


@needs_cpu_library
def test_the_capability_is_one_of_the_known() -> None:
    assert library.cpu_capability() in library.CAPABILITIES


@needs_cpu_library
@pytest.mark.parametrize("cap", library.CAPABILITIES)
def test_the_capability_can_be_capped(cap: str) -> None:
    result = report(USREG_CPU_CAPABILITY=cap)
    assert result.returncode == 0, result.stderr
    rank = library.CAPABILITIES.index
    assert rank(result.stdout.strip()) <= rank(cap)


@needs_cpu_library
def test_an_invalid_cap_is_an_error_that_names_the_valid_ones() -> None:
    result = report(USREG_CPU_CAPABILITY="sse9")
    assert "USREG_CPU_CAPABILITY=sse9 is not valid: use base, avx2, avx512" in result.stdout
    assert "RuntimeError" in result.stderr
    assert "USREG_CPU_CAPABILITY=sse9 is not valid: use base, avx2 or avx512" in result.stderr

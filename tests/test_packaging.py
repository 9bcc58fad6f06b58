"""The distribution: version, contents, and the decisions of setup.py. Nothing here compiles or uses a network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from setuptools import Distribution, Extension

from usreg_kernels import library, optim
from usreg_kernels.functional import FUNCTIONS

ROOT = Path(__file__).resolve().parents[1]
OPS_OF_THEIR_OWN = [op for op in FUNCTIONS if op != "integrate_velocity"]  # which runs the composition's kernels
NATIVE_OPS = (
    *(f"{op}_native_{way}" for op in OPS_OF_THEIR_OWN for way in ("forward", "backward")),
    *(f"{op}_native_step" for op in optim.FUNCTIONS),
    "square_ddf_native_backward",
)
CUDA_OPS = tuple(
    op.replace("lncc_native", "lncc_cuda")
    for op in NATIVE_OPS
    if not op.startswith(("dvf_supervision", "square_ddf"))  # which are made of others
)


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    """setup.py as a module; imported, it builds nothing."""
    spec = importlib.util.spec_from_file_location("usreg_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Distributions(NamedTuple):
    """What was built from a copy of the working tree: an sdist, and from that a wheel without a library."""

    tree: Path
    in_sdist: set[str]
    in_wheel: set[str]
    wheel_name: str

    def in_tree(self, folder: str, pattern: str) -> set[str]:
        """Files of the copy, relative to its root."""
        found = (self.tree / folder).rglob(pattern)
        return {path.relative_to(self.tree).as_posix() for path in found if path.is_file()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    generated = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=generated)
    shutil.copy(ROOT / ".clang-format", tree)
    (tree / "usreg_kernels" / "libusreg_cpu.so").write_bytes(b"left over from an editable install")
    sdist = build(tree, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tree.parent, filter="data")
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}

    unpacked = tree.parent / sdist.name.removesuffix(".tar.gz")
    wheel = build(unpacked, "wheel")
    with zipfile.ZipFile(wheel) as archive:
        return Distributions(tree, in_sdist, set(archive.namelist()), wheel.name)


def build(tree: Path, kind: str) -> Path:
    """Build an sdist or a wheel of a source tree with the installed setuptools, without the native libraries."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    environment = {**os.environ, "USREG_BUILD_CPU": "0", "USREG_BUILD_CUDA": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return tree / "dist" / result.stdout.splitlines()[-1]


def project_version() -> str:
    match = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


def test_the_version_stands_in_pyproject_alone() -> None:
    version = project_version()
    assert importlib.metadata.version("usreg") == version
    python_files = [ROOT / "setup.py", *(ROOT / "usreg").rglob("*.py"), *(ROOT / "usreg_kernels").rglob("*.py")]
    assert [str(path) for path in python_files if f'"{version}"' in path.read_text()] == []


def test_the_sdist_holds_what_building_and_testing_need(distributions: Distributions) -> None:
    assert distributions.in_tree("csrc", "*") | distributions.in_tree("tests", "*") <= distributions.in_sdist
    files = {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "CHANGELOG.md", ".clang-format"}
    assert files <= distributions.in_sdist
    assert [name for name in distributions.in_sdist if name.endswith(".so")] == []


def test_the_wheel_without_libraries_is_pure_and_complete(distributions: Distributions) -> None:
    version = project_version()
    assert distributions.wheel_name == f"usreg-{version}-py3-none-any.whl"
    for package in ("usreg", "usreg_kernels"):
        for pattern in ("*.py", "*.yaml", "py.typed"):
            assert distributions.in_tree(package, pattern) <= distributions.in_wheel
    folders = {name.split("/")[0] for name in distributions.in_wheel}
    assert folders == {"usreg", "usreg_kernels", f"usreg-{version}.dist-info"}
    assert [name for name in distributions.in_wheel if name.endswith(".so")] == []


def test_a_wheel_with_a_library_is_bound_to_the_platform_but_to_no_python(setup_py: ModuleType) -> None:
    distribution = Distribution({"name": "usreg", "version": "0", "ext_modules": [Extension("usreg_kernels.x", [])]})
    command = setup_py.PlatformWheel(distribution)
    command.plat_name = "linux-x86_64"
    command.finalize_options()
    assert command.get_tag() == ("py3", "none", "linux_x86_64")


@pytest.mark.parametrize(
    ("value", "obstacle", "wanted"),
    [
        (None, None, True),
        (None, "there is no compiler", False),
        ("auto", None, True),
        ("AUTO", "there is no compiler", False),
        ("1", None, True),
        ("0", None, False),
        ("0", "there is no compiler", False),
    ],
)
def test_want(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str | None, obstacle: str | None, wanted: bool
) -> None:
    monkeypatch.delenv("USREG_BUILD_CPU", raising=False)
    if value is not None:
        monkeypatch.setenv("USREG_BUILD_CPU", value)
    assert setup_py.want("USREG_BUILD_CPU", obstacle) is wanted


def test_a_library_that_must_be_built_and_cannot_stops_the_build(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USREG_BUILD_CPU", "1")
    with pytest.raises(SystemExit, match="USREG_BUILD_CPU=1, but there is no compiler"):
        setup_py.want("USREG_BUILD_CPU", "there is no compiler")


def test_an_invalid_setting_names_the_valid_ones(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USREG_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match=r"USREG_BUILD_CUDA=yes is not valid: use auto .*, 1 .* or 0"):
        setup_py.setting("USREG_BUILD_CUDA")


def test_obstacles_say_what_is_missing_and_the_way_out(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("USREG_BUILD_CUDA", raising=False)
    monkeypatch.setattr(setup_py.platform, "system", lambda: "Linux")
    monkeypatch.setattr(setup_py, "sources", lambda folder, suffixes: ["csrc/cuda/op.cu"])
    tools = setup_py.Tools
    assert "pip install torch" in setup_py.cpu_obstacle(tools(None, "g++", "nvcc"))
    assert "install one" in setup_py.cpu_obstacle(tools(tmp_path, None, "nvcc"))
    assert setup_py.cpu_obstacle(tools(tmp_path, "g++", None)) is None
    assert "CUDA toolkit" in setup_py.cuda_obstacle(tools(tmp_path, "g++", None))
    # A CPU-only torch: only on request.
    assert "has no CUDA" in setup_py.cuda_obstacle(tools(tmp_path, "g++", "nvcc"))
    monkeypatch.setenv("USREG_BUILD_CUDA", "1")
    assert setup_py.cuda_obstacle(tools(tmp_path, "g++", "nvcc")) is None
    monkeypatch.setattr(setup_py, "sources", lambda folder, suffixes: [])
    assert "no CUDA sources" in setup_py.cuda_obstacle(tools(tmp_path, "g++", "nvcc"))
    monkeypatch.setattr(setup_py.platform, "system", lambda: "Darwin")
    assert "made for Linux" in setup_py.cpu_obstacle(tools(tmp_path, "g++", None))
    assert "no CUDA for Darwin" in setup_py.cuda_obstacle(tools(tmp_path, "g++", "nvcc"))


def test_windows_gets_the_cuda_library_alone(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What would be run there; nothing of it is run here."""
    monkeypatch.setenv("USREG_BUILD_CUDA", "1")
    monkeypatch.setenv("USREG_CUDA_ARCHS", "86")
    monkeypatch.setattr(setup_py.platform, "system", lambda: "Windows")
    (tmp_path / "lib").mkdir()
    tools = setup_py.Tools
    assert "made for Linux" in setup_py.cpu_obstacle(tools(tmp_path, "cl", "nvcc"))
    assert "developer command prompt" in setup_py.cuda_obstacle(tools(tmp_path, None, "nvcc"))
    assert "has no CUDA" in setup_py.cuda_obstacle(tools(tmp_path, "cl", "nvcc"))
    (tmp_path / "lib" / "torch_cuda.lib").touch()
    assert setup_py.cuda_obstacle(tools(tmp_path, "cl", "nvcc")) is None
    assert not [flag for flag in setup_py.nvcc_command("nvcc", tmp_path) if "-f" in flag]  # GCC's
    library = tmp_path / "libusreg_cuda.dll"
    linked = setup_py.link_command(["nvcc", "-cudart=static"], tmp_path, [tmp_path / "a.obj"], library)
    assert {"-shared", "-ltorch_cpu", "-ltorch_cuda", "-lc10"} <= set(linked)
    assert not [flag for flag in linked if flag.startswith("--")]
    name = setup_py.BuildLibraries(Distribution()).get_ext_filename("usreg_kernels.libusreg_cuda")
    assert Path(name) == Path("usreg_kernels/libusreg_cuda.dll")


def test_torch_is_found_without_being_imported(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USREG_TORCH_DIR", raising=False)
    assert setup_py.find_torch() == Path(torch.__file__).parent
    monkeypatch.setenv("USREG_TORCH_DIR", str(ROOT))  # a folder that is given is the only one that counts
    assert setup_py.find_torch() is None


def test_cuda_code_is_made_for_a_release_as_far_as_nvcc_can(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'compute_70\\ncompute_75\\ncompute_80\\ncompute_87\\ncompute_90\\n'\n")
    nvcc.chmod(0o755)
    monkeypatch.delenv("USREG_CUDA_ARCHS", raising=False)
    assert setup_py.cuda_archs(str(nvcc)) == ["75", "80", "90"]
    monkeypatch.setenv("USREG_CUDA_ARCHS", "70,80")
    assert setup_py.cuda_archs(str(nvcc)) == ["70", "80"]
    command = setup_py.nvcc_command(str(nvcc), tmp_path)
    assert [flag for flag in command if flag.startswith("-gencode")] == [
        "-gencode=arch=compute_70,code=sm_70",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",  # PTX, for what comes later
    ]


def test_an_object_is_compiled_again_when_something_changed(setup_py: ModuleType, tmp_path: Path) -> None:
    header, target, command = tmp_path / "a.h", tmp_path / "a.cpp.o", ["g++", "-c", "a.cpp"]
    assert setup_py.is_stale(target, command)
    header.touch()
    target.touch()
    target.with_suffix(".d").write_text(f"C:/a.cpp.o: \\\n {header}\n")
    target.with_suffix(".cmd").write_text("g++ -c a.cpp")
    assert not setup_py.is_stale(target, command)
    assert setup_py.is_stale(target, [*command, "-O3"])
    later = target.stat().st_mtime + 10
    os.utime(header, (later, later))
    assert setup_py.is_stale(target, command)
    header.unlink()
    assert setup_py.is_stale(target, command)


@pytest.mark.parametrize(
    ("op", "name"), [(op, "cpu") for op in NATIVE_OPS] + [(op, "cuda") for op in CUDA_OPS], ids=str
)
def test_native_ops_exist_always_and_have_kernels_with_the_library(op: str, name: str) -> None:
    assert hasattr(torch.ops.usreg, op)
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"usreg::{op}", name.upper())
    assert has_kernel is (library.reason(name) is None)


def test_the_citation_names_this_version() -> None:
    found = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    assert f"\nversion: {found.group(1)}\n" in (ROOT / "CITATION.cff").read_text()

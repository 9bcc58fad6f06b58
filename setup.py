"""Builds the native libraries of usreg_kernels; everything else about the distribution is in pyproject.toml.

``libusreg_cpu.so`` comes from csrc/cpu with GCC or Clang, ``libusreg_cuda.so`` (on Windows ``libusreg_cuda.dll``) from
csrc/cuda with nvcc. Both use only torch's stable ABI and no ``Python.h``, so that one binary serves every Python 3 and
every torch since 2.10; ``torch.ops.load_library`` loads them. torch is found, not imported and not fetched: a build
in isolation uses the headers of the environment's own torch.

Environment variables:

USREG_BUILD_CPU, USREG_BUILD_CUDA
    ``auto`` (default): build if the tools are there, else go on without; ``1``: build or fail; ``0``: do not build.
USREG_WERROR
    ``1``: warnings of the compilers are errors.
USREG_TORCH_DIR
    the folder of the torch package to build against, where it is not the environment's.
CXX, CXXFLAGS, NVCC, CUDA_HOME, MAX_JOBS
    as usual.
USREG_CUDA_ARCHS
    compute capabilities to compile for, e.g. ``80;90``; PTX of the last one serves all later ones. Unset: those of
    a release, as far as nvcc knows them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = "usreg_kernels"
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10, the oldest torch that the libraries run on
STABLE_ABI_HEADER = "include/torch/csrc/stable/c/shim.h"  # shipped since torch 2.10
RELEASE_CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")


def log(message: str) -> None:
    print(f"usreg: {message}", file=sys.stderr, flush=True)


def on_windows() -> bool:
    return platform.system() == "Windows"


# ---- tools ---------------------------------------------------------------------------------------------------------


def torch_candidates() -> Iterator[Path]:
    """Folders where torch may lie, best first.

    Build isolation hides the environment's packages from imports, but not their folder from sysconfig.
    """
    if given := os.environ.get("USREG_TORCH_DIR"):
        yield Path(given)
        return
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    for scheme in ("platlib", "purelib"):
        yield Path(sysconfig.get_path(scheme)) / "torch"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):  # uv builds in a prefix of its own
        if prefix := os.environ.get(variable):
            yield from Path(prefix).glob("lib/python3*/site-packages/torch")


def find_torch() -> Path | None:
    """The folder of a torch that has the stable ABI (2.10 or later)."""
    return next((path for path in torch_candidates() if (path / STABLE_ABI_HEADER).is_file()), None)


def find_cxx() -> str | None:
    """The command of the C++ compiler, perhaps with arguments (``CXX="ccache g++"``)."""
    names = ("cl",) if on_windows() else ("c++", "g++", "clang++")
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, names)), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


class Tools(NamedTuple):
    """What a build uses; None where there is none."""

    torch: Path | None
    cxx: str | None
    nvcc: str | None


def find_tools() -> Tools:
    return Tools(find_torch(), find_cxx(), find_nvcc())


# ---- what to build ---------------------------------------------------------------------------------------------------


def sources(folder: str, suffixes: Iterable[str]) -> list[str]:
    """Files of csrc/<folder> with one of the suffixes, relative to the root, in a fixed order."""
    found = sorted(path for path in (ROOT / "csrc" / folder).rglob("*") if path.suffix in suffixes)
    return [path.relative_to(ROOT).as_posix() for path in found]


def setting(variable: str) -> str:
    """``auto``, ``1`` or ``0``."""
    value = os.environ.get(variable, "auto").lower()
    if value not in ("auto", "1", "0"):
        sys.exit(f"{variable}={value} is not valid: use auto (build if possible), 1 (build or fail) or 0 (skip)")
    return value


def want(variable: str, obstacle: str | None) -> bool:
    """Whether to build what the variable governs, given why it cannot be built (None: it can)."""
    value = setting(variable)
    if value == "0" or obstacle is None:
        return value != "0"
    if value == "1":
        sys.exit(f"{variable}=1, but {obstacle}")
    log(f"{variable}=auto: not built, since {obstacle}")
    return False


def cpu_obstacle(tools: Tools) -> str | None:
    """Why the CPU library cannot be built, and the way out; None where it can."""
    if platform.system() != "Linux":
        return f"the CPU library is made for Linux, and this is {platform.system()}"
    return obstacle_for_both(tools)


def obstacle_for_both(tools: Tools) -> str | None:
    if tools.torch is None:
        return "no torch>=2.10 was found: install it first (pip install torch), or set USREG_TORCH_DIR to its folder"
    if tools.cxx is None and on_windows():
        return "cl.exe was not found: install Visual Studio's C++ build tools, and use their developer command prompt"
    if tools.cxx is None:
        return "no C++ compiler was found: install one (e.g. the package g++), or set CXX"
    return None


def cuda_obstacle(tools: Tools) -> str | None:
    """Why the CUDA library cannot, or need not, be built, and the way out; None where it can."""
    if platform.system() not in ("Linux", "Windows"):
        return f"there is no CUDA for {platform.system()}"
    if (obstacle := obstacle_for_both(tools)) is not None:
        return obstacle
    if not sources("cuda", {".cu"}):
        return "this version has no CUDA sources (csrc/cuda holds no .cu file)"
    if tools.nvcc is None:
        return "nvcc was not found: install the CUDA toolkit, or set NVCC or CUDA_HOME"
    # It compiles and links against a CPU-only torch too, but is of no use there: only on request.
    # On Windows it does not link there.
    torch_cuda = "torch_cuda.lib" if on_windows() else "libtorch_cuda.so"
    has_cuda = tools.torch is not None and (tools.torch / "lib" / torch_cuda).exists()
    if not has_cuda and (on_windows() or setting("USREG_BUILD_CUDA") == "auto"):
        return "the installed torch has no CUDA"
    return None


def extensions(tools: Tools) -> list[Extension]:
    found = []
    if want("USREG_BUILD_CPU", cpu_obstacle(tools)):
        found.append(("cpu", sources("cpu", {".cpp"})))
    if want("USREG_BUILD_CUDA", cuda_obstacle(tools)):
        found.append(("cuda", sources("cuda", {".cpp", ".cu"})))
    return [
        Extension(f"{PACKAGE}.libusreg_{kind}", files, optional=setting(f"USREG_BUILD_{kind.upper()}") != "1")
        for kind, files in found
    ]


# ---- how to build ----------------------------------------------------------------------------------------------------


def is_on(variable: str) -> bool:
    return os.environ.get(variable) == "1"


def include_flags(torch: Path) -> list[str]:
    # As system headers, torch's are exempt from our warning level.
    return [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include"), f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]


def cxx_command(cxx: str, torch: Path) -> list[str]:
    """The compiler with its flags, for one .cpp file; none names an instruction set (cpu/support/for_each_isa.inc)."""
    flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wall", "-Wextra"]
    flags += ["-Werror"] if is_on("USREG_WERROR") else []
    # Else error messages carry paths of the machine that built.
    flags += [f"-fmacro-prefix-map={ROOT}/=", f"-fmacro-prefix-map={torch / 'include'}/="]
    return [*shlex.split(cxx), *flags, *include_flags(torch), *shlex.split(os.environ.get("CXXFLAGS", ""))]


def cuda_archs(nvcc: str) -> list[str]:
    """The compute capabilities to compile for, in rising order."""
    if given := os.environ.get("USREG_CUDA_ARCHS"):
        return given.replace(",", ";").split(";")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in RELEASE_CUDA_ARCHS if f"compute_{arch}" in known]


def nvcc_command(nvcc: str, torch: Path) -> list[str]:
    """nvcc with its flags, for one .cu file."""
    archs = cuda_archs(nvcc)
    flags = ["-std=c++17", "-O3", "-t0", "--expt-relaxed-constexpr", "-DUSE_CUDA"]
    if on_windows():
        flags += ["-Xcompiler=/MD,/EHsc,/Zc:preprocessor,/Zc:__cplusplus"]
    else:
        flags += [f"-Xcompiler=-fPIC,-fvisibility=hidden,-fmacro-prefix-map={ROOT}/="]
    flags += ["-Werror=all-warnings"] if is_on("USREG_WERROR") else []
    flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    return [nvcc, *flags, *include_flags(torch)]


def link_command(linker: list[str], torch: Path, objects: list[Path], library: Path) -> list[str]:
    """Links one library, ``linker`` being the C++ compiler or nvcc (which knows where its own libcudart_static.a lies).

    Of torch only the CPU part is named: the libtorch.so of a torch with CUDA brings the rest when it is loaded, so that
    a CPU-only torch links the CUDA library too. Windows wants every part.
    """
    if on_windows():
        parts = ["-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
        return [*linker, "-shared", "-o", str(library), *map(str, objects), f"-L{torch / 'lib'}", *parts]
    torch_libraries = [f"-L{torch / 'lib'}", "-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu"]
    strip = [] if any(flag.startswith("-g") for flag in linker) else ["-Xlinker", "-s"]
    return [*linker, "-shared", *strip, "-o", str(library), *map(str, objects), *torch_libraries]


def is_stale(object_file: Path, command: list[str]) -> bool:
    """Whether to compile an object again: it is missing, its command changed, or a file that it includes is newer."""
    dependencies, stamp = object_file.with_suffix(".d"), object_file.with_suffix(".cmd")
    if not (object_file.exists() and dependencies.exists() and stamp.exists()):
        return True
    if stamp.read_text() != shlex.join(command):
        return True
    built = object_file.stat().st_mtime
    names = re.split(r":\s", dependencies.read_text(), maxsplit=1)[1].replace("\\\n", " ").split()
    return any(not os.path.exists(name) or os.path.getmtime(name) > built for name in names)


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def compile_object(command: list[str], source: str, object_file: Path) -> None:
    """Compiles one source unless its object is up to date."""
    full = [*command, "-c", source, "-o", str(object_file), "-MMD", "-MF", str(object_file.with_suffix(".d"))]
    if is_stale(object_file, full):
        run(full)
        object_file.with_suffix(".cmd").write_text(shlex.join(full))


class BuildLibraries(build_ext):
    """Compiles and links the libraries; one that is optional and fails is left out with a warning."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / "temp")  # kept between builds, so that each compiles only what changed

    def get_ext_filename(self, fullname: str) -> str:
        # No interpreter's tag: not a Python module.
        return os.path.join(*fullname.split(".")) + (".dll" if on_windows() else ".so")

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        try:
            self.build_library(ext, library)
        except (subprocess.CalledProcessError, OSError) as error:
            if not ext.optional:
                raise
            log(f"WARNING: {library.name} was not built, so its kernels are left out: {error}")
            library.unlink(missing_ok=True)

    def build_library(self, ext: Extension, library: Path) -> None:
        torch, cxx, nvcc = find_tools()
        if torch is None or cxx is None:  # extensions() asked for them; they went away since
            raise OSError("torch or the C++ compiler is gone")
        objects = Path(self.build_temp) / library.stem
        objects.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)

        jobs = []
        for source in ext.sources:
            command = nvcc_command(nvcc, torch) if nvcc and source.endswith(".cu") else cxx_command(cxx, torch)
            jobs.append((command, source, objects / (source.replace("/", "_") + (".obj" if on_windows() else ".o"))))
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: compile_object(*job), jobs))

        linker = [nvcc, "-cudart=static"] if nvcc and library.stem.endswith("cuda") else shlex.split(cxx)
        run(link_command(linker, torch, [job[2] for job in jobs], library))


class PlatformWheel(bdist_wheel):
    """A wheel with libraries is bound to a platform, but to no Python: nothing in it knows of CPython's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, plat = super().get_tag()
        return (python, abi, plat) if self.root_is_pure else ("py3", "none", plat)


class EditableWheel(editable_wheel):
    """Removes the libraries of an earlier editable install, so that none is older than the sources."""

    def run(self) -> None:
        for library in (ROOT / PACKAGE).glob("libusreg_*"):
            library.unlink()
        super().run()


def main() -> None:
    for old in (ROOT / "build").glob("lib*"):  # or a library of an earlier build would get into this wheel
        shutil.rmtree(old, ignore_errors=True)
    commands = {"bdist_wheel": PlatformWheel, "build_ext": BuildLibraries, "editable_wheel": EditableWheel}
    setup(ext_modules=extensions(find_tools()), cmdclass=commands)


if __name__ == "__main__":
    main()

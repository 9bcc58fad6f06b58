"""``python -m tools.gpu pack``: fill ``.gpu/`` with what is missing on a GPU machine without a network.

That is: wheels, the two libraries, a newer Triton, and ``run.sh``, which unpacks them there and calls the stages. Copy
the repository with ``.gpu/`` to the machine, and there: ``bash .gpu/run.sh smoke tests``.

``--python`` names a Python of the machine's version in which torch and setuptools are installed. The libraries use
torch's stable ABI, so that any torch since 2.10 serves, also one without CUDA.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.machine import find_tool
from tools.gpu.runner import ROOT

PACKAGES = ("monai==1.6.1", "omegaconf==2.4.0", "nibabel==5.4.2")
"""What the training tests and the benchmark import, and machines with a torch rarely have. The other packages that the
benchmark compares with are in the Makefile."""

FROM_SOURCE = "fused-lncc==0.1.0"
"""A contender of the benchmark that is compiled for a GPU, where ``--python`` has a torch with CUDA."""

TRITON = "3.7.1"
"""The oldest Triton that compiles the march of LNCC without barriers."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST_BYTES = 64 * 2**20
NOT_NEEDED = (
    "triton/_C/libproton.so",
    "triton/backends/nvidia/bin",  # run.sh links the assembler of the machine's own Triton
    "triton/backends/nvidia/lib/cupti",
    "triton/FileCheck",
    "triton/instrumentation",
    "triton/plugins",
    "bin",
)


def call(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Run a command; what it printed.

    Raises:
        SystemExit: it failed; the message holds the end of its output.
    """
    print(" ".join(command), flush=True)
    variables = {**os.environ, **(environment or {})}
    ran = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{ran.stdout[-2000:]}")
    return ran.stdout


def contenders() -> list[str]:
    """The packages that ``make contenders`` installs without compiling."""
    found = re.search(r"^CONTENDERS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return found[1].split() if found is not None else []


def download(python: str, packages: Sequence[str], folder: Path) -> None:
    """Wheels of these packages for the version of ``python``, without what they depend on."""
    version = call([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).split()[-1]
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", version, "--implementation", "cp", *platforms]
    call([python, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *packages])


def build_from_source(python: str, arch: str, folder: Path) -> None:
    """The wheel of :data:`FROM_SOURCE`, if torch and nvcc can make it."""
    nvcc = find_tool("nvcc")
    has_cuda = call([python, "-c", "import torch; print(torch.version.cuda is not None)"]).split()[-1] == "True"
    if nvcc is None or not has_cuda:
        print(f"{FROM_SOURCE} is left out: it needs nvcc, and a torch with CUDA in {python}")
        return
    environment = {
        "CUDA_HOME": str(Path(nvcc).resolve().parents[1]),
        "TORCH_CUDA_ARCH_LIST": f"{arch[:-1]}.{arch[-1]}",
        "MAX_JOBS": "1",
    }
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    call([python, "-m", "pip", "wheel", *options, FROM_SOURCE], environment)


def build_libraries(python: str, arch: str, folder: Path) -> None:
    """Both libraries, the CUDA one for one capability, compressed."""
    with tempfile.TemporaryDirectory() as built:
        environment = {"USREG_BUILD_CPU": "1", "USREG_BUILD_CUDA": "1", "USREG_CUDA_ARCHS": arch}
        call([python, "setup.py", "-q", "build_ext", "--build-lib", built], environment)
        for library in sorted(Path(built).rglob("libusreg_*.so")):
            (folder / f"{library.name}.xz").write_bytes(lzma.compress(library.read_bytes()))


def pack_triton(python: str, version: str, file: Path) -> None:
    """A Triton without what a run does not need, as a compressed archive."""
    with tempfile.TemporaryDirectory() as target:
        options = ["--quiet", "--no-deps", "--no-compile", "--target", target]
        call([python, "-m", "pip", "install", *options, f"triton=={version}"])
        for name in NOT_NEEDED:
            path = Path(target) / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if (strip := shutil.which("strip")) is not None:
            call([strip, "--strip-all", str(Path(target) / "triton/_C/libtriton.so")])
        with tarfile.open(file, "w:xz") as archive:
            archive.add(target, arcname=".")


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 where the result is too large."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu pack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="of the GPU machine's version, with torch (this one)")
    parser.add_argument("--arch", default="90", help="compute capability of the GPU (90: H100)")
    parser.add_argument("--package", action="append", default=[], metavar="NAME==VERSION", help="one more wheel")
    parser.add_argument("--triton", default=TRITON, metavar="VERSION", help=f"({TRITON}); none: the machine's own")
    parser.add_argument("--no-libraries", action="store_true", help="the stage `build` makes them there")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="the folder to fill (.gpu)")
    options = parser.parse_args(arguments)
    if re.fullmatch(r"\d{2,3}", options.arch) is None:
        parser.error(f"--arch {options.arch}: write the compute capability without a point, as in 90 for 9.0")
    out: Path = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    download(options.python, [*PACKAGES, *contenders(), *options.package], wheels)
    build_from_source(options.python, options.arch, wheels)
    if not options.no_libraries:
        build_libraries(options.python, options.arch, out)
    if options.triton != "none":
        pack_triton(options.python, options.triton, out / "triton.tar.xz")
    shutil.copy(Path(__file__).with_name("run.sh"), out)
    files = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    (out / "contents.json").write_text(json.dumps({"arch": options.arch, "files": files}, indent=1))
    print("\n".join(f"{count / 1e6:8.2f} MB  {name}" for name, count in files.items()))
    total = size(out)
    print(f"{total / 2**20:.1f} MiB in {out}, of at most {MOST_BYTES / 2**20:.0f} MiB")
    if total > MOST_BYTES:
        print("too large: leave out the largest files, for instance with --triton none")
        return 1
    return 0

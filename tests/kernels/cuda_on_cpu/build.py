"""The CUDA library, compiled for CPU tensors: the product's kernels and launchers, with this folder's cuda_runtime.h.

Its operators have the schemas of ``torch.ops.usreg``, in a namespace of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

NAMESPACE = "usreg_on_cpu"
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def command() -> list[str]:
    """The compiler with the flags of every file."""
    torch_headers = Path(torch.__file__).parent / "include"
    # Parts of few voxels, so that small volumes take several.
    settings = {"usreg": NAMESPACE, "USREG_DISPATCH_KEY": "CPU", "USREG_SEPARABLE_VOXELS": 300, "USE_CUDA": 1}
    settings["USREG_WARP_SLAB"] = 1000
    settings["USREG_MIND_WORKSPACE"] = 60000
    settings["TORCH_TARGET_VERSION"] = "0x020a000000000000"
    return [
        *str(COMPILER).split(),
        *(
            "-std=c++17",
            "-O1",
            "-fPIC",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-ffp-contract=off",
        ),
        *(f"-D{name}={value}" for name, value in settings.items()),
        *(f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-isystem", str(torch_headers)),
    ]


def build(flags: tuple[str, ...] = ()) -> Path:
    """The library; a file is compiled only if something that it may include is newer.

    Args:
        flags: of the compiler and the linker, e.g. of a sanitizer.
    """
    folder = ROOT / "build" / "-".join(("cuda_on_cpu", *(re.sub(r"\W+", "_", flag) for flag in flags)))
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu")) + sorted(HERE.glob("*.cpp"))
    headers = [*(ROOT / "csrc" / "cuda").rglob("*.*h"), *(ROOT / "csrc" / "common").glob("*.*"), *HERE.glob("*.h")]
    newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])
    library = folder / f"lib{NAMESPACE}.so"
    objects = [folder / f"{source.name}.o" for source in sources]

    def compile_one(source: Path, target: Path) -> bool:
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return False
        _run([*command(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sources, objects))
    if any(compiled) or not library.exists():
        torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu"]
        # Bsymbolic: the stubs of this folder go before torch's own functions.
        link = [*command()[:1], *flags, "-shared", "-Wl,-Bsymbolic", "-o", str(library)]
        _run([*link, *map(str, objects), *torch_libraries])
    return library


def build_program(source: Path, program: Path) -> None:
    """A program that launches kernels, without torch."""
    fibers = [str(HERE / "fibers.cpp"), "-x", "c++", str(source)]
    without_torch = [flag for flag in command() if "torch" not in flag and flag != "-isystem"]
    _run([*without_torch, *fibers, "-o", str(program)])


def _run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr}"

"""``make compile_commands``: writes compile_commands.json, with which clangd opens any file of ``csrc``.

CPU files have the flags of ``setup.py``. CUDA files have those of the tests' emulation, under which they are plain C++
(``tests/kernels/cuda_on_cpu``): they need no nvcc and no CUDA headers.

A ``.inc`` file is a part of a ``.cpp`` file, and refers to what comes before it there. That goes into a header of its
own below ``build/compile_commands``, which its flags include. Run this again after a change of what comes before.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SUFFIXES = (".cpp", ".h", ".inc", ".cu", ".cuh")
EACH_ISA = CSRC / "cpu/support/for_each_isa.inc"


class Entry(TypedDict):
    """How one file is compiled."""

    directory: str
    file: str
    arguments: list[str]


def entries(headers: Path) -> list[Entry]:
    """The entries of all files of ``csrc``, having written the headers of the ``.inc`` files to a folder."""
    headers.mkdir(parents=True, exist_ok=True)
    cpu, cuda = _cpu_command(), _cuda_command()
    found: list[Entry] = []
    for path in sources():
        command = [*(cuda if "cuda" in path.relative_to(CSRC).parts else cpu)]
        # As a main file of C++, a header would get a warning of its "#pragma once" from clang.
        command += ["-x", "c++-header" if path.suffix in (".h", ".cuh") else "c++"]
        if path.suffix == ".inc":
            header = headers / (path.relative_to(CSRC).as_posix().replace("/", "_") + ".h")
            header.write_text(before(path))
            command += ["-Wno-unused-function", "-include", str(header)]  # used by files that come after
        found.append({"directory": str(ROOT), "file": str(path), "arguments": [*command, "-c", str(path)]})
    return found


def sources() -> Iterator[Path]:
    """All files of ``csrc`` that hold code; a ``.cpp`` file comes before the others of its folder."""
    found = (path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
    return iter(sorted(found, key=lambda path: (path.parent, SUFFIXES.index(path.suffix), path.name)))


def before(path: Path) -> str:
    """What a file's includer, and the includers of that, have before it; of several includers, the first one's.

    ``for_each_isa.inc`` includes the kernel body that a ``.cpp`` file names, once per instruction set. Here the first
    of these counts, that of every machine.
    """
    if path.suffix != ".inc":
        return ""
    name = re.escape(path.relative_to(CSRC).as_posix())
    for includer in sources():
        text = includer.read_text()
        if re.search(rf'^#define USREG_KERNEL_BODY "{name}"$', text, re.MULTILINE):
            each_isa = re.escape(EACH_ISA.relative_to(CSRC).as_posix())
            return _up_to(rf'#include "{each_isa}"', text) + _up_to("#include USREG_KERNEL_BODY", EACH_ISA.read_text())
        if re.search(rf'^#include "{name}"', text, re.MULTILINE):
            return before(includer) + _up_to(rf'#include "{name}"', text)
    raise ValueError(f"{path} is included by no file of csrc: include it, or remove it")


def _up_to(pattern: str, text: str) -> str:
    """The lines before the first one that begins with a pattern."""
    return re.split(rf"^{pattern}", text, maxsplit=1, flags=re.MULTILINE)[0]


def _cpu_command() -> list[str]:
    setup = _module(ROOT / "setup.py")
    tools = setup.find_tools()
    if (obstacle := setup.obstacle_for_both(tools)) is not None:
        sys.exit(f"compile_commands.json was not written, since {obstacle}")
    command: list[str] = setup.cxx_command(tools.cxx, tools.torch)
    return command


def _cuda_command() -> list[str]:
    command: list[str] = _module(ROOT / "tests/kernels/cuda_on_cpu/build.py").command()
    return [flag for flag in command if flag != "-Werror"]  # an unused function of a header is no error here


def _module(path: Path) -> ModuleType:
    """A Python file that is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Write the file at the root."""
    found = entries(ROOT / "build" / "compile_commands")
    (ROOT / "compile_commands.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"compile_commands.json: {len(found)} files")


if __name__ == "__main__":
    main()

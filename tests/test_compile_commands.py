"""``make compile_commands``: every file of csrc has an entry, with which it compiles by itself.

The build compiles the source files (``.cpp``); the tests here, the files that these include.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools import compile_commands

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, list[str]]:
    """The arguments of each file's entry."""
    found = compile_commands.entries(tmp_path_factory.mktemp("headers"))
    return {Path(entry["file"]): entry["arguments"] for entry in found}


def test_every_file_has_one_entry(entries: dict[Path, list[str]]) -> None:
    files = {path for path in compile_commands.CSRC.rglob("*") if path.is_file()}
    assert set(entries) == files


def test_a_part_of_a_kernel_comes_after_what_it_refers_to(entries: dict[Path, list[str]]) -> None:
    arguments = entries[compile_commands.CSRC / "cpu/lncc/sum_y.inc"]
    header = Path(arguments[arguments.index("-include") + 1]).read_text()
    names = [
        "common/tensors.h",
        "define USREG_ISA base",
        "cpu/support/convert.inc",
        "vectors.inc",
        "cpu/lncc/sum_x.inc",
    ]
    places = [header.index(name) for name in names]
    assert places == sorted(places)
    assert "sum_y.inc" not in header


def test_a_source_file_is_compiled_as_the_build_does_it(entries: dict[Path, list[str]]) -> None:
    sources = [path for path in entries if path.suffix == ".cpp"]
    assert sources
    for path in sources:
        assert entries[path] == [*compile_commands._cpu_command(), "-x", "c++", "-c", str(path)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_files_that_others_include_compile_by_themselves(entries: dict[Path, list[str]]) -> None:
    def check(path: Path) -> str:
        # Not as errors: g++ warns of a "#pragma once" where a header is compiled by itself.
        command = [*(argument for argument in entries[path] if argument != "-Werror"), "-fsyntax-only"]
        done = subprocess.run(command, cwd=compile_commands.ROOT, capture_output=True, text=True, check=False)
        return f"{path}: {done.stderr}" if done.returncode else ""

    files = [path for path in entries if path.suffix in (".h", ".inc")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [message for message in pool.map(check, files) if message]
    assert failed == []

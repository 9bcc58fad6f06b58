"""What is packed for a GPU machine without a network, and what it does there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_tools.stand_ins import ROOT

from tools.gpu import __main__ as command_line
from tools.gpu import pack


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """A Python whose pip makes empty wheels, and whose builds make small libraries; it notes what it is asked for."""
    file = tmp_path / "python"
    file.write_text(
        f"""#!{sys.executable}
import os, pathlib, sys
arguments = sys.argv[1:]
with open({str(tmp_path / "asked")!r}, "a") as asked:
    asked.write(" ".join(arguments) + " " + os.environ.get("USREG_CUDA_ARCHS", "") + chr(10))
def after(name):
    return pathlib.Path(arguments[arguments.index(name) + 1])
if arguments[0] == "-c":
    print("3.12" if "version_info" in arguments[1] else "False")
elif "download" in arguments:
    for package in (a for a in arguments if "==" in a):
        (after("--dest") / (package.replace("==", "-") + "-py3-none-any.whl")).write_bytes(b"wheel")
elif "build_ext" in arguments:
    folder = after("--build-lib") / "usreg_kernels"
    folder.mkdir()
    for kind in ("cpu", "cuda"):
        (folder / ("libusreg_" + kind + ".so")).write_bytes(b"library" * 1000)
elif "install" in arguments:
    for name in ("triton/_C/libtriton.so", "triton/_C/libproton.so", "triton/backends/nvidia/bin/ptxas", "bin/x"):
        path = after("--target") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
"""
    )
    file.chmod(0o755)
    return file


def test_the_pack_holds_what_the_other_machine_lacks(
    fake_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack.shutil, "which", lambda name, **options: None)  # no strip, no nvcc
    out = tmp_path / ".gpu"
    options = ["--python", str(fake_python), "--arch", "86", "--package", "einops==0.8.2", "--out", str(out)]
    assert command_line.main(["pack", *options]) == 0
    asked = (tmp_path / "asked").read_text()
    assert "--python-version 3.12" in asked
    assert "--inplace" not in asked  # the tree's own libraries stay as they are
    assert re.search(r"build_ext --build-lib \S+ 86$", asked, re.MULTILINE)
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    wheels = {name.replace("==", "-") for name in (*pack.PACKAGES, *pack.contenders(), "einops==0.8.2")}
    assert names == {
        "contents.json",
        "libusreg_cpu.so.xz",
        "libusreg_cuda.so.xz",
        "run.sh",
        "triton.tar.xz",
        *(f"wheels/{name}-py3-none-any.whl" for name in wheels),
    }
    assert any(name.startswith("neurite==") for name in pack.contenders())
    with pack.tarfile.open(out / "triton.tar.xz") as archive:
        assert [name for name in archive.getnames() if name.endswith(("so", "ptxas", "x"))] == [
            "./triton/_C/libtriton.so"
        ]
    printed = capsys.readouterr().out
    assert "MiB in " in printed
    assert "fused-lncc==0.1.0 is left out" in printed
    monkeypatch.setattr(pack, "MOST_BYTES", 10)
    assert pack.main([*options, "--triton", "none", "--no-libraries"]) == 1
    assert "too large" in capsys.readouterr().out


def test_the_pack_says_what_failed(fake_python: Path, tmp_path: Path) -> None:
    fake_python.write_text("#!/bin/sh\necho no network\nexit 1\n")
    with pytest.raises(SystemExit, match="no network"):
        pack.main(["--python", str(fake_python), "--out", str(tmp_path / ".gpu")])
    with pytest.raises(SystemExit):
        pack.main(["--arch", "9.0", "--out", str(tmp_path / ".gpu")])


def test_what_was_packed_runs_on_the_other_machine(tmp_path: Path) -> None:
    """run.sh in a copy of the tree, with a Python that notes what it is asked for."""
    kit, unpacked = tmp_path / "tree" / ".gpu", tmp_path / "unpacked"
    kit.mkdir(parents=True)
    (tmp_path / "tree" / "usreg_kernels").mkdir()
    (kit / "run.sh").write_bytes((ROOT / "tools" / "gpu" / "run.sh").read_bytes())
    (kit / "contents.json").write_text("{}")
    (kit / "wheels").mkdir()
    (kit / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"")
    library = tmp_path / "tree" / "usreg_kernels" / "libusreg_cuda.so"
    (kit / "libusreg_cuda.so.xz").write_bytes(pack.lzma.compress(b"library"))
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$PYTHONPATH: $*" >> {tmp_path / "asked"}\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "USREG_GPU_UNPACKED": str(unpacked)}
    for _ in range(2):
        command = ["bash", str(kit / "run.sh"), "smoke", "--limit", "600"]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert library.read_bytes() == b"library"
    install, *runs = (tmp_path / "asked").read_text().splitlines()
    assert "pip install" in install
    assert "--no-index" in install
    assert len(runs) == 2  # what is unpacked serves the second call
    (kit / "contents.json").write_text("[]")
    subprocess.run(["bash", str(kit / "run.sh")], env=environment, check=True)
    assert len(re.findall("pip install", (tmp_path / "asked").read_text())) == 2  # another pack
    assert all(run.startswith(f"{unpacked}/site") and run.endswith("-m tools.gpu smoke --limit 600") for run in runs)

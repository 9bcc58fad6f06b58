"""Who registers, and the environment that each needs: made here, one for each, or the reason why there is none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RUNNERS = Path(__file__).with_name("runners")

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Contender:
    """A program and how to run it.

    Attributes:
        name: in the tables.
        script: in ``runners``.
        packages: that its environment holds, installed in this order, one by one; none: this environment.
        arguments: of the script, after the jobs.
        environment: the name of the environment's folder; the same packages, the same folder.
    """

    name: str
    script: str
    packages: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: str = ""


OURS = "USReg"

CONTENDERS = (
    Contender(OURS, "usreg_default.py"),
    Contender("ANTs SyN", "ants_syn.py", ("antspyx==0.6.3",), ("SyN",), "ants"),
    Contender("ANTs SyNCC", "ants_syn.py", ("antspyx==0.6.3",), ("SyNCC",), "ants"),
    Contender("Greedy (PICSL)", "picsl.py", ("picsl-greedy==1.4.0",), (), "picsl"),
    Contender("ConvexAdam", "convex_adam.py", (TORCH, "convexadam==0.2.0"), (), "convexadam"),
    Contender("FireANTs, not fused", "fireants_greedy.py", (TORCH, "fireants==1.5.0"), (), "fireants"),
)


class Absent(Exception):
    """A contender that cannot take part; the message says why."""


def interpreter(contender: Contender, environments: Path) -> str:
    """The interpreter of a contender's environment, which is made where it is missing.

    Raises:
        Absent: the environment cannot be made.
    """
    if not contender.packages:
        return sys.executable
    folder = environments / contender.environment
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists() or done.read_text() != str(contender.packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for package in contender.packages:
            command = [str(python), "-m", "pip", "install", "--quiet", package]
            installed = subprocess.run(command, capture_output=True, text=True, check=False)
            if installed.returncode:
                raise Absent(f"pip cannot install {package}: {last_line(installed.stderr)}")
        done.write_text(str(contender.packages))
    return str(python)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"

"""Commands are modules and functions at once: ``python -m usreg.register`` and ``usreg.register(...)``."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from torch import distributed

import usreg
from usreg.command_line import run_command
from usreg.errors import UsageError


@pytest.mark.parametrize(
    "imports",
    [
        "import usreg",
        "import usreg.register",
        "from usreg import register",
        "from usreg.register import main; import usreg",
        "import usreg; usreg.register; import usreg.register",
    ],
)
def test_every_import_gives_the_function_and_the_module(imports: str) -> None:
    code = f"{imports}\nimport usreg\nassert callable(usreg.register) and callable(usreg.register.main)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("command", usreg.COMMANDS)
def test_a_module_is_called_as_its_function(command: str) -> None:
    module = getattr(usreg, command)
    name = module.FUNCTION[1]
    function = getattr(sys.modules.get(module.FUNCTION[0]) or __import__(module.FUNCTION[0], fromlist=[name]), name)
    assert inspect.signature(module) == inspect.signature(function)
    with pytest.raises(TypeError, match=name):
        module(nothing_of_this_name=1)


@pytest.mark.parametrize("command", usreg.COMMANDS)
def test_a_command_is_run_by_its_module_without_a_warning(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"usreg.{command}", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m usreg.{command}" in done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'regster'"):
        usreg.regster  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("fails", [False, True])
def test_a_command_leaves_the_other_processes(tmp_path, fails: bool) -> None:
    """Also one that ends early: gloo's threads may abort a program that ends while they run."""

    def act(console) -> int:
        if fails:
            raise UsageError("no")
        return 0

    distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    assert run_command(act, "nothing") == (2 if fails else 0)
    assert not distributed.is_initialized()

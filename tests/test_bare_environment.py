"""The GPU tests where the extras are not installed: collected or skipped. Elsewhere, a missing package is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = ("accelerate", "hypothesis", "matplotlib", "monai", "nibabel", "omegaconf", "rich", "scipy", "yaml")


def _collect(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest --collect-only, without the extras and without pytest-timeout."""
    (tmp_path / "without_extras.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n")
    usual = {name: value for name, value in os.environ.items() if name != "CI"}
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    plugins = [f"-p{name}" for name in ("without_extras", "no:timeout", "no:hypothesispytest", "no:cacheprovider")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "--collect-only", "-q", *options],
        cwd=ROOT,
        env={**usual, "PYTHONPATH": path, "USREG_TEST_GPU": "cpu", "TRITON_INTERPRET": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_gpu_tests_need_no_extras(tmp_path: Path) -> None:
    done = _collect(tmp_path, "-m", "gpu", "tests")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "tests/kernels/test_gpu.py::test_graph_capture" in done.stdout
    for package in ("hypothesis", "monai", "omegaconf", "nibabel"):
        assert f"needs {package}, which is not installed" in done.stdout


@pytest.mark.parametrize(
    ("options", "environment"),
    [((), {}), (("-m", "not gpu"), {}), (("-m", "gpu"), {"CI": "true"})],
    ids=["all tests", "all but those of GPUs", "continuous integration"],
)
def test_elsewhere_a_missing_package_is_an_error(
    options: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    module = "tests/kernels/test_windows.py"
    done = _collect(tmp_path, *options, module, **environment)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert f"ERROR {module}" in done.stdout

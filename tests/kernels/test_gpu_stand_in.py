"""test_gpu.py without a GPU: what it collects and, on small volumes in Triton's interpreter, that its tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

MODULE = Path(__file__).with_name("test_gpu.py")
NEEDS_A_GPU = {
    "test_the_automatic_choice_is_the_first_fused_kernel",
    "test_nothing_waits_for_the_device",
    "test_graph_capture",
    "test_captured_steps_of_a_field",
    "test_captured_steps_of_a_registration",
    "test_two_streams",
    "test_another_device_than_the_current_one",
}
SMALL = (
    "(3d-default or automatic or autocast or steps or 2_31 or feature and (bfloat16 or chunks))"
    " and (not compile or dvf_mse)"
    " and (not agrees_with_the_cpu or torch.float32 or dvf_mse)"
)
"""At least one case of each test, those that take seconds in the interpreter."""


def _pytest(*options: str) -> str:
    """What pytest prints of test_gpu.py, with the CPU in place of a GPU."""
    environment = {**os.environ, "USREG_TEST_GPU": "cpu", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(MODULE), "-m", "gpu", "-p", "no:cacheprovider", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def _tests() -> set[str]:
    return set(re.findall(r"^def (test_\w+)", MODULE.read_text(), re.MULTILINE))


def test_every_test_has_cases() -> None:
    cases = Counter(re.findall(r"^\S+::(test_\w+)\[.*\]$", _pytest("--collect-only", "-q"), re.MULTILINE))
    assert set(cases) == _tests()
    assert cases["test_agrees_with_the_cpu"] > 200
    assert cases["test_lncc_feature"] > 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_needs_no_driver_passes() -> None:
    outcomes = re.findall(r"::(test_\w+)\[.*\] (PASSED|SKIPPED)", _pytest("-v", "-k", SMALL))
    passed, skipped = ({name for name, found in outcomes if found == wanted} for wanted in ("PASSED", "SKIPPED"))
    assert skipped == NEEDS_A_GPU
    assert passed == _tests() - NEEDS_A_GPU

"""The programs that compute-sanitizer and ncu run, on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from tools.gpu import profile_target, sanitize_target
from usreg_kernels import dispatch


@pytest.fixture
def few_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One call per op of those that the sanitizers get."""
    chosen = list({call.op: call for call in sanitize_target.calls()}.values())
    monkeypatch.setattr(sanitize_target, "calls", lambda: iter(chosen))
    return None


def test_the_target_of_the_sanitizers_is_right_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize_target.main(["--check", "--device", "cpu", "--backend", "cpu", "reference"]) == 0
    assert re.search(r"^\d+ checks, 0 wrong; largest error in float32: ", capsys.readouterr().out, re.MULTILINE)


def test_the_target_reaches_every_op() -> None:
    chosen = list(sanitize_target.calls())
    assert {call.op for call in chosen} == set(dispatch.ops())
    assert len({str(call) for call in chosen}) == len(chosen)


@pytest.mark.usefixtures("few_calls")
@pytest.mark.parametrize("planted", [1.001, float("nan")])
def test_the_check_finds_a_planted_error(
    planted: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = sanitize_target.FUNCTIONS["dvf_mse"]

    def wrong(pred: torch.Tensor, target: torch.Tensor, **arguments: object) -> torch.Tensor:
        loss = real(pred, target, **arguments)
        return loss if pred.dtype == torch.float64 else loss * planted

    monkeypatch.setitem(sanitize_target.FUNCTIONS, "dvf_mse", wrong)
    assert sanitize_target.main(["--check", "--device", "cpu", "--backend", "reference"]) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("WRONG")]
    assert len(bad) == 3  # float32 and both half precisions
    assert all("dvf_mse" in line for line in bad)


@pytest.mark.usefixtures("few_calls")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_target_that_runs_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize_target.main(["--device", "cpu", "--backend", "cuda"]) == 1
    assert "has no cuda: " in capsys.readouterr().out


def test_the_target_of_ncu_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile_target.main(["--device", "cpu", "--shape", "tiny", "--backend", "reference"]) == 0
    assert capsys.readouterr().out == f"{len(profile_target.calls())} steps\n"

"""The faster interpreter computes the same bits, looks through the language less often, and leaves it as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels.cases import Case, with_backends

import usreg_kernels as uk

# Between them: functions that call functions, of Triton's own library too, reductions, atomics and static loops.
CASES = [Case("lncc", 2), Case("warp", 2), Case("bending_energy", 2), Case("folding", 2), Case("gaussian_smooth", 2)]
IN_INTERPRETER = [case for case, backend in with_backends(CASES) if backend == "triton"]


def _results(case: Case) -> list[torch.Tensor]:
    tensors = case.tensors(torch.float32)
    with uk.use_backend("triton"):
        output = case.run(*tensors)
        return [output.detach(), *torch.autograd.grad(case.scalar(*tensors), tensors)]


@pytest.mark.parametrize("case", IN_INTERPRETER, ids=str)
def test_same_bits_and_fewer_replacements(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    fast = interpreter._patch_lang
    calls = {"launches": 0, "fast": 0, "plain": 0}
    launch = interpreter.GridExecutor.__call__

    def count_launches(self: Any, *arguments: Any, **keywords: Any) -> None:
        calls["launches"] += 1
        launch(self, *arguments, **keywords)

    def count(function: Any) -> Any:
        calls["plain"] += 1
        return fast.original(function)

    before = dict(vars(interpreter.tl.tensor))
    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", count_launches)
        patch.setattr(interpreter, "_LangPatchScope", _counted(interpreter._LangPatchScope, calls))
        found = _results(case)
    assert before.items() <= vars(interpreter.tl.tensor).items()  # inherited names become the class's own
    monkeypatch.setattr(interpreter, "_patch_lang", count)
    expected = _results(case)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert 0 < calls["launches"] <= calls["fast"] <= 2 * calls["launches"] < calls["plain"]


def _counted(scope: type, calls: dict[str, int]) -> type:
    class Counted(scope):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            calls["fast"] += 1

    return Counted

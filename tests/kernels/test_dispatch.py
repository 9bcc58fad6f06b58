"""The choice of a backend: automatic, explicit, from the environment; its reasons and its report."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import usreg_kernels as uk
from usreg_kernels import dispatch
from usreg_kernels.__main__ import report
from usreg_kernels.backend import Backend
from usreg_kernels.functional import FUNCTIONS

FIELDS = (torch.rand(1, 3, 4, 4, 4), torch.rand(1, 3, 4, 4, 4))


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_op_has_the_reference() -> None:
    assert dispatch.ops() == tuple(sorted({**FUNCTIONS, **uk.optim.FUNCTIONS}))
    for op in dispatch.ops():
        assert "reference" in uk.available_backends(op)
    with pytest.raises(ValueError, match="unknown op 'ncc'; valid: bending_energy"):
        uk.available_backends("ncc")


def test_explain_names_the_choice_and_the_reasons() -> None:
    explanation = uk.explain("dvf_mse", *FIELDS)
    assert explanation.chosen == ("cpu" if "cpu" in uk.available_backends("dvf_mse") else "reference")
    assert explanation.reasons["reference"] is None
    assert "would run" in str(explanation)
    assert "cannot run" in str(explanation)
    with uk.use_backend("reference"):
        assert uk.explain("dvf_mse", *FIELDS).chosen == "reference"
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        uk.explain("lncc", *FIELDS, kernel_size=4)
    with pytest.raises(ValueError, match="unknown op"):
        uk.explain("ncc", *FIELDS)


def test_an_explicit_choice_never_falls_back() -> None:
    with (
        uk.use_backend("cuda"),
        pytest.raises(uk.BackendError, match=r"'cuda' was asked for(.|\n)*reference +could"),
    ):
        uk.dvf_mse_loss(*FIELDS)
    uk.dvf_mse_loss(*FIELDS)


def test_use_backend_nests_and_refuses_unknown_names() -> None:
    with uk.use_backend("reference"):
        with pytest.raises(RuntimeError), uk.use_backend("triton"):
            raise RuntimeError
        assert uk.explain("dvf_mse", *FIELDS).chosen == "reference"
    with (
        pytest.raises(ValueError, match="unknown backend 'gpu'; valid: reference, cpu, triton, cuda"),
        uk.use_backend("gpu"),
    ):
        pass


def test_the_environment_chooses() -> None:
    code = "import torch, usreg_kernels as uk; x = torch.rand(1, 1, 3); print(uk.explain('dvf_mse', x, x).chosen)"
    assert _run(code, USREG_BACKEND="reference").stdout.strip() == "reference"
    wrong = _run(code, USREG_BACKEND="fast")
    assert wrong.returncode != 0
    assert "USREG_BACKEND: unknown backend 'fast'; valid: reference" in wrong.stderr


def test_backward_stays_with_the_backend_of_forward() -> None:
    pred, gt = (field.clone().requires_grad_() for field in FIELDS)
    with uk.use_backend("reference"):
        loss = uk.dvf_mse_loss(pred, gt)
    with uk.use_backend("triton"):
        loss.backward()
    assert pred.grad is not None


def test_falling_to_the_reference_on_a_gpu_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_warned", set())
    with FakeTensorMode():
        tensors = [torch.empty(1, device="cuda")]
    with pytest.warns(
        UserWarning, match="dvf_mse runs on the plain PyTorch reference on cuda.*python -m usreg_kernels"
    ):
        dispatch.warn_if_slow("dvf_mse", "reference", tensors)
    dispatch.warn_if_slow("dvf_mse", "reference", tensors)
    dispatch.warn_if_slow("lncc", "triton", tensors)
    dispatch.warn_if_slow("lncc", "reference", FIELDS)
    with uk.use_backend("reference"):
        dispatch.warn_if_slow("lncc", "reference", tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_without_triton_takes_cuda_by_itself(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be seen without a GPU: the choice, and a call of fake tensors with its gradient."""
    from usreg_kernels import library
    from usreg_kernels.ops import triton_backend

    monkeypatch.setitem(library._reasons, "cuda", None)
    monkeypatch.setattr(triton_backend, "_INSTALLED", False)
    with FakeTensorMode():
        images = [torch.empty(1, 1, 8, 9, 10, dtype=dtype, device="cuda") for _ in range(2)]
        explanation = uk.explain("lncc", *images)
        assert explanation.chosen == "cuda"
        assert "Triton is not installed" in str(explanation.reasons["triton"])
        loss = uk.lncc_loss(*images, kernel_size=7)
        assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", dtype, ())
        # Without autograd, which needs a torch with CUDA.
        params = {"kernel_size": [7] * 3, "kernel_type": "rectangular", "reduction": "mean", "smooth_nr": 0.0}
        params |= {"smooth_dr": 1e-5, "needs_grad": [True, False], "backend": "cuda"}
        loss, saved = torch.ops.usreg.lncc(*images, None, **params)
        (gradient,) = torch.ops.usreg.lncc_backward(loss, saved, *images, None, **params)
        assert (gradient.device.type, gradient.shape) == ("cuda", images[0].shape)


def test_a_backend_needs_a_known_name() -> None:
    class Mine(Backend):
        name = "mine"

    with pytest.raises(ValueError, match="unknown backend name 'mine'"):
        dispatch.register_backend("lncc", Mine())


def test_functions_and_modules_can_be_explained() -> None:
    expected = uk.explain("lncc", *FIELDS, kernel_size=5)
    assert uk.explain(uk.lncc_loss, *FIELDS, kernel_size=5) == expected
    assert uk.explain(uk.LNCCLoss(kernel_size=5), *FIELDS) == expected
    with pytest.raises(TypeError, match="there is no choice of a backend to explain"):
        uk.explain(torch.add, *FIELDS)
    assert uk.lncc_loss(*FIELDS).shape == ()  # nothing of it stays behind


def test_the_report_lists_every_op_and_backend() -> None:
    text = report()
    for op in dispatch.ops():
        assert f"\n{op}\n" in text
    assert text.count("reference     can run") == len(dispatch.ops())
    done = subprocess.run([sys.executable, "-m", "usreg_kernels"], capture_output=True, text=True, check=True)
    assert "CPU capability" in done.stdout


def test_importing_the_kernels_imports_nothing_of_the_training_framework() -> None:
    code = (
        "import sys, usreg_kernels; print([m for m in ('monai', 'usreg', 'omegaconf', 'triton') if m in sys.modules])"
    )
    done = _run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_caller_with_another_function_in_hand_learns_whether_the_op_is_worth_it() -> None:
    has_library = "cpu" in uk.available_backends("warp")
    assert dispatch.is_worthwhile("warp", "cpu") is has_library
    on_gpus = bool({"triton", "cuda"} & set(uk.available_backends("warp")))
    assert dispatch.is_worthwhile("warp", "cuda") is on_gpus
    with uk.use_backend("reference"):
        assert dispatch.is_worthwhile("warp", "cuda")
    with uk.use_backend("cuda"):
        assert not dispatch.is_worthwhile("warp", "cpu")

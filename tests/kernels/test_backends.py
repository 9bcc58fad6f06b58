"""What every op and every backend owes torch: schema, fake, autograd, double backward, compile, autocast."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

import pytest
import torch
from kernels.cases import (
    CASES,
    DTYPES,
    FUNCTIONS,
    INTERPRETED_CASE_PER_OP,
    ONE_CASE_PER_OP,
    Case,
    takes,
    widest,
    with_backends,
)
from kernels.compare import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels import dispatch
from usreg_kernels.ops import eager
from usreg_kernels.ops.lncc.cpu import Cpu
from usreg_kernels.ops.reduction import REDUCTIONS

EVERY_CASE_IN_FLOAT64 = pytest.mark.parametrize(("case", "backend"), with_backends(CASES, torch.float64), ids=str)
EVERY_OP = pytest.mark.parametrize(("case", "backend"), with_backends(ONE_CASE_PER_OP), ids=str)
FAST = [
    (case, backend, dtype)
    for case, backend in with_backends(CASES)
    for dtype in DTYPES
    if backend != "reference" and takes(backend, dtype)
    if backend != "triton" or dtype == torch.float32 or case in INTERPRETED_CASE_PER_OP  # the interpreter is slow
]
OPCHECK = [
    (case, backend) for case, backend in with_backends(CASES) if backend != "triton" or case in INTERPRETED_CASE_PER_OP
]


def _gradients(loss: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    incoming = torch.rand(loss.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((loss * incoming).sum(), tensors)


@pytest.mark.parametrize(("case", "backend"), OPCHECK, ids=str)
def test_opcheck(case: Case, backend: str) -> None:
    tensors = case.tensors(torch.float32)
    call = dispatch.explain(case.run, *tensors)
    keywords = {**call.params, "needs_grad": case.needs_grad(call.tensors), "backend": backend}
    result = torch.library.opcheck(getattr(torch.ops.usreg, case.op).default, call.tensors, keywords)
    assert set(result.values()) == {"SUCCESS"}


@EVERY_CASE_IN_FLOAT64
def test_gradcheck(case: Case, backend: str) -> None:
    """The gradient against finite differences of the loss; away from the kinks, values are generic."""
    small = [tensor.detach()[:1].requires_grad_() for tensor in case.tensors()]
    cut = replace(case, batch=1)
    with uk.use_backend(backend):
        assert torch.autograd.gradcheck(cut.run, small, fast_mode=True)


@EVERY_CASE_IN_FLOAT64
def test_gradgradcheck(case: Case, backend: str) -> None:
    small = [tensor.detach()[:1].requires_grad_() for tensor in case.tensors()]
    cut = replace(case, batch=1)
    with uk.use_backend(backend):
        assert torch.autograd.gradgradcheck(cut.run, small, fast_mode=True)


@pytest.mark.parametrize(("case", "backend", "dtype"), FAST, ids=str)
def test_backend_agrees_with_the_float64_reference(case: Case, backend: str, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    oracle = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with uk.use_backend(backend):
        loss = case.run(*tensors)
        gradients = _gradients(loss, tensors)
    with uk.use_backend("reference"):
        expected = case.run(*oracle)
        expected_gradients = _gradients(expected, oracle)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss_allowance, gradient_allowance = _float32_allowance(case, backend)
    assert_close(loss, expected, max(LOSS_TOLERANCE[dtype], loss_allowance))
    for gradient, tensor, wanted in zip(gradients, tensors, expected_gradients, strict=True):
        assert gradient.dtype == tensor.dtype
        assert_close(gradient, wanted, max(GRADIENT_TOLERANCE[dtype], gradient_allowance))


def _float32_allowance(case: Case, backend: str) -> tuple[float, float]:
    """What a backend with float32 sums may lose of the loss and its gradients, where a variance is next to nothing.

    In noise, that of three voxels is, somewhere. MONAI in float32 loses as much.
    """
    three_voxels = case.op == "lncc" and case.dims == 1 and "kernel_size" not in case.arguments
    return (1e-4, 1e-3) if backend == "triton" and three_voxels else (0.0, 0.0)


@EVERY_OP
def test_gradient_to_one_input_alone(case: Case, backend: str) -> None:
    tensors = case.tensors(widest(backend))
    with uk.use_backend(backend):
        both = _gradients(case.run(*tensors), tensors)
        for i, tensor in enumerate(tensors):
            inputs = [other.detach() for other in tensors]
            inputs[i] = tensor
            assert_close(_gradients(case.run(*inputs), [tensor])[0], both[i], LOSS_TOLERANCE[widest(backend)])


@EVERY_OP
def test_no_grad_and_constant_inputs(case: Case, backend: str) -> None:
    tensors = case.tensors(widest(backend))
    with uk.use_backend(backend):
        with torch.no_grad():
            assert not case.run(*tensors).requires_grad
        assert not case.run(*(tensor.detach() for tensor in tensors)).requires_grad


@EVERY_OP
def test_backward_twice_through_one_graph(case: Case, backend: str) -> None:
    tensors = case.tensors(torch.float32)
    with uk.use_backend(backend):
        loss = case.scalar(*tensors)
        first = torch.autograd.grad(loss, tensors, retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        for gradient in first:
            gradient.zero_()  # a gradient is the caller's own: what is saved must not change with it
        for again, gradient in zip(torch.autograd.grad(loss, tensors), kept, strict=True):
            assert torch.equal(again, gradient)


@pytest.mark.parametrize("both", [False, True])
def test_backward_scales_a_saved_gradient_where_it_lies(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cpu" not in uk.available_backends("lncc"):
        pytest.skip("no CPU library")
    pred, target = Case("lncc").tensors(torch.float32)
    inputs = [pred, target] if both else [pred]
    saved: list[torch.Tensor] = []

    class Watched(Cpu):
        def forward(self, *arguments: Any, **params: Any) -> Any:
            loss, gradients = super().forward(*arguments, **params)
            saved.extend(gradients)
            return loss, gradients

    monkeypatch.setitem(dispatch._backends["lncc"], "cpu", Watched("cpu"))
    with uk.use_backend("cpu"):
        loss = uk.lncc_loss(pred, target if both else target.detach())
        gradients = torch.autograd.grad(3 * loss, inputs, retain_graph=True)
        assert [gradient.data_ptr() for gradient in gradients] == [tensor.data_ptr() for tensor in saved]
        again = torch.autograd.grad(3 * loss, inputs)
    with uk.use_backend("reference"):
        expected = torch.autograd.grad(3 * uk.lncc_loss(pred, target), inputs)
    for gradient, other, wanted in zip(gradients, again, expected, strict=True):
        assert not gradient.requires_grad
        assert torch.equal(gradient, other)
        assert gradient.data_ptr() != other.data_ptr()
        assert_close(gradient, wanted, GRADIENT_TOLERANCE[torch.float32])


@EVERY_OP
def test_the_short_way_and_the_operator_have_the_same_bits(
    case: Case, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain tensors take the short way; whatever follows a call takes the operator."""
    tensors = case.tensors(torch.float32)
    results = []
    with uk.use_backend(backend):
        for short in (True, False):
            if not short:
                monkeypatch.setattr(eager, "nobody_looks_on", lambda tensors: False)
            output = case.run(*tensors)
            assert ("Step" in type(output.grad_fn).__name__) == short
            loss = case.scalar(*tensors)
            results.append([output, *torch.autograd.grad(3 * loss, tensors, retain_graph=True)])
            first = torch.autograd.grad((3 * loss).sin(), tensors, create_graph=True)
            results[-1] += torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


class Watcher(TorchDispatchMode):
    """Notes the operators that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.seen.append(str(function))
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_a_dispatch_mode_sees_the_operators(op: str) -> None:
    tensors = Case(op).tensors(torch.float32)
    with Watcher() as watcher:
        Case(op).scalar(*tensors).backward()
    assert f"usreg.{op}.default" in watcher.seen
    assert f"usreg.{op}_backward.default" in watcher.seen


@pytest.mark.parametrize("op", FUNCTIONS)
def test_meta_tensors_have_an_output_of_the_right_shape(op: str) -> None:
    tensors = [tensor.detach().to("meta").requires_grad_() for tensor in Case(op).tensors(torch.float32)]
    output = Case(op).run(*tensors)
    expected = Case(op).run(*Case(op).tensors(torch.float32))
    assert (output.shape, output.dtype, output.is_meta) == (expected.shape, expected.dtype, True)
    assert torch.autograd.grad(Case(op).scalar(*tensors), tensors)[0].shape == tensors[0].shape


def test_double_backward_of_inputs_that_depend_on_each_other() -> None:
    x = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    function = lambda x: uk.lncc_loss(x.sin(), x.sin().exp(), smooth_dr=1e-2)  # noqa: E731
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@EVERY_OP
def test_compile_fullgraph_with_backward(case: Case, backend: str) -> None:
    tensors = case.tensors(torch.float32)
    function = lambda *tensors: case.scalar(*(2 * tensor for tensor in tensors)) * 3  # noqa: E731
    torch.compiler.reset()
    with uk.use_backend(backend):
        compiled = torch.compile(function, fullgraph=True)
        results = [(f(*tensors), torch.autograd.grad(f(*tensors), tensors)) for f in (compiled, function)]
    (loss, gradients), (expected, expected_gradients) = results
    assert_close(loss, expected, 1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted, 1e-6)


def test_compiled_code_follows_a_change_of_backend() -> None:
    case = Case("dvf_mse")
    tensors = case.tensors(torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(case.scalar, fullgraph=True)
    compiled(*tensors)
    with uk.use_backend("cuda"), pytest.raises(Exception, match="was asked for"):
        compiled(*tensors)


@EVERY_OP
def test_autocast_changes_nothing(case: Case, backend: str) -> None:
    """Neither the loss, nor (for the windows, which are cached) any later one."""
    from usreg_kernels.windows import make_window

    tensors = case.tensors(torch.float32)
    with uk.use_backend(backend):
        expected = case.scalar(*tensors)
        make_window.cache_clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(case.scalar(*tensors), expected)
        assert torch.equal(case.scalar(*tensors), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@EVERY_OP
def test_half_gradients_survive_a_grad_scaler(case: Case, backend: str, dtype: torch.dtype) -> None:
    """The gradient of a mean is about 1 / voxels, tiny in float16: it is scaled before it is rounded."""
    tensors = [(tensor.detach() * 1e-2).requires_grad_() for tensor in case.tensors(dtype)]
    oracle = [tensor.detach().double().requires_grad_() for tensor in tensors]
    scale = 65536.0
    with uk.use_backend(backend):
        scaled = torch.autograd.grad(case.scalar(*tensors) * scale, tensors)
    with uk.use_backend("reference"):
        expected = torch.autograd.grad(case.scalar(*oracle) * scale, oracle)
    for gradient, wanted in zip(scaled, expected, strict=True):
        if wanted.abs().max() < torch.finfo(dtype).max:
            assert_close(gradient, wanted, GRADIENT_TOLERANCE[dtype])


@EVERY_OP
def test_any_strides(case: Case, backend: str) -> None:
    tensors = [tensor.detach() for tensor in case.tensors(widest(backend))]

    def strided(x: torch.Tensor) -> list[torch.Tensor]:
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        return [
            wide[..., ::2],
            x.transpose(0, -1).contiguous().transpose(0, -1),
            x.to(memory_format=torch.channels_last_3d),
            x.flip(-1).contiguous().flip(-1),
        ]

    with uk.use_backend(backend):
        expected = [case.run(*tensors), *torch.autograd.grad(*_with_grad(case, tensors))]
        for views in zip(*(strided(tensor) for tensor in tensors), strict=True):
            actual = [case.run(*views), *torch.autograd.grad(*_with_grad(case, views))]
            for one, other in zip(actual, expected, strict=True):
                assert torch.equal(one, other)
        constant = [tensor[:, :, :1, :1, :1].expand(tensor.shape) for tensor in tensors]
        assert_close(case.run(*constant), case.run(*(tensor.clone() for tensor in constant)), 1e-15)


def _with_grad(case: Case, tensors: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]  # type: ignore[attr-defined]
    return case.scalar(*leaves), leaves


@EVERY_OP
def test_same_bits_for_any_number_of_threads(case: Case, backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    is_slow = backend == "triton" or (backend == "cuda" and case.op in ("mind", "mind_ssc"))
    shape = (1, 3, 4, 9, 26) if is_slow else (1, 3, 24, 25, 26)  # several programs, in an interpreter or emulated
    if is_slow and case.op in ("mind", "mind_ssc"):
        shape = (1, 1, 4, 9, 18)
    leaves = [torch.rand(shape, generator=generator).requires_grad_() for _ in case.tensors(widest(backend))]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3) if is_slow else (1, 2, 3):
            torch.set_num_threads(threads)
            with uk.use_backend(backend):
                results.append([case.run(*leaves), *torch.autograd.grad(case.scalar(*leaves), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@EVERY_OP
def test_nan_and_inf_are_never_hidden(case: Case, backend: str, bad: float) -> None:
    for i in range(len(case.tensors(widest(backend)))):
        tensors = [tensor.detach().clone() for tensor in case.tensors(widest(backend))]
        tensors[i][0, 0, 2, 2, 2] = bad
        with uk.use_backend(backend):
            assert not case.run(*tensors).isfinite().all()


@EVERY_OP
def test_empty_batch(case: Case, backend: str) -> None:
    empty = [tensor.detach()[:0].requires_grad_() for tensor in case.tensors(widest(backend))]
    with uk.use_backend(backend):
        expected = case.run(*case.tensors(widest(backend)))
        for reduction in REDUCTIONS if "reduction" in signature(FUNCTIONS[case.op]).parameters else (None,):
            variant = Case(case.op, arguments={} if reduction is None else {"reduction": reduction})
            loss = variant.run(*empty)
            is_map = reduction == "none" or expected.ndim > 0
            assert loss.shape == ((0, *loss.shape[1:]) if is_map else ())
            assert loss.sum() == 0 if is_map or reduction == "sum" else loss.isnan()
            assert torch.autograd.grad(loss.sum(), empty[0])[0].shape == empty[0].shape


@EVERY_OP
def test_integers_are_refused(case: Case, backend: str) -> None:
    with uk.use_backend(backend), pytest.raises(TypeError, match=r"float64, float32.*int64"):
        case.run(*(torch.zeros(tensor.shape, dtype=torch.int64) for tensor in case.tensors(widest(backend))))

"""What the operator of an op can be beyond a loss: several outputs, tensors that may be missing, constants."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from usreg_kernels import dispatch
from usreg_kernels.ops import eager
from usreg_kernels.ops.operator import Op, ReferenceBackend

NAME = "test_sum_and_product"


def forward(
    a: torch.Tensor, b: torch.Tensor | None, shift: torch.Tensor | None, *, power: int
) -> tuple[torch.Tensor, ...]:
    """``a ** power + b + shift``, summed over the first axis; and ``a b``. A missing b is 1, a missing shift 0."""
    other = torch.ones_like(a) if b is None else b
    return (a**power + other + (0 if shift is None else shift)).sum(0), a * other


def backward(
    grads: tuple[torch.Tensor, torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor | None,
    shift: torch.Tensor | None,
    *,
    needs_grad: list[bool],
    power: int,
) -> list[torch.Tensor]:
    total, product = grads
    found = [power * a ** (power - 1) * total + product * (1 if b is None else b)] * needs_grad[0]
    return found + [total.expand(a.shape) + product * a] * needs_grad[1]


def outputs_like(a: torch.Tensor, *others: Any, **params: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return a.new_empty(a.shape[1:]), a.new_empty(a.shape)


class Saving(ReferenceBackend):
    """A backend that saves something, and is asked for by name."""

    name = "cpu"

    def forward(self, *tensors: Any, needs_grad: list[bool], **params: Any) -> Any:
        outputs, _ = super().forward(*tensors, needs_grad=needs_grad, **params)
        return outputs, [tensors[0] * 2] * any(needs_grad)

    def saved_like(self, *tensors: Any, needs_grad: list[bool], **params: Any) -> list[torch.Tensor]:
        return [torch.empty_like(tensors[0])] * any(needs_grad)


@pytest.fixture(scope="module")
def op():
    module = ModuleType("reference")
    module.forward, module.backward = forward, backward
    made = Op(
        name=NAME,
        tensors=("Tensor a", "Tensor? b"),
        constants=("Tensor? shift",),
        params="int power",
        outputs_like=outputs_like,
        outputs=2,
        reference=module,
        backends=(Saving(module),),
    )
    yield made
    del dispatch._backends[NAME]


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    a, b, shift = torch.rand(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return [a.requires_grad_(), b.requires_grad_(), shift]


def test_both_outputs_and_their_gradients(op: Op, tensors: list[torch.Tensor]) -> None:
    total, product = op(*tensors, power=3)
    expected = forward(*tensors, power=3)
    assert torch.equal(total, expected[0])
    assert torch.equal(product, expected[1])
    function = lambda a, b: op(a, b, tensors[2], power=3)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors[:2])
    assert torch.autograd.gradgradcheck(function, tensors[:2])


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_an_output_that_nobody_uses(
    op: Op, tensors: list[torch.Tensor], which: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "nobody_looks_on", lambda tensors: short)
    found = torch.autograd.grad(op(*tensors, power=3)[which].sum(), tensors[:2])
    expected = torch.autograd.grad(forward(*tensors, power=3)[which].sum(), tensors[:2])
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_a_tensor_may_be_missing(op: Op, tensors: list[torch.Tensor]) -> None:
    a = tensors[0]
    total, product = op(a, None, None, power=2)
    assert torch.equal(total, (a**2 + 1).sum(0))
    assert torch.equal(product, a)
    assert torch.autograd.gradcheck(lambda a: op(a, None, None, power=2), a)
    assert torch.autograd.gradgradcheck(lambda a: op(a, None, None, power=2), a)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck(op: Op, tensors: list[torch.Tensor], backend: str, missing: bool) -> None:
    arguments = [tensors[0], None, None] if missing else tensors
    keywords = {"power": 3, "needs_grad": [True, not missing], "backend": backend}
    result = torch.library.opcheck(op.operator, arguments, keywords)
    assert set(result.values()) == {"SUCCESS"}


def test_compile(op: Op, tensors: list[torch.Tensor]) -> None:
    def function(*given: torch.Tensor) -> torch.Tensor:
        total, product = op(*given, power=3)
        return total.sin().sum() + product.cos().sum()

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)
    found, expected = (torch.autograd.grad(f(*tensors), tensors[:2]) for f in (compiled, function))
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_transforms_go_through_the_reference(op: Op, tensors: list[torch.Tensor]) -> None:
    tensors = [tensor.detach() for tensor in tensors]
    found = torch.func.jacrev(lambda a: op(a, *tensors[1:], power=3)[1])(tensors[0])
    assert torch.equal(found, torch.func.jacrev(lambda a: forward(a, *tensors[1:], power=3)[1])(tensors[0]))

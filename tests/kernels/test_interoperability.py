"""The losses inside other people's code: tensor subclasses, function transforms, export, checkpoints, processes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from kernels.cases import FUNCTIONS, ONE_CASE_PER_OP, Case, widest, with_backends
from kernels.compare import assert_close
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import usreg_kernels as uk

EVERY_OP = pytest.mark.parametrize(("case", "backend"), with_backends(ONE_CASE_PER_OP), ids=str)
MASKED = Case("lncc", 3, {}, mask_channels=1)
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
OPS = pytest.mark.parametrize("case", [*ONE_CASE_PER_OP, MASKED], ids=str)


def _gradient(case: Case, tensors: list[torch.Tensor]) -> torch.Tensor:
    """The gradient to the first tensor, by the reference."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    with uk.use_backend("reference"):
        return torch.autograd.grad(case.scalar(*leaves), leaves[0])[0]


# ---- tensor subclasses -----------------------------------------------------------------------------------------------


class Labelled(torch.Tensor):
    """A subclass as people write them: Python around a tensor."""


def _as_labelled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(Labelled)


def _as_meta_tensor(tensor: torch.Tensor) -> torch.Tensor:
    return pytest.importorskip("monai.data").MetaTensor(tensor)


@pytest.mark.parametrize("wrap", [_as_labelled, _as_meta_tensor])
@pytest.mark.parametrize("which", ["all", "first", "last"])
@EVERY_OP
def test_subclasses_train(case: Case, backend: str, which: str, wrap) -> None:
    dtype = widest(backend)
    leaves = case.tensors(dtype)
    expected_leaves = case.tensors(dtype)
    wrapped = [wrap(leaf) if which == "all" or leaf is leaves[-(which == "last")] else leaf for leaf in leaves]
    with uk.use_backend(backend):
        output = case.run(*wrapped)
        loss = case.scalar(*wrapped)
        expected = case.scalar(*expected_leaves)
    assert type(output) is torch.Tensor
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for leaf, wanted in zip(leaves, expected_leaves, strict=True):
        assert torch.equal(torch.Tensor(leaf.grad), wanted.grad)


def test_a_mask_may_be_a_subclass() -> None:
    pred, target = MASKED.tensors(torch.float32)
    mask = MASKED.mask()
    loss = uk.lncc_loss(pred, target, mask=_as_labelled(mask))
    assert torch.equal(loss, uk.lncc_loss(pred, target, mask=mask))
    loss.backward()


def test_a_parameter_trains() -> None:
    field = torch.nn.Parameter(torch.rand(1, 3, 4, 5, 6))
    uk.gradient_smoothness_loss(field).backward()
    assert field.grad is not None


# ---- function transforms ---------------------------------------------------------------------------------------------


@FORWARD_MODE
@OPS
def test_forward_mode(case: Case) -> None:
    tensors = [tensor.detach() for tensor in case.tensors()]
    tangent = torch.rand(tensors[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = (_gradient(case, tensors) * tangent).sum()
    found = torch.func.jvp(lambda first: case.scalar(first, *tensors[1:]), (tensors[0],), (tangent,))[1]
    assert_close(found, expected, 1e-10)
    with forward_ad.dual_level():
        dual = case.scalar(forward_ad.make_dual(tensors[0], tangent), *tensors[1:])
        assert_close(forward_ad.unpack_dual(dual).tangent, expected, 1e-10)


@OPS
def test_grad_vjp_and_jacrev(case: Case) -> None:
    tensors = [tensor.detach() for tensor in case.tensors()]
    expected = _gradient(case, tensors)
    assert_close(torch.func.grad(case.scalar)(*tensors), expected, 1e-10)
    loss, pull_back = torch.func.vjp(case.scalar, *tensors)
    assert_close(pull_back(torch.ones_like(loss))[0], expected, 1e-10)
    assert_close(torch.func.jacrev(case.scalar)(*tensors), expected, 1e-10)


@pytest.mark.parametrize("case", ONE_CASE_PER_OP, ids=str)
def test_vmap(case: Case) -> None:
    tensors = [tensor.detach() for tensor in case.tensors()]
    per_sample = torch.func.vmap(lambda *sample: case.scalar(*(tensor[None] for tensor in sample)))(*tensors)
    expected = torch.stack([case.scalar(*(tensor[i : i + 1] for tensor in tensors)) for i in range(case.batch)])
    assert_close(per_sample, expected, 1e-12)


@OPS
def test_many_gradients_at_once(case: Case) -> None:
    tensors = case.tensors()
    incoming = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = _gradient(case, tensors)
    (found,) = torch.autograd.grad(case.scalar(*tensors), tensors[:1], incoming, is_grads_batched=True)
    assert_close(found, incoming.view(-1, *[1] * expected.ndim) * expected, 1e-10)


@FORWARD_MODE
def test_hessian() -> None:
    case = Case("lncc", 1, {"smooth_dr": 1e-2}, batch=1)
    pred, target = (tensor.detach() for tensor in case.tensors())
    found = torch.func.hessian(case.scalar)(pred, target)
    with uk.use_backend("reference"):
        expected = torch.autograd.functional.hessian(lambda first: case.scalar(first, target), pred)
    assert_close(found, expected, 1e-9)


# ---- the rest of torch -----------------------------------------------------------------------------------------------


class Registration(torch.nn.Module):
    """A model with a loss inside, as people export and wrap them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 1, 3, padding=1)
        self.loss = uk.LNCCLoss(kernel_size=3)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return self.loss(self.layer(moving), fixed)


@pytest.fixture
def model() -> Registration:
    torch.manual_seed(0)
    return Registration()


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    moving, fixed = torch.rand(2, 1, 1, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    return moving, fixed


def test_export(model: Registration, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    exported = torch.export.export(model, pair)
    assert "usreg.lncc.default" in str(exported.graph)
    assert torch.equal(exported.module()(*pair), model(*pair))


@pytest.mark.parametrize("use_reentrant", [False, True])
@OPS
def test_activation_checkpointing(case: Case, use_reentrant: bool) -> None:
    tensors = case.tensors()
    loss = checkpoint(case.scalar, *tensors, use_reentrant=use_reentrant)
    expected = torch.autograd.grad(case.scalar(*tensors), tensors)
    loss.backward()
    for tensor, wanted in zip(tensors, expected, strict=True):
        assert torch.equal(tensor.grad, wanted)


def test_copies_and_pickles_compute_the_same(model: Registration, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    losses = [
        uk.LNCCLoss(kernel_size=(3, 5, 3)),
        uk.GradientSmoothnessLoss(spacing=(1.0, 2.0, 3.0)),
        uk.BendingEnergyLoss(),
        uk.DVFMSELoss(),
    ]
    for loss in losses:
        for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert repr(other) == repr(loss)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*pair), model(*pair))
    assert pickle.loads(pickle.dumps(uk.lncc_loss)) is uk.lncc_loss


@pytest.mark.filterwarnings("ignore:.*(gloo|Gloo|process group).*:UserWarning")
def test_distributed_data_parallel(
    model: Registration, pair: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    expected = torch.autograd.grad(model(*pair), model.layer.weight)[0]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.nn.parallel.DistributedDataParallel(model)(*pair).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_close(model.layer.weight.grad, expected, 1e-6)


@EVERY_OP
def test_inference_mode(case: Case, backend: str) -> None:
    tensors = case.tensors(widest(backend))
    with uk.use_backend(backend):
        expected = case.scalar(*tensors)
        with torch.inference_mode():
            assert torch.equal(case.scalar(*tensors), expected)
            inner = [tensor.clone() for tensor in tensors]
            assert torch.equal(case.scalar(*inner), expected)
        assert torch.equal(case.scalar(*inner), expected)


@EVERY_OP
def test_deterministic_algorithms(case: Case, backend: str) -> None:
    tensors = case.tensors(widest(backend))
    with uk.use_backend(backend):
        expected = case.scalar(*tensors)
        torch.use_deterministic_algorithms(True)
        try:
            loss = case.scalar(*tensors)
            gradients = torch.autograd.grad(loss, tensors)
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(loss, expected)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_saved_tensors_can_be_moved_away(op: str) -> None:
    """``save_on_cpu`` and its like see what is saved, and backward takes what they give back."""
    tensors = Case(op).tensors(torch.float32)
    expected = torch.autograd.grad(Case(op).scalar(*tensors), tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor.clone()):
        loss = Case(op).scalar(*tensors)
    for gradient, wanted in zip(torch.autograd.grad(loss, tensors), expected, strict=True):
        assert torch.equal(gradient, wanted)


def test_numbers_may_be_symbols_of_a_compiler() -> None:
    """With ``dynamic=True`` the numbers that a module holds are symbols, which can only be compared."""
    image, dvf = torch.rand(1, 1, 6, 7, 8), torch.rand(1, 3, 6, 7, 8)
    losses = {
        uk.LNCCLoss(kernel_size=5, smooth_nr=1e-6): (image, image.flip(2)),
        uk.GradientSmoothnessLoss(spacing=(1.0, 2.0, 1.5)): (dvf,),
        uk.FoldingLoss(margin=0.5): (dvf,),
    }
    for loss, tensors in losses.items():
        compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=True)
        assert torch.equal(compiled(*tensors), loss(*tensors))
    smooth = torch.compile(uk.gaussian_smooth, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(smooth(image, sigma=1.5), uk.gaussian_smooth(image, sigma=1.5))

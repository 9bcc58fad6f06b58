"""FieldAdam as an optimizer of torch: groups, saved states, schedulers, closures; and what is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.cases import DTYPES, widest
from kernels.compare import assert_close
from kernels.field_steps import (
    BACKENDS,
    NAMES,
    TOLERANCE,
    longest_vectors,
    make_field,
    make_gradient,
    new_state,
    take_steps,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import usreg_kernels as uk
from usreg_kernels.optim import FieldAdam, adam_step

# ---- what torch expects of an optimizer ------------------------------------------------------------------------------


@BACKENDS
def test_groups_and_fields_without_a_gradient(backend: str) -> None:
    shapes = ((1, 3, 4, 5, 6), (2, 2, 7, 8), (1, 1, 9))
    fields = [make_field(shape, widest(backend), seed=i) for i, shape in enumerate(shapes)]
    before = [field.detach().clone() for field in fields]
    optimizer = FieldAdam(
        [{"params": fields[:1], "lr": 0.5, "scale": "longest"}, {"params": fields[1:], "betas": (0.5, 0.5)}], lr=0.1
    )
    for field in fields[:2]:
        field.grad = make_gradient(field, 0)
    with uk.use_backend(backend):
        optimizer.step()
    assert_close(longest_vectors(fields[0].detach() - before[0]), torch.tensor([0.5]), 1e-6)
    theirs = before[1].clone().requires_grad_()
    theirs.grad = fields[1].grad
    torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.5)).step()
    assert_close(fields[1].detach(), theirs.detach(), TOLERANCE[widest(backend)])
    assert torch.equal(fields[2], before[2])
    assert fields[2] not in optimizer.state


@BACKENDS
def test_state_survives_a_file(backend: str) -> None:
    """The run that goes on from it has the bits of the one that was not interrupted."""
    field = make_field(dtype=widest(backend))
    optimizer = FieldAdam([field], lr=0.1, scale="longest")
    with uk.use_backend(backend):
        take_steps(optimizer, 3)
        file = io.BytesIO()
        torch.save({"field": field, "optimizer": optimizer.state_dict()}, file)
        take_steps(optimizer, 3, first=3)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        restored = saved["field"].detach().requires_grad_()
        another = FieldAdam([restored], lr=7.0)
        another.load_state_dict(saved["optimizer"])
        assert another.param_groups[0]["scale"] == "longest"
        take_steps(another, 3, first=3)
        assert copy.deepcopy(another).state_dict().keys() == optimizer.state_dict().keys()
    assert torch.equal(restored, field)


@BACKENDS
def test_goes_on_from_a_state_of_torch(backend: str) -> None:
    ours = make_field(dtype=widest(backend))
    theirs = ours.detach().clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.99))
    take_steps(adam, 3)
    with torch.no_grad():
        ours.copy_(theirs)
    optimizer = FieldAdam([ours], lr=0.3)
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert set(optimizer.state[ours]) == set(adam.state[theirs]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.param_groups[0]["scale"] == "none"
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    with uk.use_backend(backend):
        take_steps(optimizer, 3, first=3)
    take_steps(adam, 3, first=3)
    assert_close(ours.detach(), theirs.detach(), TOLERANCE[widest(backend)])


def test_a_loaded_state_keeps_the_scale_of_each_group() -> None:
    fields = [make_field((1, 1, 4), seed=i) for i in range(2)]
    optimizer = FieldAdam([{"params": fields[0], "scale": "longest"}, {"params": fields[1]}], lr=0.1)
    adam = torch.optim.Adam([{"params": fields[0], "lr": 0.2}, {"params": fields[1]}], lr=0.1)
    take_steps(adam, 1)
    optimizer.load_state_dict(adam.state_dict())
    assert [(group["scale"], group["lr"]) for group in optimizer.param_groups] == [("longest", 0.2), ("none", 0.1)]


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}], ids=str)
def test_a_state_of_another_step_is_refused(options: dict[str, Any]) -> None:
    field = make_field()
    adam = torch.optim.Adam([field], lr=0.1, **options)
    (name,) = options
    with pytest.raises(ValueError, match=f"the state to load has {name}=.*use torch.optim.Adam"):
        FieldAdam([field], lr=0.1).load_state_dict(adam.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10),
    ],
    ids=["step", "cosine", "one cycle, which changes betas"],
)
def test_schedulers(make: Callable[[torch.optim.Optimizer], Any]) -> None:
    ours, theirs = (make_field() for _ in range(2))
    pair = (FieldAdam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1))
    schedulers = [make(optimizer) for optimizer in pair]
    for number in range(6):
        for optimizer, scheduler in zip(pair, schedulers, strict=True):
            take_steps(optimizer, 1, first=number)
            scheduler.step()
    assert_close(ours.detach(), theirs.detach(), 1e-12)


def test_a_closure_computes_the_loss() -> None:
    field = make_field()
    optimizer = FieldAdam([field], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = field.square().mean()
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(50)]  # type: ignore[arg-type]
    assert losses[0] == float(make_field().detach().square().mean())
    assert losses[-1] < 1e-2 * losses[0]


def test_a_grad_scaler_skips_the_step_of_a_gradient_that_overflowed() -> None:
    ours, theirs = (make_field(dtype=torch.float32) for _ in range(2))
    for field, make in ((ours, FieldAdam), (theirs, torch.optim.Adam)):
        optimizer = make([field], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale((field.square() * factor).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert ours.isfinite().all()
    assert_close(ours.detach(), theirs.detach(), 1e-6)


def test_autograd_sees_that_the_field_has_changed() -> None:
    for backend in NAMES:
        field = make_field(dtype=torch.float32)
        loss = field.square().sum()
        field.grad = torch.ones_like(field)
        with uk.use_backend(backend):
            FieldAdam([field], lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr must be a finite number of at least 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be a finite number"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"lr": torch.tensor(0.1)}, TypeError, "lr must be a number, not a tensor: a step would wait"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, ValueError, "each of betas must be a finite number of at least 0"),
        ({"betas": 0.9}, TypeError, "betas must be two numbers, got 0.9"),
        ({"betas": (0.9,)}, TypeError, "betas must be two numbers"),
        ({"eps": 0.0}, ValueError, "eps must be a finite number of at least 1.17549e-38"),
        ({"scale": "max"}, ValueError, "scale must be one of 'none', 'longest', got 'max'"),
    ],
    ids=str,
)
def test_numbers_out_of_their_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    field = make_field()
    with pytest.raises(error, match=message):
        FieldAdam([field], **{"lr": 0.1, **options})
    with pytest.raises(error, match=message):
        FieldAdam([{"params": field, **options}], lr=0.1)
    with pytest.raises(error, match=message):
        adam_step(field, **new_state(tuple(field.shape), field.dtype), **{"lr": 0.1, **options})
    optimizer = FieldAdam([field], lr=0.1)
    optimizer.param_groups[0].update(options)
    with pytest.raises(error, match=message):
        optimizer.step()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        *((name, f"no option {name}: there is one way to step") for name in ("foreach", "fused", "capturable")),
        *((name, f"no option {name}: use torch.optim.Adam") for name in ("weight_decay", "amsgrad", "maximize")),
        ("learning_rate", "no option 'learning_rate'; valid: lr, betas, eps, scale"),
    ],
)
def test_options_that_there_are_not(option: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        FieldAdam([make_field()], lr=0.1, **{option: True})
    if option != "learning_rate":
        with pytest.raises(TypeError, match=message):
            FieldAdam([{"params": [make_field()], option: True}], lr=0.1)
        FieldAdam([{"params": [make_field()], option: None}], lr=0.1)


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        (torch.zeros(3, 4), ValueError, r"must have shape \(B, C, spatial...\)"),
        (torch.zeros(1, 2, 4, 5, 6), ValueError, r"one component per spatial axis: shape \(B, 3"),
        *((torch.zeros(1, 1, 4, dtype=dtype), TypeError, "must be float32 or float64, got torch.*convert it")
          for dtype in DTYPES[2:]),
        (torch.zeros(1, 1, 4, dtype=torch.complex64), TypeError, "must be float64, float32"),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else None,
)  # fmt: skip
def test_parameters_that_are_no_fields(field: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FieldAdam([field], lr=0.1)
    optimizer = FieldAdam([make_field()], lr=0.1)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": field})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(error, match=message):
        adam_step(field, field, field, torch.zeros(()), lr=0.1)


def test_tensors_that_do_not_fit() -> None:
    gradient = torch.zeros(2, 1, 4)
    state = new_state((2, 1, 4), torch.float32)
    with pytest.raises(ValueError, match="grad and exp_avg_sq must have one shape, dtype and device"):
        adam_step(gradient, **{**state, "exp_avg_sq": torch.zeros(1, 1, 4)}, lr=0.1)
    with pytest.raises(ValueError, match="grad and exp_avg must have one shape, dtype and device"):
        adam_step(gradient, **{**state, "exp_avg": torch.zeros(2, 1, 4).double()}, lr=0.1)
    for step in (1, torch.zeros(1), torch.zeros((), dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"step must be a float32 scalar tensor on cpu, at first torch.zeros"):
            adam_step(gradient, **{**state, "step": step}, lr=0.1)  # type: ignore[dict-item]
    field = make_field((1, 1, 4))
    field.grad = torch.zeros(1, 1, 4).double().to_sparse()
    with pytest.raises(TypeError, match=r"a gradient must be dense.*to_dense"):
        FieldAdam([field], lr=0.1).step()


def test_the_first_step_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode():
        field = torch.zeros(1, 1, 4, device="cuda", requires_grad=True)
        field.grad = torch.zeros(1, 1, 4, device="cuda")
        with pytest.raises(RuntimeError, match="take a step before you capture one"):
            FieldAdam([field], lr=0.1).step()

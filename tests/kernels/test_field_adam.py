"""The step of a displacement field: equal to torch's Adam, scaled to its longest vector, saved, restored, refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.cases import DTYPES, SPATIAL, takes, widest
from kernels.compare import assert_close, relative_error

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE
from usreg_kernels import dispatch
from usreg_kernels.ops.field_adam import OP
from usreg_kernels.ops.triton_backend import INTERPRETED
from usreg_kernels.optim import SCALES, FieldAdam, Scale, adam_step

ON_CPU = ("reference", "cpu", "triton") if INTERPRETED else ("reference", "cpu")
NAMES = [name for name in uk.available_backends("field_adam") if name in ON_CPU]
BACKENDS = pytest.mark.parametrize("backend", NAMES)
FLOATS = (torch.float64, torch.float32)
WITH_DTYPES = pytest.mark.parametrize(
    ("backend", "dtype"), [(name, dtype) for name in NAMES for dtype in FLOATS if takes(name, dtype)], ids=str
)
TOLERANCE = {torch.float64: 1e-12, torch.float32: GRADIENT_TOLERANCE[torch.float32]}


def _long(backend: str) -> tuple[int, ...]:
    """A shape that takes several blocks of each of its kernels, with an end of a block and of a vector."""
    return (2, 2, 37, 1013 if backend in ("cpu", "reference") else 61)


def _field(shape: tuple[int, ...] = (2, 3, 5, 6, 7), dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def _gradient(field: torch.Tensor, number: int) -> torch.Tensor:
    """Of several sizes in one field, and half of it 0."""
    generator = torch.Generator().manual_seed(1000 + number)
    values = torch.randn(field.shape, generator=generator, dtype=torch.float64)
    sizes = 10 ** torch.randint(-6, 3, field.shape, generator=torch.Generator().manual_seed(7)).double()
    return (values * sizes * (sizes != 1)).to(field.dtype)


def _run(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        for group in optimizer.param_groups:
            for field in group["params"]:
                field.grad = _gradient(field, number)
        optimizer.step()


def _lengths(update: torch.Tensor) -> torch.Tensor:
    """The longest vector of each sample."""
    return update.double().square().sum(1).sqrt().flatten(1).amax(1)


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    moments = {name: torch.zeros(shape, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}
    return {**moments, "step": torch.zeros(())}


# ---- the plain step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0)}], ids=str)
@WITH_DTYPES
def test_twenty_plain_steps_are_those_of_torch(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    ours = _field(dtype=dtype)
    theirs = ours.detach().double().requires_grad_()
    expected = torch.optim.Adam([theirs], lr=0.1, **options)
    found = FieldAdam([ours], lr=0.1, **options)
    with uk.use_backend(backend):
        for number in range(20):
            ours.grad = _gradient(ours, number)
            theirs.grad = ours.grad.double()
            found.step()
            expected.step()
    assert_close(ours - _field(dtype=dtype), theirs - _field(dtype=dtype).double(), TOLERANCE[dtype])
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(found.state[ours][name], expected.state[theirs][name], TOLERANCE[dtype])
    assert found.state[ours]["step"] == 20


@BACKENDS
def test_float32_is_no_less_exact_than_torch(backend: str) -> None:
    """Against float64, after steps from the same gradients."""
    errors = []
    exact = _field(dtype=torch.float32).detach().double().requires_grad_()
    _run_on_float32(torch.optim.Adam([exact], lr=0.1), exact)
    for make in (FieldAdam, torch.optim.Adam):
        field = _field(dtype=torch.float32)
        with uk.use_backend(backend):
            _run(make([field], lr=0.1), 20)
        errors.append(relative_error(field.detach(), exact.detach()))
    assert errors[0] <= 1.5 * errors[1]


def _run_on_float32(optimizer: torch.optim.Optimizer, field: torch.Tensor) -> None:
    for number in range(20):
        field.grad = _gradient(_field(dtype=torch.float32), number).double()
        optimizer.step()


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_the_function_returns_the_update_that_the_optimizer_adds(
    backend: str, dtype: torch.dtype, scale: Scale
) -> None:
    field = _field(_long(backend), dtype)
    before, state = field.detach().clone(), _new(_long(backend), dtype)
    optimizer = FieldAdam([field], lr=0.25, scale=scale)
    with uk.use_backend(backend):
        for number in range(3):
            field.grad = _gradient(field, number)
            update = adam_step(field.grad, **state, lr=0.25, scale=scale)
            optimizer.step()
            assert not update.requires_grad
            assert_close(field.detach() - before, update, 1e-6 if dtype == torch.float32 else 1e-14)
            before = field.detach().clone()
    for name, tensor in state.items():
        assert torch.equal(optimizer.state[field][name], tensor)


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_every_backend_agrees_with_the_float64_reference(backend: str, dtype: torch.dtype, scale: Scale) -> None:
    for shape in (*((2, dims, *SPATIAL[dims]) for dims in (1, 2, 3)), _long(backend), (1, 1, 1)):
        state, oracle = _new(shape, dtype), _new(shape, torch.float64)
        for number in range(3):
            gradient = _gradient(torch.empty(shape, dtype=dtype), number)
            with uk.use_backend(backend):
                update = adam_step(gradient, **state, lr=0.5, scale=scale)
            with uk.use_backend("reference"):
                expected = adam_step(gradient.double(), **oracle, lr=0.5, scale=scale)
            assert_close(update, expected, TOLERANCE[dtype])


# ---- the scaled step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
@WITH_DTYPES
def test_the_longest_vector_of_each_sample_is_lr(backend: str, dtype: torch.dtype, factor: float) -> None:
    for shape in (*((2, dims, *SPATIAL[dims]) for dims in (1, 2, 3)), _long(backend)):
        state = _new(shape, dtype)
        with uk.use_backend(backend):
            for number in range(3):
                gradient = factor * _gradient(torch.empty(shape, dtype=dtype), number)
                gradient[1] *= 100
                update = adam_step(gradient, **state, lr=0.75, scale="longest")
                assert_close(_lengths(update), torch.full((2,), 0.75), 1e-6 if dtype == torch.float32 else 1e-12)


@BACKENDS
def test_the_scaled_step_has_the_direction_of_the_plain_one(backend: str) -> None:
    dtype = widest(backend)
    shape = _long(backend)
    plain_state, scaled_state = _new(shape, dtype), _new(shape, dtype)
    with uk.use_backend(backend):
        for number in range(4):
            gradient = _gradient(torch.empty(shape, dtype=dtype), number)
            plain = adam_step(gradient, **plain_state, lr=0.1)
            scaled = adam_step(gradient, **scaled_state, lr=0.1, scale="longest")
            lengths = _lengths(plain).to(dtype).view(-1, 1, 1, 1)
            assert_close(scaled, plain * (0.1 / lengths), TOLERANCE[dtype])
    assert torch.equal(plain_state["exp_avg"], scaled_state["exp_avg"])


def test_the_update_goes_downhill() -> None:
    gradient = torch.tensor([2.0, -3.0]).reshape(1, 1, 2)
    for scale in SCALES:
        update = adam_step(gradient, **_new((1, 1, 2), torch.float32), lr=0.1, scale=scale)
        assert_close(update.flatten(), torch.tensor([-0.1, 0.1]), 1e-6)


def test_more_maxima_than_a_triton_program_takes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in NAMES:
        pytest.skip("no interpreter")
    from usreg_kernels.ops.field_adam import triton as kernels

    monkeypatch.setattr(kernels, "BLOCK", 64)
    monkeypatch.setattr(kernels, "CHUNK", 4)
    gradient = torch.rand(2, 2, 20, 30)
    gradient[0, :, -1, -1] = 10
    with uk.use_backend("triton"):
        update = adam_step(gradient, **_new((2, 2, 20, 30), torch.float32), lr=0.5, eps=1.0, scale="longest")
    assert_close(_lengths(update), torch.full((2,), 0.5), 1e-6)


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_a_gradient_of_zero_moves_nothing(backend: str, dtype: torch.dtype, scale: Scale) -> None:
    """Of a sample; the others move."""
    field = _field((2, 3, 5, 6, 7), dtype)
    before = field.detach().clone()
    with uk.use_backend(backend):
        field.grad = torch.zeros_like(field)
        optimizer = FieldAdam([field], lr=0.1, scale=scale)
        optimizer.step()
        assert torch.equal(field, before)
        field.grad[1] = 1e-3
        optimizer.step()
    assert torch.equal(field[0], before[0])
    assert (field[1] != before[1]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_what_is_not_finite_stays_visible(backend: str, dtype: torch.dtype, scale: Scale, bad: float) -> None:
    """Plain, in its component, as in torch; scaled, in all of its sample. Also at the next step, and last in memory."""
    gradient = _gradient(torch.empty(_long(backend), dtype=dtype), 0)
    for place in ((0, 0, 3, 5), (0, 1, -1, -1)):
        state = _new(_long(backend), dtype)
        with uk.use_backend(backend):
            broken = gradient.clone()
            broken[place] = bad
            updates = [adam_step(values, **state, lr=0.1, scale=scale) for values in (broken, gradient)]
        for update in updates:
            assert update[1].isfinite().all()
            if scale == "longest":
                assert update[0].isnan().all()
            else:
                assert update[place].isnan()
                assert update.isnan().sum() == 1


@BACKENDS
def test_a_square_that_overflows_is_not_silent_where_the_scale_depends_on_it(backend: str) -> None:
    """Its own direction is 0, in torch too."""
    gradient = torch.ones(2, 2, 3, 100)
    gradient[0, 1, 1, 7] = 1e30
    with uk.use_backend(backend):
        update = adam_step(gradient, **_new((2, 2, 3, 100), torch.float32), lr=0.1, scale="longest")
    assert update[0].isnan().all()
    assert update[1].isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 3, 4, 0, 6)], ids=str)
@BACKENDS
def test_a_field_without_voxels(backend: str, shape: tuple[int, ...], scale: Scale) -> None:
    state = _new(shape, widest(backend))
    with uk.use_backend(backend):
        update = adam_step(torch.zeros(shape, dtype=widest(backend)), **state, lr=0.1, scale=scale)
    assert update.shape == shape
    assert state["step"] == 1


@pytest.mark.parametrize("scale", SCALES)
@BACKENDS
def test_any_strides(backend: str, scale: Scale) -> None:
    """Of field, gradient and loaded moments: the same bits as of contiguous ones."""
    plain = _field((2, 3, 5, 6, 7), widest(backend))
    strided = plain.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    assert not strided.is_contiguous()
    optimizers = [FieldAdam([field], lr=0.1, scale=scale) for field in (plain, strided)]
    with uk.use_backend(backend):
        for number in range(3):
            plain.grad = _gradient(plain, number)
            strided.grad = plain.grad.movedim(1, -1).contiguous().movedim(-1, 1)
            for optimizer in optimizers:
                optimizer.step()
    assert torch.equal(strided, plain)
    state = _new((2, 3, 5, 6, 7), widest(backend))
    apart = {name: torch.empty(*tensor.shape, 2, dtype=tensor.dtype)[..., 0].zero_() for name, tensor in state.items()}
    with uk.use_backend(backend):
        for tensors in (state, apart):
            adam_step(plain.grad, **tensors, lr=0.1, scale=scale)
    for name, tensor in state.items():
        assert torch.equal(tensor, apart[name])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_for_any_number_of_cpu_threads(dtype: torch.dtype, scale: Scale) -> None:
    if "cpu" not in NAMES:
        pytest.skip("no CPU library")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            field = _field((2, 3, 30, 40, 51), dtype)
            with uk.use_backend("cpu"):
                _run(FieldAdam([field], lr=0.1, scale=scale), 2)
            results.append(field.detach())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


# ---- what torch expects of an optimizer ------------------------------------------------------------------------------


@BACKENDS
def test_groups_and_fields_without_a_gradient(backend: str) -> None:
    shapes = ((1, 3, 4, 5, 6), (2, 2, 7, 8), (1, 1, 9))
    fields = [_field(shape, widest(backend), seed=i) for i, shape in enumerate(shapes)]
    before = [field.detach().clone() for field in fields]
    optimizer = FieldAdam(
        [{"params": fields[:1], "lr": 0.5, "scale": "longest"}, {"params": fields[1:], "betas": (0.5, 0.5)}], lr=0.1
    )
    for field in fields[:2]:
        field.grad = _gradient(field, 0)
    with uk.use_backend(backend):
        optimizer.step()
    assert_close(_lengths(fields[0].detach() - before[0]), torch.tensor([0.5]), 1e-6)
    theirs = before[1].clone().requires_grad_()
    theirs.grad = fields[1].grad
    torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.5)).step()
    assert_close(fields[1].detach(), theirs.detach(), TOLERANCE[widest(backend)])
    assert torch.equal(fields[2], before[2])
    assert fields[2] not in optimizer.state


@BACKENDS
def test_state_survives_a_file(backend: str) -> None:
    """The run that goes on from it has the bits of the one that was not interrupted."""
    field = _field(dtype=widest(backend))
    optimizer = FieldAdam([field], lr=0.1, scale="longest")
    with uk.use_backend(backend):
        _run(optimizer, 3)
        file = io.BytesIO()
        torch.save({"field": field, "optimizer": optimizer.state_dict()}, file)
        _run(optimizer, 3, first=3)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        restored = saved["field"].detach().requires_grad_()
        another = FieldAdam([restored], lr=7.0)
        another.load_state_dict(saved["optimizer"])
        assert another.param_groups[0]["scale"] == "longest"
        _run(another, 3, first=3)
        assert copy.deepcopy(another).state_dict().keys() == optimizer.state_dict().keys()
    assert torch.equal(restored, field)


@BACKENDS
def test_goes_on_from_a_state_of_torch(backend: str) -> None:
    ours = _field(dtype=widest(backend))
    theirs = ours.detach().clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.99))
    _run(adam, 3)
    with torch.no_grad():
        ours.copy_(theirs)
    optimizer = FieldAdam([ours], lr=0.3)
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    assert set(optimizer.state[ours]) == set(adam.state[theirs]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.param_groups[0]["scale"] == "none"
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    with uk.use_backend(backend):
        _run(optimizer, 3, first=3)
    _run(adam, 3, first=3)
    assert_close(ours.detach(), theirs.detach(), TOLERANCE[widest(backend)])


def test_a_loaded_state_keeps_the_scale_of_each_group() -> None:
    fields = [_field((1, 1, 4), seed=i) for i in range(2)]
    optimizer = FieldAdam([{"params": fields[0], "scale": "longest"}, {"params": fields[1]}], lr=0.1)
    adam = torch.optim.Adam([{"params": fields[0], "lr": 0.2}, {"params": fields[1]}], lr=0.1)
    _run(adam, 1)
    optimizer.load_state_dict(adam.state_dict())
    assert [(group["scale"], group["lr"]) for group in optimizer.param_groups] == [("longest", 0.2), ("none", 0.1)]


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}], ids=str)
def test_a_state_of_another_step_is_refused(options: dict[str, Any]) -> None:
    field = _field()
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
    ours, theirs = (_field() for _ in range(2))
    pair = (FieldAdam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1))
    schedulers = [make(optimizer) for optimizer in pair]
    for number in range(6):
        for optimizer, scheduler in zip(pair, schedulers, strict=True):
            _run(optimizer, 1, first=number)
            scheduler.step()
    assert_close(ours.detach(), theirs.detach(), 1e-12)


def test_a_closure_computes_the_loss() -> None:
    field = _field()
    optimizer = FieldAdam([field], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = field.square().mean()
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(50)]  # type: ignore[arg-type]
    assert losses[0] == float(_field().detach().square().mean())
    assert losses[-1] < 1e-2 * losses[0]


def test_a_grad_scaler_skips_the_step_of_a_gradient_that_overflowed() -> None:
    ours, theirs = (_field(dtype=torch.float32) for _ in range(2))
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
        field = _field(dtype=torch.float32)
        loss = field.square().sum()
        field.grad = torch.ones_like(field)
        with uk.use_backend(backend):
            FieldAdam([field], lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# ---- the operator ----------------------------------------------------------------------------------------------------


def _call(backend: str, scale: Scale, replace: bool) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    shape, dtype = (2, 3, 4, 5, 6), torch.float32
    state = _new(shape, dtype)
    field = _field(shape, dtype).detach()
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    tensors = (_gradient(field, 0), state["exp_avg"], state["exp_avg_sq"], state["step"], field)
    return tensors, {**numbers, "longest": scale == "longest", "replace": replace, "backend": backend}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@BACKENDS
def test_opcheck(backend: str, scale: Scale, replace: bool) -> None:
    tensors, keywords = _call(backend, scale, replace)
    assert set(torch.library.opcheck(OP.operator, tensors, keywords).values()) == {"SUCCESS"}


@pytest.mark.parametrize("scale", SCALES)
@BACKENDS
def test_compiled(backend: str, scale: Scale) -> None:
    """Fullgraph, the update used after it, and the moments in place."""
    shape = (1, 2, 5, 6)
    states = [_new(shape, torch.float32) for _ in range(2)]

    def step(field: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return field + 2 * adam_step(gradient, **state, lr=0.1, scale=scale) + state["exp_avg"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    field = _field(shape, torch.float32).detach()
    with uk.use_backend(backend):
        for number in range(2):
            gradient = _gradient(field, number)
            found = compiled(field, gradient, states[0])
            assert torch.equal(found, step(field, gradient, states[1]))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


def test_explain_and_explicit_choices() -> None:
    gradient = _field().detach()
    state = _new(tuple(gradient.shape), torch.float64)
    explanation = uk.explain("field_adam", gradient, **state, lr=0.1)
    assert explanation.chosen == ("cpu" if "cpu" in NAMES else "reference")
    assert str(explanation) == str(uk.explain(adam_step, gradient, **state, lr=0.1))
    assert state["step"] == 0
    with uk.use_backend("cuda"), pytest.raises(uk.BackendError, match="'cuda' was asked for"):
        adam_step(gradient, **state, lr=0.1)
    assert dispatch.is_worthwhile("field_adam", "cpu") is ("cpu" in NAMES)


def test_a_subclass_counts_as_the_tensor_that_it_holds() -> None:
    class Annotated(torch.Tensor):
        pass

    plain = _field(dtype=torch.float32)
    annotated = plain.detach().clone().as_subclass(Annotated).requires_grad_()
    for field in (plain, annotated):
        field.grad = _gradient(plain, 0)
        FieldAdam([field], lr=0.1, scale="longest").step()
    assert torch.equal(annotated.as_subclass(torch.Tensor), plain)


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
    field = _field()
    with pytest.raises(error, match=message):
        FieldAdam([field], **{"lr": 0.1, **options})
    with pytest.raises(error, match=message):
        FieldAdam([{"params": field, **options}], lr=0.1)
    with pytest.raises(error, match=message):
        adam_step(field, **_new(tuple(field.shape), field.dtype), **{"lr": 0.1, **options})
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
        FieldAdam([_field()], lr=0.1, **{option: True})
    if option != "learning_rate":
        with pytest.raises(TypeError, match=message):
            FieldAdam([{"params": [_field()], option: True}], lr=0.1)
        FieldAdam([{"params": [_field()], option: None}], lr=0.1)


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
    optimizer = FieldAdam([_field()], lr=0.1)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": field})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(error, match=message):
        adam_step(field, field, field, torch.zeros(()), lr=0.1)


def test_tensors_that_do_not_fit() -> None:
    gradient = torch.zeros(2, 1, 4)
    state = _new((2, 1, 4), torch.float32)
    with pytest.raises(ValueError, match="grad and exp_avg_sq must have one shape, dtype and device"):
        adam_step(gradient, **{**state, "exp_avg_sq": torch.zeros(1, 1, 4)}, lr=0.1)
    with pytest.raises(ValueError, match="grad and exp_avg must have one shape, dtype and device"):
        adam_step(gradient, **{**state, "exp_avg": torch.zeros(2, 1, 4).double()}, lr=0.1)
    for step in (1, torch.zeros(1), torch.zeros((), dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"step must be a float32 scalar tensor on cpu, at first torch.zeros"):
            adam_step(gradient, **{**state, "step": step}, lr=0.1)  # type: ignore[dict-item]
    field = _field((1, 1, 4))
    field.grad = torch.zeros(1, 1, 4).double().to_sparse()
    with pytest.raises(TypeError, match=r"a gradient must be dense.*to_dense"):
        FieldAdam([field], lr=0.1).step()


def test_the_compiled_step_checks_by_itself() -> None:
    if "cpu" not in NAMES:
        pytest.skip("no CPU library")
    tensors, keywords = _call("cpu", "none", False)
    numbers = [value for name, value in keywords.items() if name != "backend"]
    native = torch.ops.usreg.field_adam_native_step
    for place, wrong, message in (
        (1, tensors[1].double(), "dtypes differ"),
        (2, tensors[2][:1], "shapes differ"),
        (4, tensors[4].transpose(0, 1).contiguous().transpose(0, 1), "contiguous"),
        (3, torch.zeros(1), "step must be a scalar"),
        (3, torch.zeros((), dtype=torch.float64), "step must be Float"),
    ):
        given = [wrong if i == place else tensor for i, tensor in enumerate(tensors)]
        with pytest.raises(RuntimeError, match=message):
            native(*given, *numbers)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        native(*(tensor.half() if i != 3 else tensor for i, tensor in enumerate(tensors)), *numbers)

"""The step of a displacement field: equal to torch's Adam, or scaled to its longest vector; edges; the operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernels.cases import SPATIAL, widest
from kernels.compare import assert_close, relative_error
from kernels.field_steps import (
    BACKENDS,
    FLOATS,
    NAMES,
    TOLERANCE,
    WITH_DTYPES,
    long_shape,
    longest_vectors,
    make_field,
    make_gradient,
    new_state,
    take_steps,
)

import usreg_kernels as uk
from usreg_kernels import dispatch
from usreg_kernels.ops.field_adam import OP
from usreg_kernels.optim import SCALES, FieldAdam, Scale, adam_step

# ---- the plain step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0)}], ids=str)
@WITH_DTYPES
def test_twenty_plain_steps_are_those_of_torch(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    ours = make_field(dtype=dtype)
    theirs = ours.detach().double().requires_grad_()
    expected = torch.optim.Adam([theirs], lr=0.1, **options)
    found = FieldAdam([ours], lr=0.1, **options)
    with uk.use_backend(backend):
        for number in range(20):
            ours.grad = make_gradient(ours, number)
            theirs.grad = ours.grad.double()
            found.step()
            expected.step()
    assert_close(ours - make_field(dtype=dtype), theirs - make_field(dtype=dtype).double(), TOLERANCE[dtype])
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(found.state[ours][name], expected.state[theirs][name], TOLERANCE[dtype])
    assert found.state[ours]["step"] == 20


@BACKENDS
def test_float32_is_no_less_exact_than_torch(backend: str) -> None:
    """Against float64, after steps from the same gradients."""
    errors = []
    exact = make_field(dtype=torch.float32).detach().double().requires_grad_()
    _run_on_float32(torch.optim.Adam([exact], lr=0.1), exact)
    for make in (FieldAdam, torch.optim.Adam):
        field = make_field(dtype=torch.float32)
        with uk.use_backend(backend):
            take_steps(make([field], lr=0.1), 20)
        errors.append(relative_error(field.detach(), exact.detach()))
    assert errors[0] <= 1.5 * errors[1]


def _run_on_float32(optimizer: torch.optim.Optimizer, field: torch.Tensor) -> None:
    for number in range(20):
        field.grad = make_gradient(make_field(dtype=torch.float32), number).double()
        optimizer.step()


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_the_function_returns_the_update_that_the_optimizer_adds(
    backend: str, dtype: torch.dtype, scale: Scale
) -> None:
    field = make_field(long_shape(backend), dtype)
    before, state = field.detach().clone(), new_state(long_shape(backend), dtype)
    optimizer = FieldAdam([field], lr=0.25, scale=scale)
    with uk.use_backend(backend):
        for number in range(3):
            field.grad = make_gradient(field, number)
            update = adam_step(field.grad, **state, lr=0.25, scale=scale)
            optimizer.step()
            assert not update.requires_grad
            assert_close(field.detach() - before, update, 1e-6 if dtype == torch.float32 else 1e-14)
            before = field.detach().clone()
    for name, tensor in state.items():
        assert torch.equal(optimizer.state[field][name], tensor)


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_the_update_goes_where_it_is_asked_for(backend: str, dtype: torch.dtype, scale: Scale) -> None:
    shape = long_shape(backend)
    gradient, out = make_gradient(make_field(shape, dtype), 0), torch.full(shape, 7.0, dtype=dtype)
    with uk.use_backend(backend):
        expected = adam_step(gradient, **new_state(shape, dtype), lr=0.25, scale=scale)
        found = adam_step(gradient, **new_state(shape, dtype), lr=0.25, scale=scale, out=out)
    assert found is out
    assert torch.equal(out, expected)


def test_an_update_cannot_be_written_over_what_it_is_made_of() -> None:
    shape = (2, 3, 5, 6, 7)
    gradient, state = make_gradient(make_field(shape), 0), new_state(shape, torch.float64)
    for out in (gradient, state["exp_avg"], torch.zeros(2, 3, 5, 7, 6, dtype=torch.float64).transpose(3, 4)):
        with pytest.raises(ValueError, match="out must be contiguous, need no gradient, and lie in other memory"):
            adam_step(gradient, **state, lr=0.25, out=out)
    with pytest.raises(ValueError, match="grad and out"):
        adam_step(gradient, **state, lr=0.25, out=torch.zeros(1, 3, 2, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_every_backend_agrees_with_the_float64_reference(backend: str, dtype: torch.dtype, scale: Scale) -> None:
    for shape in (*((2, dims, *SPATIAL[dims]) for dims in (1, 2, 3)), long_shape(backend), (1, 1, 1)):
        state, oracle = new_state(shape, dtype), new_state(shape, torch.float64)
        for number in range(3):
            gradient = make_gradient(torch.empty(shape, dtype=dtype), number)
            with uk.use_backend(backend):
                update = adam_step(gradient, **state, lr=0.5, scale=scale)
            with uk.use_backend("reference"):
                expected = adam_step(gradient.double(), **oracle, lr=0.5, scale=scale)
            assert_close(update, expected, TOLERANCE[dtype])


# ---- the scaled step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
@WITH_DTYPES
def test_the_longest_vector_of_each_sample_is_lr(backend: str, dtype: torch.dtype, factor: float) -> None:
    for shape in (*((2, dims, *SPATIAL[dims]) for dims in (1, 2, 3)), long_shape(backend)):
        state = new_state(shape, dtype)
        with uk.use_backend(backend):
            for number in range(3):
                gradient = factor * make_gradient(torch.empty(shape, dtype=dtype), number)
                gradient[1] *= 100
                update = adam_step(gradient, **state, lr=0.75, scale="longest")
                assert_close(longest_vectors(update), torch.full((2,), 0.75), 1e-6 if dtype == torch.float32 else 1e-12)


@BACKENDS
def test_the_scaled_step_has_the_direction_of_the_plain_one(backend: str) -> None:
    dtype = widest(backend)
    shape = long_shape(backend)
    plain_state, scaled_state = new_state(shape, dtype), new_state(shape, dtype)
    with uk.use_backend(backend):
        for number in range(4):
            gradient = make_gradient(torch.empty(shape, dtype=dtype), number)
            plain = adam_step(gradient, **plain_state, lr=0.1)
            scaled = adam_step(gradient, **scaled_state, lr=0.1, scale="longest")
            lengths = longest_vectors(plain).to(dtype).view(-1, 1, 1, 1)
            assert_close(scaled, plain * (0.1 / lengths), TOLERANCE[dtype])
    assert torch.equal(plain_state["exp_avg"], scaled_state["exp_avg"])


def test_the_update_goes_downhill() -> None:
    gradient = torch.tensor([2.0, -3.0]).reshape(1, 1, 2)
    for scale in SCALES:
        update = adam_step(gradient, **new_state((1, 1, 2), torch.float32), lr=0.1, scale=scale)
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
        update = adam_step(gradient, **new_state((2, 2, 20, 30), torch.float32), lr=0.5, eps=1.0, scale="longest")
    assert_close(longest_vectors(update), torch.full((2,), 0.5), 1e-6)


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@WITH_DTYPES
def test_a_gradient_of_zero_moves_nothing(backend: str, dtype: torch.dtype, scale: Scale) -> None:
    """Of a sample; the others move."""
    field = make_field((2, 3, 5, 6, 7), dtype)
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
    gradient = make_gradient(torch.empty(long_shape(backend), dtype=dtype), 0)
    for place in ((0, 0, 3, 5), (0, 1, -1, -1)):
        state = new_state(long_shape(backend), dtype)
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
        update = adam_step(gradient, **new_state((2, 2, 3, 100), torch.float32), lr=0.1, scale="longest")
    assert update[0].isnan().all()
    assert update[1].isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 3, 4, 0, 6)], ids=str)
@BACKENDS
def test_a_field_without_voxels(backend: str, shape: tuple[int, ...], scale: Scale) -> None:
    state = new_state(shape, widest(backend))
    with uk.use_backend(backend):
        update = adam_step(torch.zeros(shape, dtype=widest(backend)), **state, lr=0.1, scale=scale)
    assert update.shape == shape
    assert state["step"] == 1


@pytest.mark.parametrize("scale", SCALES)
@BACKENDS
def test_any_strides(backend: str, scale: Scale) -> None:
    """Of field, gradient and loaded moments: the same bits as of contiguous ones."""
    plain = make_field((2, 3, 5, 6, 7), widest(backend))
    strided = plain.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    assert not strided.is_contiguous()
    optimizers = [FieldAdam([field], lr=0.1, scale=scale) for field in (plain, strided)]
    with uk.use_backend(backend):
        for number in range(3):
            plain.grad = make_gradient(plain, number)
            strided.grad = plain.grad.movedim(1, -1).contiguous().movedim(-1, 1)
            for optimizer in optimizers:
                optimizer.step()
    assert torch.equal(strided, plain)
    state = new_state((2, 3, 5, 6, 7), widest(backend))
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
            field = make_field((2, 3, 30, 40, 51), dtype)
            with uk.use_backend("cpu"):
                take_steps(FieldAdam([field], lr=0.1, scale=scale), 2)
            results.append(field.detach())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


# ---- the operator ----------------------------------------------------------------------------------------------------


def _call(backend: str, scale: Scale, replace: bool) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    shape, dtype = (2, 3, 4, 5, 6), torch.float32
    state = new_state(shape, dtype)
    field = make_field(shape, dtype).detach()
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    tensors = (make_gradient(field, 0), state["exp_avg"], state["exp_avg_sq"], state["step"], field)
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
    states = [new_state(shape, torch.float32) for _ in range(2)]

    def step(field: torch.Tensor, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return field + 2 * adam_step(gradient, **state, lr=0.1, scale=scale) + state["exp_avg"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    field = make_field(shape, torch.float32).detach()
    with uk.use_backend(backend):
        for number in range(2):
            gradient = make_gradient(field, number)
            found = compiled(field, gradient, states[0])
            assert torch.equal(found, step(field, gradient, states[1]))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


def test_explain_and_explicit_choices() -> None:
    gradient = make_field().detach()
    state = new_state(tuple(gradient.shape), torch.float64)
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

    plain = make_field(dtype=torch.float32)
    annotated = plain.detach().clone().as_subclass(Annotated).requires_grad_()
    for field in (plain, annotated):
        field.grad = make_gradient(plain, 0)
        FieldAdam([field], lr=0.1, scale="longest").step()
    assert torch.equal(annotated.as_subclass(torch.Tensor), plain)


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

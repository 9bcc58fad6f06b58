"""Integration of velocity fields: against MONAI's block, flows that are known, and the memory it takes."""

from __future__ import annotations

import contextlib
import sys
import warnings
import weakref
from collections.abc import Iterator

import pytest
import torch
from kernels.cases import Case, widest, with_backends
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.dispatch import get_backend
from usreg_kernels.fields import PADDING_MODES
from usreg_kernels.ops.integrate_velocity import OP, squaring

BACKENDS = pytest.mark.parametrize("backend", [b for _, b in with_backends([Case("integrate_velocity")])])
IN_FLOAT64 = pytest.mark.parametrize(
    "backend", [b for _, b in with_backends([Case("integrate_velocity")], torch.float64)]
)


def velocities(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Up to 4 voxels per unit of time, some of them out of the grid."""
    generator = torch.Generator().manual_seed(3)
    return 8 * torch.rand(2, len(size), *size, generator=generator, dtype=torch.float64).to(dtype) - 4


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("size", [(6, 7), (5, 6, 7)])
@IN_FLOAT64
def test_equals_monai(backend: str, size: tuple[int, ...], steps: int, padding_mode: str) -> None:
    blocks = pytest.importorskip("monai.networks.blocks")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*native grid_sample")
        block = blocks.DVF2DDF(num_steps=steps, padding_mode=padding_mode)
    velocity = velocities(*size).requires_grad_()
    with uk.use_backend(backend):
        ddf = uk.integrate_velocity(velocity, steps=steps, padding_mode=padding_mode)
        incoming = torch.rand(ddf.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(ddf, velocity, incoming)
    expected = block(velocity)
    assert (ddf - expected).abs().max() <= 1e-11
    assert (gradient - torch.autograd.grad(expected, velocity, incoming)[0]).abs().max() <= 1e-10


@BACKENDS
def test_a_rotation_turns_and_its_opposite_turns_back(backend: str) -> None:
    """dx/dt = 0.5 (-y, x) turns every point by half a radian about the centre."""
    axis = torch.arange(17, dtype=torch.float64) - 8
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    velocity = 0.5 * torch.stack([x, -y])[None].to(widest(backend))
    turn = torch.tensor(0.5)
    expected = torch.stack([turn.cos() * y + turn.sin() * x - y, turn.cos() * x - turn.sin() * y - x])
    with uk.use_backend(backend):
        ddf = uk.integrate_velocity(velocity, padding_mode="border")
        inverse = uk.integrate_velocity(-velocity, padding_mode="border")
        both = uk.compose_ddf(ddf, inverse)
    inside = (..., slice(4, 13), slice(4, 13))
    torch.testing.assert_close(ddf[0][inside].double(), expected[inside], rtol=0, atol=0.02)
    assert both[inside].abs().max() < 0.02


@BACKENDS
def test_no_step_returns_the_velocity(backend: str) -> None:
    velocity = velocities(5, 6, 7, dtype=torch.float16).requires_grad_()
    with uk.use_backend(backend):
        ddf = uk.integrate_velocity(velocity, steps=0)
    assert ddf.dtype == torch.float32
    assert torch.equal(ddf, velocity.float())
    ddf.sum().backward()
    assert torch.equal(velocity.grad, torch.ones_like(velocity))


@pytest.mark.parametrize("steps", range(1, 11))
@BACKENDS
def test_backward_goes_over_the_same_fields(backend: str, steps: int) -> None:
    """Any number of steps, also such as leave a part of a segment."""
    found, expected = (velocities(9, 8).to(widest(backend)).requires_grad_() for _ in range(2))
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).reshape(found.shape)
    with uk.use_backend(backend):
        (uk.integrate_velocity(found, steps=steps) * weights).sum().backward()
    with uk.use_backend("reference"):
        (uk.integrate_velocity(expected, steps=steps) * weights).sum().backward()
    assert_close(found.grad, expected.grad, GRADIENT_TOLERANCE[found.dtype])


class Counter:
    """The most of the tensors given to it that were alive at one time."""

    def __init__(self) -> None:
        self.alive, self.most = 0, 0

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self.release)
        return tensor

    def release(self) -> None:
        self.alive -= 1


@contextlib.contextmanager
def _profiler() -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: None)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.mark.skipif("cpu" not in uk.available_backends("integrate_velocity"), reason="no CPU library")
@pytest.mark.parametrize("profiled", [False, True])
def test_backward_holds_three_fields_beyond_its_result(monkeypatch: pytest.MonkeyPatch, profiled: bool) -> None:
    """Also under a profiler or torch.compile, where Python holds the arguments of a call until the call returns."""
    backend, composition = get_backend(OP.name, "cpu"), get_backend("compose_ddf", "cpu")
    counter = Counter()
    scaled, forward, back = squaring._scaled, composition.forward, backend.square_backward
    monkeypatch.setattr(squaring, "_scaled", lambda *a: counter.count(scaled(*a)))
    monkeypatch.setattr(composition, "forward", lambda *a, **k: (counter.count(forward(*a, **k)[0]), []))
    monkeypatch.setattr(backend, "square_backward", lambda *a: counter.count(back(*a)))
    velocity = velocities(5, 6, 7)
    incoming = torch.ones_like(velocity)
    with _profiler() if profiled else contextlib.nullcontext():
        backend.backward(incoming, [], velocity, needs_grad=[True], steps=9, padding_mode="zeros")
    assert counter.most == 4  # the gradient among them


@BACKENDS
def test_half_precision_equals_float32_on_the_same_numbers(backend: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        velocity = velocities(5, 6, 7, dtype=dtype)
        with uk.use_backend(backend):
            found, expected = uk.integrate_velocity(velocity), uk.integrate_velocity(velocity.float())
        assert_close(found, expected, LOSS_TOLERANCE[torch.float32])


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"velocity must have one component per spatial axis"):
        uk.integrate_velocity(torch.zeros(1, 2, 4, 5, 6))
    with pytest.raises(ValueError, match="steps must be an integer of at least 0, got -1"):
        uk.integrate_velocity(torch.zeros(1, 2, 4, 5), steps=-1)
    with pytest.raises(TypeError, match=r"steps must be an integer of at least 0, got 2\.5"):
        uk.integrate_velocity(torch.zeros(1, 2, 4, 5), steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="padding_mode must be one of"):
        uk.integrate_velocity(torch.zeros(1, 2, 4, 5), padding_mode="edge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 voxels"):
        uk.integrate_velocity(torch.zeros(1, 2, 0, 5))

"""Gaussian smoothing against SciPy and a convolution, at borders and on small volumes, and its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels.cases import Case, widest, with_backends
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.fields import PADDING_MODES
from usreg_kernels.ops.gaussian_smooth.weights import LARGEST_RADIUS, half_weights, radius_of, tails

SCIPY_MODES = {"border": "nearest", "zeros": "constant", "reflection": "mirror"}
TORCH_MODES = {"border": "replicate", "zeros": "constant", "reflection": "reflect"}
NAMES = [backend for _, backend in with_backends([Case("gaussian_smooth")])]
BACKENDS = pytest.mark.parametrize("backend", NAMES)
IN_FLOAT64 = pytest.mark.parametrize(
    "backend", [backend for _, backend in with_backends([Case("gaussian_smooth")], torch.float64)]
)
PADDINGS = pytest.mark.parametrize("padding_mode", PADDING_MODES)
SHAPES = [
    (13,), (1,), (2,), (1500,),  # one voxel, fewer than the radius, several blocks of columns
    (7, 9), (150, 20), (1, 9),  # several blocks of rows, an axis of one voxel
    (5, 6, 7), (1, 1, 1), (1, 9, 1), (2, 3, 4), (9, 1, 40), (20, 9, 33),
]  # fmt: skip


def random_image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("sigma", "truncate"), [(1.0, 3.0), (2.6, 4.0), (0.4, 3.0)])
@PADDINGS
@IN_FLOAT64
def test_equals_scipy(backend: str, padding_mode: str, sigma: float, truncate: float, shape: tuple[int, ...]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = random_image(1, 1, *shape)
    wanted = ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode=SCIPY_MODES[padding_mode], truncate=truncate)
    with uk.use_backend(backend):
        found = uk.gaussian_smooth(x, sigma, truncate=truncate, padding_mode=padding_mode)
    assert (found[0, 0] - torch.from_numpy(wanted)).abs().max() <= 1e-14


def convolved(x: torch.Tensor, sigma: tuple[float, ...], padding_mode: str) -> torch.Tensor:
    """The filter as one dense convolution of an image that torch has padded."""
    rows = [half_weights(width, 3.0) for width in sigma]
    kernel = torch.ones((), dtype=x.dtype)
    for row in rows:
        kernel = kernel.unsqueeze(-1) * torch.tensor([*row[:0:-1], *row], dtype=x.dtype)
    padding = [len(row) - 1 for row in reversed(rows) for _ in range(2)]
    padded = F.pad(x.flatten(0, 1)[:, None], padding, mode=TORCH_MODES[padding_mode])
    return (F.conv1d, F.conv2d, F.conv3d)[len(sigma) - 1](padded, kernel[None, None]).reshape(x.shape)


@pytest.mark.parametrize("shape", [(13,), (8, 11), (9, 7, 8)], ids=str)
@PADDINGS
@IN_FLOAT64
def test_values_and_gradient_equal_those_of_a_convolution(
    backend: str, padding_mode: str, shape: tuple[int, ...]
) -> None:
    sigma = (1.0, 2.0, 0.6)[: len(shape)]
    x = random_image(2, 3, *shape).requires_grad_()
    with uk.use_backend(backend):
        found = uk.gaussian_smooth(x, sigma, padding_mode=padding_mode)
        incoming = random_image(*found.shape, seed=1)
        (gradient,) = torch.autograd.grad(found, x, incoming)
    expected = convolved(x, sigma, padding_mode)
    assert (found - expected).abs().max() <= 1e-14
    assert (gradient - torch.autograd.grad(expected, x, incoming)[0]).abs().max() <= 1e-14


ADJOINTS = [
    (backend, sigma, shape)
    for backend in NAMES
    for sigma in (0.7, 2.0)
    for shape in SHAPES
    # Triton's interpreter takes minutes for the larger ones.
    if backend != "triton" or len(shape) == 1 or (sigma == 0.7 and math.prod(shape) <= 250)
]


@pytest.mark.parametrize(("backend", "sigma", "shape"), ADJOINTS, ids=str)
@PADDINGS
def test_the_gradient_is_the_adjoint(backend: str, padding_mode: str, sigma: float, shape: tuple[int, ...]) -> None:
    """``<S x, y> = <x, S' y>``, and each value and gradient against the reference, float16 among the inputs."""
    for dtype in {widest(backend), torch.float16}:
        x = random_image(1, 2, *shape, dtype=dtype).requires_grad_()
        y = random_image(1, 2, *shape, seed=1)
        with uk.use_backend(backend):
            found = uk.gaussian_smooth(x, sigma, padding_mode=padding_mode)
            (gradient,) = torch.autograd.grad(found, x, y.to(found.dtype))
        first, second = (found.double() * y).sum(), (x.double() * gradient.double()).sum()
        scale = (found.double() * y).norm() + (x.double() * gradient.double()).norm()
        assert abs(first - second) <= 3 * GRADIENT_TOLERANCE[dtype] * scale
        oracle = x.detach().double().requires_grad_()
        with uk.use_backend("reference"):
            expected = uk.gaussian_smooth(oracle, sigma, padding_mode=padding_mode)
        assert_close(found, expected, LOSS_TOLERANCE[dtype])
        assert_close(gradient, torch.autograd.grad(expected, oracle, y)[0], GRADIENT_TOLERANCE[dtype], floor=1e-6)


@PADDINGS
@BACKENDS
def test_sigma_per_axis(backend: str, padding_mode: str) -> None:
    """One axis after the other gives the same; 0 leaves an axis, and a volume, exactly as it is."""
    x = random_image(2, 2, 6, 7, 9, dtype=widest(backend))
    with uk.use_backend(backend):
        found = uk.gaussian_smooth(x, (0.5, 0.0, 1.5), padding_mode=padding_mode)
        one = uk.gaussian_smooth(x, [0.5, 0, 0], padding_mode=padding_mode)
        assert_close(found, uk.gaussian_smooth(one, (0, 0, 1.5), padding_mode=padding_mode), LOSS_TOLERANCE[x.dtype])
        assert torch.equal(uk.gaussian_smooth(x, 0, padding_mode=padding_mode), x)
        assert torch.equal(uk.gaussian_smooth(x, 1.0, truncate=0, padding_mode=padding_mode), x)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(uk.gaussian_smooth(leaf, 0, padding_mode=padding_mode), leaf, x)
        assert torch.equal(gradient, x)


@BACKENDS
def test_a_constant_stays_and_a_reflection_keeps_its_sum(backend: str) -> None:
    x = torch.full((1, 1, 4, 5, 6), 2.5, dtype=widest(backend))
    with uk.use_backend(backend):
        for padding_mode in ("border", "reflection"):
            assert_close(uk.gaussian_smooth(x, 2.0, padding_mode=padding_mode), x, LOSS_TOLERANCE[x.dtype])
        assert (uk.gaussian_smooth(x, 1.0, padding_mode="zeros") < x).all()


@PADDINGS
@BACKENDS
def test_nan_and_infinity_spread_as_far_as_the_filter(backend: str, padding_mode: str) -> None:
    clean = random_image(1, 1, 12, 8, 20, dtype=widest(backend))
    for bad in (math.nan, math.inf):
        for place in ((6, 3, 10), (0, 0, 0), (11, 5, 17))[
            :: 3 if backend == "triton" else 1
        ]:  # the interpreter is slow
            x = clean.clone()
            x[(0, 0, *place)] = bad
            leaf = clean.clone().requires_grad_()
            with uk.use_backend(backend):
                found = uk.gaussian_smooth(x, 1.0, padding_mode=padding_mode)
                output = uk.gaussian_smooth(leaf, 1.0, padding_mode=padding_mode)
                (gradient,) = torch.autograd.grad(output, leaf, x)
            reached = torch.zeros_like(x, dtype=torch.bool)
            reached[(0, 0, *[slice(max(0, i - 3), i + 4) for i in place])] = True
            for result in (found, gradient):
                assert torch.equal(~result.isfinite(), reached)


@pytest.mark.parametrize("shape", [(3000,), (300, 40), (30, 70, 50)], ids=str)
def test_blocks_and_threads_give_the_same_bits(shape: tuple[int, ...]) -> None:
    if "cpu" not in uk.available_backends("gaussian_smooth"):
        pytest.skip("no CPU library")
    x = random_image(2, 2, *shape, dtype=torch.bfloat16).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with uk.use_backend("cpu"):
                found = uk.gaussian_smooth(x, 1.5)
                results.append([found, *torch.autograd.grad(found.sin().sum(), x)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_wide_filters() -> None:
    """As wide as the volume, and as wide as allowed: the weights of an axis fold into it."""
    for backend in uk.available_backends("gaussian_smooth"):
        if backend in ("reference", "cpu"):
            x = random_image(1, 1, 5, 300)
            with uk.use_backend(backend):
                found = uk.gaussian_smooth(x, (200.0, 80.0), padding_mode="reflection")
            assert (found - x.mean()).abs().max() < 0.1
    assert radius_of(LARGEST_RADIUS / 3, 3.0) == LARGEST_RADIUS


def test_weights() -> None:
    for sigma in (1e-300, 0.3, 1.0, 7.7):
        weights = half_weights(sigma, 3.0)
        assert len(weights) == int(3 * sigma + 0.5) + 1
        assert math.fsum(weights) + math.fsum(weights[1:]) == pytest.approx(1.0, abs=1e-15)
        assert tails(weights)[-1] == 0
        assert 2 * tails(weights)[0] + weights[0] == pytest.approx(1.0, abs=1e-15)
    assert half_weights(1e-300, 1e300) == (1.0, 0.0)  # which exp rounds to 0


def test_half_precision_gives_float32() -> None:
    x = random_image(1, 1, 4, 5, dtype=torch.float16).requires_grad_()
    smoothed = uk.gaussian_smooth(x, 1.0)
    assert smoothed.dtype == torch.float32
    assert torch.autograd.grad(smoothed.sum(), x)[0].dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(uk.gaussian_smooth(x, 1.0), smoothed)


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (2, 0, 3, 4), (0, 1, 3, 4)], ids=str)
@BACKENDS
def test_no_voxels(backend: str, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    with uk.use_backend(backend):
        smoothed = uk.gaussian_smooth(x, 1.0)
        assert smoothed.shape == x.shape
        assert torch.autograd.grad(smoothed.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize(
    ("sigma", "arguments", "error", "message"),
    [
        ((1.0, 2.0), {}, ValueError, r"sigma must be 3 finite numbers of at least 0.*\(1.0, 2.0\)"),
        (-1.0, {}, ValueError, "sigma must be 3 finite numbers of at least 0"),
        (float("nan"), {}, ValueError, "sigma must be 3 finite numbers"),
        ("wide", {}, TypeError, "sigma must be a number, got 'wide'"),
        (1.0, {"truncate": -1}, ValueError, "truncate must be a finite number of at least 0"),
        (1.0, {"truncate": None}, TypeError, "truncate must be a number"),
        (2000.0, {}, ValueError, r"truncate \* sigma must be at most 4096 voxels, got 3 \* 2000"),
        (1.0, {"padding_mode": "nearest"}, ValueError, "padding_mode must be one of 'border', 'zeros', 'reflection'"),
    ],
)
def test_what_is_wrong_is_said(sigma: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        uk.gaussian_smooth(torch.zeros(1, 2, 4, 5, 6), sigma, **arguments)


def test_images_of_other_shapes() -> None:
    with pytest.raises(ValueError, match="1, 2 or 3 spatial dimensions"):
        uk.gaussian_smooth(torch.zeros(4, 5), 1.0)
    assert torch.equal(uk.gaussian_smooth(torch.ones(1, 1, 3), torch.tensor(1.0)), torch.ones(1, 1, 3))

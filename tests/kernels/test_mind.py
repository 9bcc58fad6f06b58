"""MIND-SSC: the descriptor and its loss against the definition, voxel by voxel; borders, limits, ties, arguments."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernels.cases import Case, with_backends
from kernels.compare import assert_close

import usreg_kernels as uk
from bench.hard_data import PAIRS
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE

BACKENDS = [name for name in ("reference", "cpu") if name in uk.available_backends("mind")]
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
SIZES = [(5, 4, 6), (1, 4, 3), (3, 2, 9), (6, 7), (1, 5)]


def _rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _by_definition(image: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    """The descriptor of one image (spatial), in loops; the image, and the squared difference, repeat at the border."""
    dims, size = image.ndim, image.shape

    def at(values: np.ndarray, place: tuple[int, ...]) -> float:
        return values[tuple(min(max(i, 0), n - 1) for i, n in zip(place, size, strict=True))]

    neighbours = []
    for axis, sign in product(range(dims), (-1, 1)):
        step = [0] * dims
        step[axis] = sign * dilation
        neighbours.append((axis, tuple(step)))
    pairs = [(p[1], q[1]) for p, q in combinations(neighbours, 2) if p[0] != q[0]]
    # In the order of the channels: by the two axes, then by the two signs.
    axes = [tuple(int(np.flatnonzero(step)[0]) for step in pair) for pair in pairs]
    pairs = [pair for _, pair in sorted(zip(axes, pairs, strict=True), key=lambda entry: entry[0])]

    distances = np.zeros((len(pairs), *size))
    for k, (p, q) in enumerate(pairs):
        squares = np.zeros(size)
        for x in np.ndindex(size):
            first = at(image, tuple(i + step for i, step in zip(x, p, strict=True)))
            second = at(image, tuple(i + step for i, step in zip(x, q, strict=True)))
            squares[x] = (first - second) ** 2
        for x in np.ndindex(size):
            window = product(*[range(i - radius, i + radius + 1) for i in x])
            distances[(k, *x)] = np.mean([at(squares, place) for place in window])
    excess = distances - distances.min(axis=0)
    variance = excess.mean(axis=0)
    limited = variance.clip(1e-3 * variance.mean(), 1e3 * variance.mean())
    return np.exp(-excess / limited)


@EVERY_BACKEND
@pytest.mark.parametrize(("radius", "dilation"), [(2, 2), (0, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_descriptor_is_that_of_the_definition(
    size: tuple[int, ...], radius: int, dilation: int, backend: str
) -> None:
    images = _rand(2, 2, *size)
    with uk.use_backend(backend):
        found = uk.mind_ssc(images, radius=radius, dilation=dilation)
    channels = 12 if len(size) == 3 else 4
    expected = np.stack([_by_definition(image.numpy(), radius, dilation) for image in images.flatten(0, 1)])
    assert_close(found, torch.from_numpy(expected).reshape(2, 2 * channels, *size), 1e-12)


@EVERY_BACKEND
def test_the_loss_is_that_of_the_definition(backend: str) -> None:
    pred, target = _rand(1, 2, 4, 5, 6), _rand(1, 2, 4, 5, 6, seed=1)
    described = [np.stack([_by_definition(image.numpy(), 2, 2) for image in x[0]]) for x in (pred, target)]
    expected = torch.from_numpy((described[0] - described[1]) ** 2)  # (C, 12, D, H, W)
    with uk.use_backend(backend):
        assert_close(uk.mind_loss(pred, target), expected.mean(), 1e-12)
        assert_close(uk.mind_loss(pred, target, reduction="none"), expected.mean(dim=1)[None], 1e-12)


def _with_a_bright_corner() -> torch.Tensor:
    """V reaches over seven orders of magnitude: most voxels are limited."""
    image = 1e-3 * _rand(1, 1, 12, 13, 14)
    image[..., :3, :3, :3] += 1e2 * _rand(3, 3, 3, seed=1)
    return image


@EVERY_BACKEND
def test_the_limits_of_v_are_constants_for_the_gradient(backend: str) -> None:
    """Against differences of the formula with the mean of V held fixed."""
    image = _with_a_bright_corner()
    weights = _rand(1, 12, 12, 13, 14, seed=2)
    distances = _distances(image)
    variance = (distances - distances.amin(dim=1, keepdim=True)).mean(dim=1)
    mean = variance.mean()
    limited = (variance < 1e-3 * mean).double().mean()
    assert 0.3 < limited < 0.95

    def value(x: torch.Tensor) -> torch.Tensor:
        found = _distances(x)
        above = found - found.amin(dim=1, keepdim=True)
        bounded = above.mean(dim=1, keepdim=True).clamp(1e-3 * mean, 1e3 * mean)
        return ((-above / bounded).exp() * weights).sum()

    leaf = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf), leaf)
    with uk.use_backend(backend):
        (found,) = torch.autograd.grad((uk.mind_ssc(leaf) * weights).sum(), leaf)
    assert_close(found, expected, 1e-9)


def _distances(image: torch.Tensor) -> torch.Tensor:
    """D of (1, 1, D, H, W), (1, 12, D, H, W), for torch to differentiate; radius 2, dilation 2."""
    padded = F.pad(image, [2] * 6, mode="replicate")
    near = [
        padded.roll(-2 * sign, axis)[..., 2:-2, 2:-2, 2:-2]  # what is rolled in lies in the padding
        for axis in (2, 3, 4)
        for sign in (-1, 1)
    ]
    pairs = [(a + i, b + j) for a, b in ((0, 2), (0, 4), (2, 4)) for i in (0, 1) for j in (0, 1)]
    squares = torch.cat([(near[p] - near[q]) ** 2 for p, q in pairs], dim=1)
    return F.avg_pool3d(F.pad(squares, [2] * 6, mode="replicate"), 5, stride=1)


@EVERY_BACKEND
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_brightness_and_contrast_do_not_count(backend: str, scale: float) -> None:
    image = _rand(1, 1, 7, 8, 9)
    with uk.use_backend(backend):
        assert_close(uk.mind_ssc(scale * image + 100 * scale), uk.mind_ssc(image), 1e-9)
        assert_close(uk.mind_ssc(-image), uk.mind_ssc(image), 1e-12)
        assert uk.mind_loss(image, 2 * image) < 1e-12


@EVERY_BACKEND
def test_an_image_of_one_value(backend: str) -> None:
    """Nothing differs: all channels are 1, and nothing pulls."""
    image = torch.full((1, 1, 4, 5, 6), 0.7, requires_grad=True)
    other = _rand(1, 1, 4, 5, 6).float()
    with uk.use_backend(backend):
        assert torch.equal(uk.mind_ssc(image), torch.ones(1, 12, 4, 5, 6))
        assert torch.equal(torch.autograd.grad(uk.mind_loss(image, other), image)[0], torch.zeros_like(image))
        one = uk.mind_loss(torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
    assert one == 0


@EVERY_BACKEND
def test_an_axis_of_one_voxel_has_equal_channels(backend: str) -> None:
    """The neighbours along it are the voxel itself: of channels that are equal, each may be the lowest."""
    image = _rand(2, 1, 1, 6, 7).requires_grad_()
    with uk.use_backend(backend):
        found = uk.mind_ssc(image)
        assert torch.equal(found[:, 0], found[:, 2])
        assert torch.autograd.gradcheck(uk.mind_ssc, image, fast_mode=True)


@EVERY_BACKEND
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_own_image_only(backend: str, bad: float) -> None:
    images = _rand(2, 2, 5, 6, 7)
    images[1, 0, 2, 2, 2] = bad
    with uk.use_backend(backend):
        found = uk.mind_ssc(images)
    assert found[1, :12].isnan().all()
    assert found[0].isfinite().all()
    assert found[1, 12:].isfinite().all()


@EVERY_BACKEND
def test_the_mask_weighs_the_map(backend: str) -> None:
    pred, target = _rand(2, 3, 4, 5, 6), _rand(2, 3, 4, 5, 6, seed=1)
    mask = (_rand(2, 1, 4, 5, 6, seed=2) > 0.5).double()
    with uk.use_backend(backend):
        values = uk.mind_loss(pred, target, reduction="none")
        assert_close(uk.mind_loss(pred, target, mask=mask), (values * mask).sum() / (3 * mask.sum()), 1e-12)
        assert uk.mind_loss(pred, target, mask=0 * mask) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 40, 70, 33), (1, 2, 90, 65), (1, 1, 9, 130, 20)], ids=str)
@pytest.mark.skipif("cpu" not in BACKENDS, reason="no CPU library")
def test_volumes_that_are_cut_into_tasks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Edges of tasks, in every cut that a number of threads makes."""
    pred, target = (_rand(*shape, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
    oracle = [x.detach().double().requires_grad_() for x in (pred, target)]
    with uk.use_backend("reference"):
        expected = uk.mind_loss(*oracle)
        wanted = torch.autograd.grad(expected, oracle)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7, 16):
            torch.set_num_threads(threads)
            with uk.use_backend("cpu"):
                loss = uk.mind_loss(pred, target)
                results.append([loss, *torch.autograd.grad(loss, (pred, target))])
    finally:
        torch.set_num_threads(before)
    assert_close(results[0][0], expected, LOSS_TOLERANCE[dtype])
    for gradient, exact in zip(results[0][1:], wanted, strict=True):
        assert_close(gradient, exact, GRADIENT_TOLERANCE[dtype])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("data", PAIRS)
@pytest.mark.skipif("cpu" not in BACKENDS, reason="no CPU library")
def test_hard_data(data: str) -> None:
    """What low precision gets wrong: E is a small difference of large window sums."""
    images = [volume.float().contiguous() for volume in PAIRS[data]((1, 1, 20, 18, 34))]
    results = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [image.to(dtype).requires_grad_() for image in images]
        with uk.use_backend(backend):
            loss = uk.mind_loss(*leaves)
            results.append([loss, *torch.autograd.grad(loss, leaves)])
    (loss, *gradients), (expected, *wanted) = results
    assert_close(loss, expected, LOSS_TOLERANCE[torch.float32])
    for gradient, exact in zip(gradients, wanted, strict=True):
        assert_close(gradient, exact, GRADIENT_TOLERANCE[torch.float32])


@pytest.mark.parametrize(("case", "backend"), with_backends([Case("mind"), Case("mind_ssc")]), ids=str)
def test_arguments_that_cannot_be(case: Case, backend: str) -> None:
    tensors = case.tensors(torch.float32)
    function = {"mind": uk.mind_loss, "mind_ssc": uk.mind_ssc}[case.op]
    with uk.use_backend(backend):
        for options, message in (
            ({"radius": -1}, "radius must be an integer from 0 to 32, got -1"),
            ({"radius": 33}, "radius must be an integer from 0 to 32, got 33"),
            ({"dilation": 0}, "dilation must be an integer from 1 to 32, got 0"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*tensors, **options)
        with pytest.raises(TypeError, match=r"radius must be an integer from 0 to 32, got 1\.5"):
            function(*tensors, radius=1.5)
        with pytest.raises(ValueError, match=r"two different axes.*\(B, C, H, W\) or.*got \(2, 1, 9\)"):
            function(*(torch.zeros(2, 1, 9) for _ in tensors))


def test_the_module_holds_its_arguments() -> None:
    pred, target = _rand(1, 1, 5, 6, 7), _rand(1, 1, 5, 6, 7, seed=1)
    loss = uk.MINDLoss(radius=1, dilation=3, reduction="sum")
    assert torch.equal(loss(pred, target), uk.mind_loss(pred, target, radius=1, dilation=3, reduction="sum"))
    assert repr(loss) == "MINDLoss(radius=1, dilation=3, reduction='sum')"
    with pytest.raises(ValueError, match="dilation must be an integer from 1 to 32, got 0"):
        uk.MINDLoss(dilation=0)

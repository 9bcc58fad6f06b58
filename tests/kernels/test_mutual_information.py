"""Mutual information: against MONAI, against its definition written as loops, and its rules at the edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernels.compare import assert_close
from monai.losses import GlobalMutualInformationLoss

import usreg_kernels as uk
from tools.tolerances import LOSS_TOLERANCE
from usreg_kernels.functional import PARZEN_KERNELS

SPATIAL = {1: (64,), 2: (8, 16), 3: (4, 8, 8)}  # MONAI's box counts in float32: exact for a power of two
KERNELS = pytest.mark.parametrize("kernel", PARZEN_KERNELS)


HERE = [backend for backend in uk.available_backends("mutual_information") if backend in ("reference", "cpu")]
"""Backends that take CPU tensors as they are; test_mutual_information_triton.py has those of the interpreter."""


@pytest.fixture(params=HERE, autouse=True)
def _backend(request: pytest.FixtureRequest) -> Any:
    with uk.use_backend(request.param):
        yield


def _images(dims: int = 3, dtype: torch.dtype = torch.float64, batch: int = 2) -> list[torch.Tensor]:
    """Values from -0.1 to 1.1, two channels; the target depends on pred."""
    generator = torch.Generator().manual_seed(dims)
    shape = (batch, 2, *SPATIAL[dims])
    pred, noise = (1.2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1 for _ in range(2))
    return [image.to(dtype).requires_grad_() for image in (pred, 0.7 * (1.0 - pred) ** 2 + 0.3 * noise)]


def _monai(kernel: str, num_bins: int = 23, sigma_ratio: float = 0.5, reduction: str = "mean") -> torch.nn.Module:
    """MONAI's loss with its bins in float64; it makes them in float32."""
    loss = GlobalMutualInformationLoss(kernel, num_bins, sigma_ratio, reduction)
    if kernel == "gaussian":
        loss.bin_centers = torch.linspace(0.0, 1.0, num_bins, dtype=torch.float64)[None, None]
        loss.preterm = 1.0 / (2.0 * (sigma_ratio / (num_bins - 1)) ** torch.tensor(2.0, dtype=torch.float64))
    return loss


def _gradients(loss: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    incoming = torch.rand(loss.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(loss.dtype)
    return list(torch.autograd.grad((loss * incoming).sum(), tensors, allow_unused=True, materialize_grads=True))


@KERNELS
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("num_bins", "sigma_ratio"), [(23, 0.5), (32, 1.0), (9, 0.3)])
def test_values_and_gradients_are_monais(
    kernel: str, dims: int, reduction: str, num_bins: int, sigma_ratio: float
) -> None:
    images = _images(dims)
    ours = uk.MutualInformationLoss(kernel, num_bins, sigma_ratio, reduction)(*images)
    theirs = _monai(kernel, num_bins, sigma_ratio, reduction)(*images)
    assert_close(ours, theirs, 1e-12)
    for mine, monais in zip(_gradients(ours, images), _gradients(theirs, images), strict=True):
        assert_close(mine, monais, 1e-11)


@KERNELS
def test_monai_in_float32(kernel: str) -> None:
    """MONAI's own float32 rounding is the limit here; many voxels lie at the ends of the range."""
    images = [image.detach().clamp(0, 1).requires_grad_() for image in _images(3, torch.float32)]
    ours = uk.MutualInformationLoss(kernel, 23)(*images)
    theirs = GlobalMutualInformationLoss(kernel, 23)(*images)
    assert_close(ours, theirs, 1e-5)
    for mine, monais in zip(_gradients(ours, images), _gradients(theirs, images), strict=True):
        assert_close(mine, monais, 1e-4)


@KERNELS
def test_half_precision_is_exact(kernel: str) -> None:
    half = _images(3, torch.float16)
    exact = [image.detach().double() for image in half]
    ours = uk.mutual_information_loss(*half, kernel=kernel)
    assert_close(ours, uk.mutual_information_loss(*exact, kernel=kernel), LOSS_TOLERANCE[torch.float16])


def _loops(pred: list[float], target: list[float], weights: list[float], kernel: str, bins: int) -> list[list[float]]:
    """The joint distribution of two lists of values, voxel by voxel."""

    def place(values: list[float], value: float) -> float:
        if kernel == "gaussian":
            return min(max(value, 0.0), 1.0) * (bins - 1)
        kept = [v for v, weight in zip(values, weights, strict=True) if weight]
        step = (max(kept) - min(kept)) / (bins - 4)
        return min(2.0 + (value - min(kept)) / step, bins - 3.0)

    def cubic(x: float) -> float:
        """Of four boxes, by the formula with truncated powers."""
        signs = (1, -4, 6, -4, 1)
        return sum(sign * max(x + 2 - i, 0.0) ** 3 for i, sign in enumerate(signs)) / 6.0

    def box(x: float) -> float:
        return 1.0 if abs(x) < 0.5 else 0.5 * (abs(x) == 0.5)

    def gauss(x: float) -> float:
        return math.exp(-2.0 * x * x)  # sigma of half a bin

    def window(at: float, shape: Any) -> list[float]:
        found = [shape(at - k) for k in range(bins)]
        return [one / sum(found) for one in found]

    shapes = (gauss, gauss) if kernel == "gaussian" else (cubic, box)
    joint = [[0.0] * bins for _ in range(bins)]
    for p, t, weight in zip(pred, target, weights, strict=True):
        if weight:
            first, second = window(place(pred, p), shapes[0]), window(place(target, t), shapes[1])
            for i in range(bins):
                for j in range(bins):
                    joint[i][j] += weight * first[i] * second[j] / sum(weights)
    return joint


def _entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@KERNELS
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("channels", [0, 1, 2])
def test_the_definition_in_loops(kernel: str, normalized: bool, channels: int) -> None:
    """With hardly any smoothing, so that mutual information is a difference of entropies."""
    pred, target = _images(2, batch=1)
    mask = None
    if channels:
        mask = torch.rand(1, channels, *SPATIAL[2], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        mask = mask * (mask > 0.3)
    weights = torch.ones_like(pred) if mask is None else mask.expand(pred.shape)
    joint = _loops(*(x.detach().flatten().tolist() for x in (pred, target, weights)), kernel=kernel, bins=11)
    h_a, h_b = _entropy([sum(row) for row in joint]), _entropy([sum(column) for column in zip(*joint, strict=True)])
    h_ab = _entropy([p for row in joint for p in row])
    wanted = -(h_a + h_b) / h_ab if normalized else h_ab - h_a - h_b
    found = uk.mutual_information_loss(
        pred, target, kernel=kernel, num_bins=11, normalized=normalized, smooth_nr=0.0, smooth_dr=1e-12, mask=mask
    )
    assert found.item() == pytest.approx(wanted, rel=1e-7)


@KERNELS
@pytest.mark.parametrize("normalized", [False, True])
def test_a_left_out_voxel_has_no_influence(kernel: str, normalized: bool) -> None:
    """Not even NaN, or a value beyond the range of all others."""
    pred, target = _images(3)
    mask = torch.ones(2, 1, *SPATIAL[3])
    arguments = {"kernel": kernel, "normalized": normalized}
    assert torch.equal(
        uk.mutual_information_loss(pred, target, mask=mask, **arguments),
        uk.mutual_information_loss(pred, target, **arguments),
    )
    mask[..., 5:] = 0
    spoilt = [image.detach().clone() for image in (pred, target)]
    for image, bad in zip(spoilt, (math.nan, 1e6), strict=True):
        image[..., 6] = bad
        image[..., 5] = -math.inf
        image.requires_grad_()
    loss = uk.mutual_information_loss(*spoilt, mask=mask, **arguments)
    cut = [image.detach()[..., :5].contiguous().requires_grad_() for image in (pred, target)]
    wanted = uk.mutual_information_loss(*cut, **arguments)
    assert_close(loss, wanted, 1e-12)
    for found, expected in zip(_gradients(loss, spoilt), _gradients(wanted, cut), strict=True):
        assert_close(found[..., :5], expected, 1e-11)
        assert not found[..., 5:].any()


@KERNELS
@pytest.mark.parametrize("normalized", [False, True])
def test_an_empty_mask_counts_nothing(kernel: str, normalized: bool) -> None:
    images = _images(3)
    mask = torch.ones(2, 1, *SPATIAL[3])
    mask[0] = 0
    arguments = {"kernel": kernel, "normalized": normalized, "smooth_nr": 0.0}
    loss = uk.mutual_information_loss(*images, mask=mask, reduction="none", **arguments)
    of_second = uk.mutual_information_loss(*(image[1:] for image in images), **arguments)
    assert loss[0] == 0
    assert_close(loss[1], of_second, 1e-12)
    for gradient in _gradients(loss, images):
        assert not gradient[0].any()
    nothing = uk.mutual_information_loss(*images, mask=torch.zeros_like(mask), **arguments)
    assert nothing == 0
    assert not any(gradient.any() for gradient in _gradients(nothing, images))


@KERNELS
def test_a_constant_image_tells_nothing(kernel: str) -> None:
    """MONAI's b-spline divides by the range of its values, 0."""
    target = _images(3)[1]
    constant = torch.full_like(target, 0.37).requires_grad_()
    for images in ([constant, target], [target, constant]):
        loss = uk.mutual_information_loss(*images, kernel=kernel)
        assert loss.abs() < 1e-5
        assert all(gradient.norm() < 1e-5 for gradient in _gradients(loss, images))
        assert uk.mutual_information_loss(*images, kernel=kernel, normalized=True).item() == pytest.approx(-1, abs=1e-5)
    assert uk.mutual_information_loss(constant, constant, normalized=True).item() == pytest.approx(-1, abs=1e-5)


def test_b_spline_does_not_care_about_units() -> None:
    pred, target = _images(3)
    wanted = uk.mutual_information_loss(pred, target)
    assert_close(uk.mutual_information_loss(1000 * pred - 300, target), wanted, 1e-10)
    assert_close(uk.mutual_information_loss(pred, 0.01 * target + 5), wanted, 1e-10)


@KERNELS
def test_a_relation_of_any_kind_is_found(kernel: str) -> None:
    """Lower for a function of the other image than for noise; the normalized form lies between -2 and -1."""
    pred = _images(3)[0].detach().clamp(0, 1)
    noise = torch.rand(pred.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    related = (2 * pred - 1).abs()
    for normalized in (False, True):
        values = [
            uk.mutual_information_loss(pred, other, kernel=kernel, num_bins=8, normalized=normalized).item()
            for other in (related, noise)
        ]
        assert values[0] < values[1] - 0.05
        assert not normalized or -2 <= values[0] < values[1] <= -1


@KERNELS
def test_values_between_two_bins_go_to_both(kernel: str) -> None:
    """Whole numbers, whose range makes a bin of two: every odd one lies between two bins of the box."""
    values = torch.arange(57, dtype=torch.float64).repeat(8).reshape(1, 1, 8, 57)
    other = values.flip(1, 2)
    loss = uk.mutual_information_loss(values, other, kernel=kernel)
    if kernel == "b-spline":
        assert_close(loss, GlobalMutualInformationLoss(kernel, 32)(values, other).double(), 1e-6)
    with uk.use_backend("reference"):
        assert_close(loss, uk.mutual_information_loss(values, other, kernel=kernel), 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@KERNELS
def test_what_is_not_finite_is_never_hidden(kernel: str, bad: float) -> None:
    """Not even by the gaussian's bounds: MONAI takes an infinite value for 1."""
    for i in range(2):
        images = [image.detach().clone() for image in _images(3)]
        images[i][1, 0, 0, 0, 0] = bad
        for normalized in (False, True):
            loss = uk.mutual_information_loss(*images, kernel=kernel, normalized=normalized, reduction="none")
            assert not loss[1].isfinite()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel": "box"}, ValueError, "kernel must be one of 'b-spline', 'gaussian'"),
        ({"num_bins": 5}, ValueError, "num_bins must be at least 6 for kernel='b-spline', got 5"),
        ({"num_bins": 1, "kernel": "gaussian"}, ValueError, "num_bins must be at least 2 for kernel='gaussian'"),
        ({"num_bins": 23.5}, TypeError, "num_bins must be an integer, got 23.5"),
        ({"num_bins": True}, TypeError, "num_bins must be an integer"),
        ({"sigma_ratio": 0.0}, ValueError, "sigma_ratio must be a finite number above 0"),
        ({"smooth_dr": 0.0}, ValueError, "smooth_dr must be a finite number above 0"),
        ({"smooth_nr": -1e-7}, ValueError, "smooth_nr must be a finite number of at least 0"),
        ({"reduction": "median"}, ValueError, "reduction must be one of"),
        ({"mask": torch.ones(2, 3, 4, 8, 8)}, ValueError, "mask must be real"),
    ],
)
def test_errors_say_what_is_valid(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    images = _images(3)
    with pytest.raises(error, match=message):
        uk.mutual_information_loss(*images, **arguments)
    given = {"kernel_type" if key == "kernel" else key: value for key, value in arguments.items() if key != "mask"}
    if given:
        with pytest.raises(error, match=message.replace("kernel must", "kernel_type must")):
            uk.MutualInformationLoss(**given)


def test_the_module_prints_its_arguments_and_takes_a_mask() -> None:
    pred, target = _images(3)
    mask = torch.rand(2, 1, *SPATIAL[3])
    loss = uk.MutualInformationLoss("gaussian", 16, 0.7, "sum", 1e-6, 1e-5, True)
    assert "kernel_type='gaussian', num_bins=16, sigma_ratio=0.7, reduction='sum'" in repr(loss)
    wanted = uk.mutual_information_loss(
        pred, target, kernel="gaussian", num_bins=16, sigma_ratio=0.7, reduction="sum", smooth_nr=1e-6, smooth_dr=1e-5,
        normalized=True, mask=mask,
    )  # fmt: skip
    assert torch.equal(loss(pred, target, mask), wanted)

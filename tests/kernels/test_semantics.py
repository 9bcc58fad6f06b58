"""What each loss means, beyond its agreement with MONAI: masks, sizes, spacing, windows per axis, bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernels.compare import assert_close

import usreg_kernels as uk
from usreg_kernels.windows import make_window


def _rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["lncc", "dvf_mse"])
def masked(request: pytest.FixtureRequest):
    return {"lncc": uk.lncc_loss, "dvf_mse": uk.dvf_mse_loss}[request.param]


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_mean_is_the_weighted_mean_of_the_map(masked, channels: int) -> None:
    a, b, mask = _rand(2, 3, 5, 6, 4), _rand(2, 3, 5, 6, 4, seed=1), _rand(2, channels, 5, 6, 4, seed=2)
    values, weights = masked(a, b, reduction="none"), mask.expand(2, 3, 5, 6, 4)
    assert_close(masked(a, b, mask=mask), (values * weights).sum() / weights.sum(), 1e-12)
    assert_close(masked(a, b, mask=mask, reduction="sum"), (values * weights).sum(), 1e-12)
    assert_close(masked(a, b, mask=mask, reduction="none"), values * weights, 1e-12)


def test_a_mask_of_ones_changes_nothing(masked) -> None:
    a, b = _rand(2, 3, 5, 6, 4), _rand(2, 3, 5, 6, 4, seed=1)
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.float16):
        assert_close(masked(a, b, mask=torch.ones(2, 1, 5, 6, 4, dtype=dtype)), masked(a, b), 1e-14)


def test_an_all_zero_mask_gives_zero(masked) -> None:
    a, b = _rand(1, 2, 4, 5, 6).requires_grad_(), _rand(1, 2, 4, 5, 6, seed=1).requires_grad_()
    loss = masked(a, b, mask=torch.zeros(1, 1, 4, 5, 6))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (a, b)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_windows_see_voxels_outside_the_mask() -> None:
    a, b = _rand(1, 1, 5, 5, 5), _rand(1, 1, 5, 5, 5, seed=1)
    mask = torch.zeros(1, 1, 5, 5, 5)
    mask[..., 2, 2, 2] = 1
    changed = a.clone()
    changed[..., 1, 2, 2] += 1
    assert uk.lncc_loss(a, b, mask=mask) == uk.lncc_loss(a, b, reduction="none")[0, 0, 2, 2, 2]
    assert uk.lncc_loss(changed, b, mask=mask) != uk.lncc_loss(a, b, mask=mask)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(1, 2, 4, 5, 6), torch.ones(2, 1, 4, 5, 6), torch.ones(1, 1, 4, 5, 5), torch.ones(1, 4, 5, 6)],
    ids=lambda mask: str(tuple(mask.shape)),
)
def test_a_mask_of_another_shape_is_refused(masked, mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask must be.*\(1, 1 or 3, 4, 5, 6\)"):
        masked(_rand(1, 3, 4, 5, 6), _rand(1, 3, 4, 5, 6), mask=mask)


def test_a_mask_that_needs_a_gradient_is_refused(masked) -> None:
    with pytest.raises(ValueError, match="detach"):
        masked(_rand(1, 1, 4), _rand(1, 1, 4), mask=torch.ones(1, 1, 4, requires_grad=True))


def test_pair_errors_print_both(masked) -> None:
    a = torch.zeros(1, 2, 4, 5, 6)
    for other in (a.half(), a[:, :1], a[..., :-1], a.to("meta")):
        with pytest.raises(ValueError, match=r"one shape, dtype and device.*float32.*;.*shape"):
            masked(a, other)
    with pytest.raises(TypeError, match="complex64"):
        masked(a.to(torch.complex64), a.to(torch.complex64))
    with pytest.raises(ValueError, match="1, 2 or 3 spatial"):
        masked(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="reduction must be one of 'none', 'mean', 'sum', got 'max'"):
        masked(a, a, reduction="max")


def test_lncc_window_per_axis_equals_a_sum_of_shifted_products() -> None:
    """Against a direct computation with unfold, one voxel at a time."""
    p, t = _rand(1, 1, 4, 5, 6), _rand(1, 1, 4, 5, 6, seed=1)
    size, weights = (3, 1, 5), make_window("gaussian", (3, 1, 5))
    w = torch.einsum("i,j,k->ijk", *(torch.tensor(row, dtype=torch.float64) for row in weights.weights))

    def windows(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, [2, 2, 0, 0, 1, 1])
        for axis, length in enumerate(size, start=2):
            padded = padded.unfold(axis, length, 1)
        return padded

    n = weights.volume
    wp, wt = windows(p), windows(t)
    total = lambda x: (x * w).sum(dim=(-3, -2, -1))  # noqa: E731
    cross = total(wp * wt) - total(wp) * total(wt) / n
    var_p, var_t = total(wp * wp) - total(wp) ** 2 / n, total(wt * wt) - total(wt) ** 2 / n
    expected = -(cross**2) / (var_p.clamp(min=1e-5) * var_t.clamp(min=1e-5))
    assert_close(uk.lncc_loss(p, t, kernel_size=size, kernel_type="gaussian", reduction="none"), expected, 1e-10)


def test_lncc_range_and_sign() -> None:
    p, noise = _rand(1, 1, 12, 12, 12), _rand(1, 1, 12, 12, 12, seed=1)
    inside = (slice(None), slice(None), *[slice(2, -2)] * 3)
    assert_close(uk.lncc_loss(p, 3 * p + 2, kernel_size=5, reduction="none")[inside], -torch.ones(1, 1, 8, 8, 8), 1e-6)
    assert_close(uk.lncc_loss(p, 1 - p, kernel_size=5, reduction="none")[inside], -torch.ones(1, 1, 8, 8, 8), 1e-6)
    assert -0.2 < uk.lncc_loss(p, noise, kernel_size=5, reduction="none")[inside].mean() < 0


def test_lncc_of_a_bright_ball_on_a_zero_background_leaves_no_residue() -> None:
    """Window sums by subtraction find correlation in the empty background after bright tissue."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij"))
    ball = (grid.norm(dim=0) < 0.4)[None, None] * (1000 + 100 * _rand(1, 1, 24, 24, 24).float())
    other = (grid.norm(dim=0) < 0.4)[None, None] * (1000 + 100 * _rand(1, 1, 24, 24, 24, seed=1).float())
    ncc = -uk.lncc_loss(ball, other, kernel_size=5, reduction="none")
    far = grid.norm(dim=0)[None, None] > 0.4 + 5 * 3**0.5 / 23 * 2
    assert far.any()
    assert torch.equal(ncc[far], torch.zeros_like(ncc[far]))


@pytest.mark.parametrize("spatial", [(1,), (2,), (1, 1), (1, 4, 5), (2, 2, 2), (1, 1, 1)])
def test_lncc_on_volumes_smaller_than_the_window(spatial: tuple[int, ...]) -> None:
    p, t = _rand(1, 2, *spatial).requires_grad_(), _rand(1, 2, *spatial, seed=1).requires_grad_()
    loss = uk.lncc_loss(p, t, kernel_size=7, smooth_nr=1e-2)
    assert loss.isfinite()
    assert torch.autograd.gradcheck(lambda p, t: uk.lncc_loss(p, t, kernel_size=7, smooth_nr=1e-2), (p, t))


@pytest.mark.parametrize("kernel_size", [2, 0, -3, (3, 3), (3, 4, 3)])
def test_a_bad_window_is_refused(kernel_size: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="kernel_size must be"):
        uk.lncc_loss(_rand(1, 1, 5, 5, 5), _rand(1, 1, 5, 5, 5), kernel_size=kernel_size)
    with pytest.raises(TypeError, match="kernel_size must be an int"):
        uk.lncc_loss(_rand(1, 1, 5), _rand(1, 1, 5), kernel_size=(3.0,))  # type: ignore[arg-type]


@pytest.mark.parametrize("spatial", [(6,), (5, 6), (4, 5, 6), (1, 5, 6)])
def test_forward_smoothness_is_the_sum_of_mean_squared_differences(spatial: tuple[int, ...]) -> None:
    dvf = _rand(2, len(spatial), *spatial)
    axes = [axis for axis in range(2, dvf.ndim) if dvf.shape[axis] > 1]
    differences = [torch.diff(dvf, dim=axis) for axis in axes]
    assert_close(uk.gradient_smoothness_loss(dvf), sum(d.pow(2).mean() for d in differences), 1e-12)
    assert_close(uk.gradient_smoothness_loss(dvf, penalty="l1"), sum(d.abs().mean() for d in differences), 1e-12)
    assert_close(uk.gradient_smoothness_loss(dvf, reduction="sum"), sum(d.pow(2).sum() for d in differences), 1e-12)
    map_ = uk.gradient_smoothness_loss(dvf, reduction="none")
    assert map_.shape == dvf.shape
    assert_close(map_.sum(), uk.gradient_smoothness_loss(dvf, reduction="sum"), 1e-12)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_smoothness_with_spacing_is_that_of_the_slope_in_mm(scheme: str) -> None:
    """A linear field of slope s per mm: each axis contributes s^2 whatever the voxel size."""
    spacing = (0.5, 1.0, 2.0)
    for axis, step in enumerate(spacing):
        ramp = torch.arange(6, dtype=torch.float64) * step * 0.3
        dvf = ramp.reshape([-1 if a == axis else 1 for a in range(3)]).expand(1, 3, 6, 6, 6)
        loss = uk.gradient_smoothness_loss(dvf, scheme=scheme, spacing=spacing)
        assert loss.item() == pytest.approx(0.3**2)


def test_central_differences_miss_a_checkerboard_and_forward_ones_see_it() -> None:
    board = (torch.arange(6) % 2).double().reshape(1, 1, 6)
    assert uk.gradient_smoothness_loss(board, scheme="central") == 0
    assert uk.gradient_smoothness_loss(board) == 1


def test_smoothness_of_a_single_voxel_is_zero() -> None:
    dvf = torch.ones(1, 3, 1, 1, 1, requires_grad=True)
    loss = uk.gradient_smoothness_loss(dvf)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, dvf)[0], torch.zeros(1, 3, 1, 1, 1))


def test_numpy_integers_are_windows() -> None:
    pair = _rand(1, 1, 5, 6, 7), _rand(1, 1, 5, 6, 7)
    expected = uk.lncc_loss(*pair, kernel_size=(3, 5, 3))
    assert torch.equal(uk.lncc_loss(*pair, kernel_size=np.array([3, 5, 3])), expected)
    assert torch.equal(uk.lncc_loss(*pair, kernel_size=np.int64(5)), uk.lncc_loss(*pair, kernel_size=5))


def test_one_spacing_holds_for_all_axes() -> None:
    dvf, gt = _rand(1, 3, 5, 6, 7), _rand(1, 3, 5, 6, 7)
    expected = uk.gradient_smoothness_loss(dvf, spacing=(2.0, 2.0, 2.0))
    assert torch.equal(uk.gradient_smoothness_loss(dvf, spacing=2.0), expected)
    assert torch.equal(uk.GradientSmoothnessLoss(spacing=2.0)(dvf), expected)
    for array in (np.array(2.0), torch.tensor(2.0), np.full(3, 2.0)):
        assert torch.equal(uk.gradient_smoothness_loss(dvf, spacing=array), expected)
        assert torch.equal(uk.GradientSmoothnessLoss(spacing=array)(dvf), expected)
    expected = uk.dvf_supervision_loss(dvf, gt, mse_weight=2.0, smooth_weight=0.5, spacing=[2.0, 2.0, 2.0])
    assert torch.equal(uk.DVFSupervisionLoss(2.0, 0.5, spacing=2.0)(dvf, gt), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: uk.dvf_supervision_loss(x, x, mse_weight="a"), TypeError, "mse_weight must be a number, got 'a'"),
        (
            lambda x: uk.dvf_supervision_loss(x, x, smooth_weight=float("nan")),
            ValueError,
            "smooth_weight must be a fin",
        ),
        (lambda x: uk.DVFSupervisionLoss(mse_weight=None), TypeError, "mse_weight must be a number, got None"),
        (lambda x: uk.lncc_loss(x, x, smooth_dr=-1), ValueError, "smooth_dr must be a finite number of at least 0"),
        (lambda x: uk.LNCCLoss(smooth_dr=-1), ValueError, "smooth_dr must be a finite number of at least 0"),
        (lambda x: uk.lncc_loss(x, x, smooth_nr="much"), TypeError, "smooth_nr must be a number, got 'much'"),
        (lambda x: uk.gradient_smoothness_loss(x, spacing="mm"), TypeError, "spacing must be a number, got 'mm'"),
        (lambda x: uk.gradient_smoothness_loss(x, spacing=-1.0), ValueError, "spacing must be 3 positive numbers"),
        (lambda x: uk.lncc_loss(x, x, kernel_size=None), TypeError, "kernel_size must be an int"),
        (lambda x: uk.lncc_loss(x, x, kernel_size="9"), TypeError, "kernel_size must be an int"),
        (lambda x: uk.lncc_loss(x, x, kernel_size=np.array(3)), TypeError, "kernel_size must be an int"),
        (lambda x: uk.gaussian_smooth(x, "wide"), TypeError, "sigma must be a number, got 'wide'"),
    ],
)
def test_bad_numbers_are_refused_by_name(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(_rand(1, 3, 5, 6, 7))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_a_bad_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacing must be 3 positive numbers"):
        uk.gradient_smoothness_loss(_rand(1, 3, 4, 4, 4), spacing=spacing)


def test_bad_names_are_refused() -> None:
    dvf = _rand(1, 3, 4, 4, 4)
    for arguments in ({"penalty": "l3"}, {"scheme": "backward"}, {"reduction": "max"}):
        with pytest.raises(ValueError, match="must be one of"):
            uk.gradient_smoothness_loss(dvf, **arguments)
    with pytest.raises(ValueError, match="kernel_type must be one of 'rectangular', 'triangular', 'gaussian'"):
        uk.lncc_loss(dvf, dvf, kernel_type="round")


def test_bending_energy_of_an_affine_field_is_zero_and_of_a_parabola_is_known() -> None:
    grid = torch.stack(torch.meshgrid(*[torch.arange(6, dtype=torch.float64)] * 3, indexing="ij"))[None]
    assert_close(uk.bending_energy_loss(2 * grid + 1), torch.zeros((), dtype=torch.float64), 1e-12)
    assert uk.bending_energy_loss(grid**2).item() == pytest.approx(4.0)  # second derivative 2, once per component


def test_dvf_mse_is_mse_loss() -> None:
    a, b = _rand(2, 3, 4, 5, 6), _rand(2, 3, 4, 5, 6, seed=1)
    for reduction in ("mean", "sum", "none"):
        assert_close(uk.dvf_mse_loss(a, b, reduction=reduction), F.mse_loss(a, b, reduction=reduction), 1e-14)


def test_modules_hold_the_arguments_of_the_functions() -> None:
    a, b = _rand(1, 3, 5, 5, 5), _rand(1, 3, 5, 5, 5, seed=1)
    lncc = uk.LNCCLoss(3, 5, "gaussian", "sum", 1e-3, 1e-2)
    expected = uk.lncc_loss(
        a, b, kernel_size=5, kernel_type="gaussian", reduction="sum", smooth_nr=1e-3, smooth_dr=1e-2
    )
    assert torch.equal(lncc(a, b), expected)
    assert "kernel_size=5, kernel_type='gaussian'" in repr(lncc)
    assert torch.equal(
        uk.GradientSmoothnessLoss("l1", "central", (1, 2, 3))(a),
        uk.gradient_smoothness_loss(a, penalty="l1", scheme="central", spacing=(1, 2, 3)),
    )
    assert torch.equal(uk.BendingEnergyLoss(True, "sum")(a), uk.bending_energy_loss(a, normalize=True, reduction="sum"))
    assert torch.equal(uk.DVFMSELoss("sum")(a, b), uk.dvf_mse_loss(a, b, reduction="sum"))
    with pytest.raises(ValueError, match=r"3 spatial dimensions.*set spatial_dims=2"):
        uk.LNCCLoss()(a[..., 0], b[..., 0])

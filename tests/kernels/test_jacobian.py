"""The Jacobian determinant and the folding loss: against torch.gradient, on maps whose determinant is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.ops.triton_backend import INTERPRETED

SHAPES = [(9,), (2,), (5, 6), (2, 19), (41, 3), (4, 5, 6), (2, 2, 2), (3, 2, 37), (3, 35, 4)]
FLAT = [(1,), (1, 6), (6, 1), (1, 1), (1, 4, 5), (4, 1, 5), (4, 5, 1), (1, 1, 6), (1, 6, 1), (6, 1, 1), (1, 1, 1)]
SPACING = (0.5, 2.0, 3.0)


def _backends() -> list[str]:
    found = uk.available_backends("folding")
    return [name for name in ("reference", "cpu", "triton") if name in found and (name != "triton" or INTERPRETED)]


@pytest.fixture(params=_backends(), autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with uk.use_backend(request.param):
        yield request.param


@pytest.fixture
def dtype(backend: str) -> torch.dtype:
    """The widest that the backend takes."""
    return torch.float32 if backend == "triton" else torch.float64


def _field(spatial: tuple[int, ...], dtype: torch.dtype, batch: int = 2, size: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand((batch, len(spatial), *spatial), generator=generator, dtype=torch.float64)
    return (2 * size * drawn - size).to(dtype).requires_grad_()


def _plain_determinant(ddf: torch.Tensor, spacing: tuple[float, ...] | None = None) -> torch.Tensor:
    """The determinant (B, 1, spatial...) by ``torch.gradient`` and ``torch.linalg.det``."""
    columns = [
        0 * ddf
        if ddf.shape[axis + 2] == 1
        else torch.gradient(ddf, spacing=1.0 if spacing is None else spacing[axis], dim=axis + 2)[0]
        for axis in range(ddf.ndim - 2)
    ]
    matrix = torch.stack(columns, dim=2).movedim((1, 2), (-2, -1))
    return torch.linalg.det(matrix + torch.eye(matrix.shape[-1], dtype=ddf.dtype)).unsqueeze(1)


def _with_gradient(output: torch.Tensor, ddf: torch.Tensor) -> list[torch.Tensor]:
    incoming = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output.detach(), *torch.autograd.grad(output, ddf, incoming)]


def _affine_field(matrix: torch.Tensor, spatial: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The displacement (1, n, spatial...) of ``x -> matrix x``."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in spatial), indexing="ij"))
    return (torch.einsum("ij,j...->i...", matrix, grid) - grid)[None].to(dtype)


@pytest.mark.parametrize("spacing", [None, SPACING], ids=["voxels", "mm"])
@pytest.mark.parametrize("spatial", SHAPES + FLAT, ids=str)
def test_agrees_with_plain_torch(
    spatial: tuple[int, ...], spacing: tuple[float, ...] | None, dtype: torch.dtype
) -> None:
    """Values and gradient: inside, at borders, on axes of one voxel and of two."""
    ddf = _field(spatial, dtype)
    wide = ddf.detach().double().requires_grad_()
    spacing = None if spacing is None else spacing[: len(spatial)]
    expected = _with_gradient(_plain_determinant(wide, spacing), wide)
    for found, wanted in zip(_with_gradient(uk.jacobian_determinant(ddf, spacing=spacing), ddf), expected, strict=True):
        assert_close(found, wanted, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("margin", [0.0, 0.9, -0.3])
@pytest.mark.parametrize("spatial", [(9,), (5, 6), (4, 5, 6), (3, 2, 37), (4, 1, 5), (4, 5, 1)], ids=str)
def test_folding_agrees_with_plain_torch(
    spatial: tuple[int, ...], margin: float, reduction: str, dtype: torch.dtype
) -> None:
    ddf = _field(spatial, dtype, size=1.8)
    wide = ddf.detach().double().requires_grad_()
    values = (margin - _plain_determinant(wide)).clamp(min=0)
    assert values.any()
    reduced = {"mean": values.mean(), "sum": values.sum(), "none": values}[reduction]
    found = _with_gradient(uk.folding_loss(ddf, margin=margin, reduction=reduction), ddf)  # type: ignore[arg-type]
    for one, other in zip(found, _with_gradient(reduced, wide), strict=True):
        assert_close(one, other, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("spatial", SHAPES + FLAT, ids=str)
def test_the_identity_has_determinant_1(spatial: tuple[int, ...]) -> None:
    ddf = torch.zeros(2, len(spatial), *spatial)
    assert torch.equal(uk.jacobian_determinant(ddf), torch.ones(2, 1, *spatial))
    assert torch.equal(uk.jacobian_determinant(ddf + 7), torch.ones(2, 1, *spatial))
    assert uk.folding_loss(ddf) == 0


@pytest.mark.parametrize("spatial", [(7,), (5, 6), (4, 5, 6)], ids=str)
def test_an_affine_map_has_the_determinant_of_its_matrix_everywhere(
    spatial: tuple[int, ...], dtype: torch.dtype
) -> None:
    dims = len(spatial)
    matrix = torch.tensor([[1.1, 0.2, -0.1], [0.05, 0.9, 0.3], [-0.2, 0.1, 1.2]], dtype=torch.float64)[:dims, :dims]
    ddf = _affine_field(matrix, spatial, dtype)
    expected = matrix.det().expand(1, 1, *spatial)
    assert_close(uk.jacobian_determinant(ddf), expected, LOSS_TOLERANCE[dtype])
    assert_close(uk.jacobian_determinant(2.5 * ddf, spacing=2.5), expected, LOSS_TOLERANCE[dtype])


def test_a_field_in_mm_has_the_determinant_of_the_same_field_in_voxels(dtype: torch.dtype) -> None:
    ddf = _field((4, 5, 6), dtype).detach()
    in_mm = ddf * torch.tensor(SPACING, dtype=dtype).reshape(-1, 1, 1, 1)
    found = uk.jacobian_determinant(in_mm, spacing=SPACING)
    assert_close(found, uk.jacobian_determinant(ddf), GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (0, 2)])
def test_swapping_two_axes_turns_the_sign(axes: tuple[int, int], dtype: torch.dtype) -> None:
    order = [0, 1, 2]
    order[axes[0]], order[axes[1]] = axes[1], axes[0]
    ddf = _affine_field(torch.eye(3, dtype=torch.float64)[order], (4, 5, 6), dtype)
    assert_close(uk.jacobian_determinant(ddf), -torch.ones(1, 1, 4, 5, 6), LOSS_TOLERANCE[dtype])
    assert_close(uk.folding_loss(ddf), torch.tensor(1.0), LOSS_TOLERANCE[dtype])
    assert_close(uk.folding_loss(ddf, margin=0.5), torch.tensor(1.5), LOSS_TOLERANCE[dtype])


def test_borders_take_one_sided_differences() -> None:
    ddf = torch.tensor([[[0.0, 1.0, 4.0, 9.0]]])
    assert uk.jacobian_determinant(ddf).tolist() == [[[2.0, 3.0, 5.0, 6.0]]]
    assert uk.jacobian_determinant(ddf, spacing=0.5).tolist() == [[[3.0, 5.0, 9.0, 11.0]]]


def test_no_folding_has_no_gradient() -> None:
    """Neither where the determinant is the margin itself."""
    ddf = torch.zeros(1, 3, 4, 5, 6, requires_grad=True)
    loss = uk.folding_loss(ddf, margin=1.0)
    assert loss == 0
    assert not torch.autograd.grad(loss, ddf)[0].any()
    assert torch.autograd.grad(uk.folding_loss(ddf, margin=1.5), ddf)[0].any()


def test_a_step_down_the_gradient_unfolds() -> None:
    ddf = _affine_field(torch.diag(torch.tensor([1.0, 1.0, -0.1], dtype=torch.float64)), (4, 5, 6), torch.float32)
    ddf.requires_grad_()
    before = uk.folding_loss(ddf)
    (gradient,) = torch.autograd.grad(before, ddf)
    assert uk.folding_loss(ddf.detach() - 0.1 * gradient / gradient.abs().max()) < before


@pytest.mark.parametrize("spatial", [(6,), (4, 5), (4, 5, 6), (3, 4, 40)], ids=str)
def test_nan_spoils_only_the_voxels_that_take_it_in(spatial: tuple[int, ...], backend: str) -> None:
    """One in each of the last component's voxels in turn: those whose differences read it, and no others."""
    numel = torch.Size(spatial).numel()
    places = range(0, numel, numel // 3 if backend == "triton" else 7 if numel > 50 else 1)  # the interpreter is slow
    for place in places:
        ddf = _field(spatial, torch.float32, batch=1).detach()
        ddf[0, -1].view(-1)[place] = torch.nan
        ddf.requires_grad_()
        wide = ddf.detach().double().requires_grad_()
        determinant = uk.jacobian_determinant(ddf)
        expected = torch.zeros(spatial, dtype=torch.bool)
        for axis in range(len(spatial)):
            expected |= torch.gradient(ddf.detach()[0, -1], dim=axis)[0].isnan()
        assert torch.equal(determinant.isnan()[0, 0], expected)
        folding = uk.folding_loss(ddf, margin=0.9, reduction="none")
        assert torch.equal(folding.isnan()[0, 0], expected)
        assert uk.folding_loss(ddf).isnan()
        with uk.use_backend("reference"):
            oracle = uk.folding_loss(wide, margin=0.9, reduction="none")
        found, wanted = _with_gradient(folding, ddf)[1], _with_gradient(oracle, wide)[1]
        assert torch.equal(found.isnan(), wanted.isnan())


def test_an_axis_of_one_voxel_hides_nan_along_itself() -> None:
    """Its derivative is 0 whatever the values."""
    assert uk.jacobian_determinant(torch.full((1, 1, 1), torch.nan)).tolist() == [[[1.0]]]
    assert uk.jacobian_determinant(torch.full((1, 3, 1, 1, 1), torch.inf)).tolist() == [[[[[1.0]]]]]


@pytest.mark.parametrize("spatial", [(0,), (0, 4), (4, 0, 5), (4, 5, 0)], ids=str)
def test_fields_without_voxels(spatial: tuple[int, ...]) -> None:
    ddf = torch.zeros(2, len(spatial), *spatial, requires_grad=True)
    determinant = uk.jacobian_determinant(ddf)
    assert determinant.shape == (2, 1, *spatial)
    assert torch.autograd.grad(determinant.sum(), ddf)[0].shape == ddf.shape
    assert uk.folding_loss(ddf, reduction="sum") == 0
    assert uk.folding_loss(ddf).isnan()


def test_outputs_and_their_dtypes(dtype: torch.dtype) -> None:
    ddf = torch.zeros(2, 2, 3, 4)
    for given, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (dtype, dtype)):
        assert uk.jacobian_determinant(ddf.to(given)).dtype == expected
        assert uk.folding_loss(ddf.to(given)).dtype == expected
    assert uk.folding_loss(ddf, reduction="none").shape == (2, 1, 3, 4)


def test_the_module_is_the_function() -> None:
    ddf = _field((4, 5, 6), torch.float32).detach()
    loss = uk.FoldingLoss(spacing=SPACING, margin=0.5, reduction="sum")
    assert torch.equal(loss(ddf), uk.folding_loss(ddf, spacing=SPACING, margin=0.5, reduction="sum"))
    assert repr(loss) == "FoldingLoss(spacing=[0.5, 2.0, 3.0], margin=0.5, reduction='sum')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing": 0.0}, r"spacing must be 3 positive numbers \(mm per voxel, one per axis\).*got 0.0"),
        ({"spacing": (1.0, 2.0)}, r"spacing must be 3 positive numbers"),
        ({"margin": float("nan")}, "margin must be a finite number, got nan"),
        ({"reduction": "max"}, "reduction must be one of 'none', 'mean', 'sum', got 'max'"),
    ],
    ids=["zero", "two", "nan", "max"],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    ddf = torch.zeros(1, 3, 4, 5, 6)
    with pytest.raises(ValueError, match=message):
        uk.folding_loss(ddf, **arguments)
    if "spacing" in arguments:
        with pytest.raises(ValueError, match=message):
            uk.jacobian_determinant(ddf, **arguments)


@pytest.mark.parametrize("function", [uk.jacobian_determinant, uk.folding_loss])
def test_bad_fields(function: Any) -> None:
    with pytest.raises(ValueError, match=r"ddf must have one component per spatial axis: shape \(B, 3, spatial...\)"):
        function(torch.zeros(1, 2, 4, 5, 6))
    with pytest.raises(ValueError, match="1, 2 or 3 spatial dimensions"):
        function(torch.zeros(1, 3))
    with pytest.raises(TypeError, match=r"ddf must be float64.*int64"):
        function(torch.zeros(1, 1, 4, dtype=torch.int64))


@pytest.mark.skipif("cpu" not in uk.available_backends("folding"), reason="no CPU library")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_same_bits_for_any_number_of_threads() -> None:
    ddf = _field((37, 45, 29), torch.float32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                _with_gradient(uk.jacobian_determinant(ddf), ddf)
                + _with_gradient(uk.folding_loss(ddf, margin=0.7), ddf)
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))

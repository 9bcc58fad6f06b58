"""The warp against ``grid_sample``, at the places where interpolation goes wrong, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernels.cases import SPATIAL, Case, widest, with_backends
from kernels.compare import assert_close

import usreg_kernels as uk
from tools.tolerances import GRADIENT_TOLERANCE, LOSS_TOLERANCE
from usreg_kernels.fields import INTERPOLATIONS, PADDING_MODES

IMAGE_SIZE = (5, 9, 17)  # a power of two plus one: grid_sample's units hold voxel centres exactly
OUTPUT_SIZE = (4, 5, 6)
BACKENDS = pytest.mark.parametrize("backend", [backend for _, backend in with_backends([Case("warp")])])
IN_FLOAT64 = pytest.mark.parametrize("backend", [b for _, b in with_backends([Case("warp")], torch.float64)])


def voxel_coordinates(size: tuple[int, ...]) -> torch.Tensor:
    """(1, n, spatial...): each voxel's own index."""
    axes = [torch.arange(length, dtype=torch.float64) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def grid_sample(image: torch.Tensor, coordinates: torch.Tensor, mode: str, padding_mode: str) -> torch.Tensor:
    """PyTorch's values at voxel coordinates (B, n, spatial...), for images of at least two voxels along each axis."""
    last = torch.tensor(image.shape[2:]).reshape(1, -1, *[1] * (image.ndim - 2)) - 1
    grid = (2 * coordinates / last - 1).movedim(1, -1).flip(-1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=True)


def displacements(kind: str, dims: int) -> torch.Tensor:
    """Up to 20 voxels: anywhere, or at voxel centres and half way between them, on the border and far outside."""
    generator = torch.Generator().manual_seed(4)
    values = 40 * torch.rand(2, dims, *OUTPUT_SIZE[:dims], generator=generator, dtype=torch.float64) - 20
    return values if kind == "anywhere" else (2 * values).round() / 2


@pytest.mark.parametrize("kind", ["anywhere", "centres and halves"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", INTERPOLATIONS)
@pytest.mark.parametrize("dims", [2, 3])
@IN_FLOAT64
def test_equals_grid_sample(backend: str, dims: int, mode: str, padding_mode: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(2, 3, *IMAGE_SIZE[:dims], generator=generator, dtype=torch.float64).requires_grad_()
    ddf = displacements(kind, dims).requires_grad_()
    with uk.use_backend(backend):
        warped = uk.warp(image, ddf, mode=mode, padding_mode=padding_mode)
        incoming = torch.rand(warped.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(warped, (image, ddf), incoming)
    expected = grid_sample(image, voxel_coordinates(OUTPUT_SIZE[:dims]) + ddf, mode, padding_mode)
    assert (warped - expected).abs().max() <= 1e-12
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (image, ddf), incoming), strict=True):
        assert (gradient - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@IN_FLOAT64
def test_an_affine_is_the_field_that_it_makes(backend: str, padding_mode: str) -> None:
    image, ddf, affine = Case("warp", given=("image", "ddf", "affine")).tensors()
    size = tuple(ddf.shape[2:])
    voxels = voxel_coordinates(size).flatten(2)[0]
    made = affine[:, :, :3] @ voxels + affine[:, :, 3:] - voxels
    field = ddf + made.reshape(ddf.shape)
    with uk.use_backend(backend):
        warped = uk.warp(image, ddf, affine=affine, padding_mode=padding_mode)
        expected = uk.warp(image, field, padding_mode=padding_mode)
        only = uk.warp(image, affine=affine, size=size, padding_mode=padding_mode)
        assert_close(only, uk.warp(image, made.reshape(ddf.shape), padding_mode=padding_mode), 1e-12)
    assert_close(warped, expected, 1e-12)
    found = torch.autograd.grad(warped.sin().sum(), (image, ddf, affine))
    wanted = torch.autograd.grad(expected.sin().sum(), (image, ddf, affine))
    for gradient, oracle in zip(found, wanted, strict=True):
        assert_close(gradient, oracle, 1e-11)


@pytest.mark.skipif("cpu" not in uk.available_backends("warp"), reason="no CPU library")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("mode", INTERPOLATIONS)
def test_many_channels_of_large_planes(mode: str, dtype: torch.dtype) -> None:
    """The CPU library goes through the output once for each group of such channels."""
    generator = torch.Generator().manual_seed(6)
    image = torch.rand(1, 7, 3, 260, 300, generator=generator).to(dtype)
    ddf = (8 * torch.randn(1, 3, 2, 20, 30, generator=generator)).to(dtype)
    affine = torch.eye(3, 4, dtype=torch.float64)[None] + 0.1
    results = []
    for backend, precision in (("cpu", dtype), ("reference", torch.float64)):
        leaves = [image.to(precision), ddf.to(precision), affine.to(torch.promote_types(precision, torch.float32))]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with uk.use_backend(backend):
            warped = uk.warp(*leaves[:2], affine=leaves[2], mode=mode)
        incoming = torch.linspace(0.5, 1.5, warped.numel()).reshape(warped.shape).to(warped)
        results.append([warped, *torch.autograd.grad(warped, leaves, incoming)])
    for found, wanted in zip(*results, strict=True):
        assert_close(found, wanted, GRADIENT_TOLERANCE[dtype])


@BACKENDS
def test_one_affine_for_the_whole_batch(backend: str) -> None:
    image = Case("warp").tensors(widest(backend))[0]
    affine = torch.eye(3, 4, dtype=image.dtype)
    affine[:, 3] = torch.tensor([0.25, -0.5, 1.5])
    affine.requires_grad_()
    with uk.use_backend(backend):
        warped = uk.warp(image, affine=affine)
        expected = uk.warp(image, affine=affine.expand(2, -1, -1))
        assert torch.equal(warped, expected)
        (found,) = torch.autograd.grad(warped.sin().sum(), affine)
        (wanted,) = torch.autograd.grad(expected.sin().sum(), affine)
    assert_close(found, wanted, LOSS_TOLERANCE[widest(backend)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", INTERPOLATIONS)
@BACKENDS
def test_coordinates_that_are_not_finite(backend: str, mode: str, padding_mode: str, bad: float) -> None:
    """NaN there, and only there; the image gets a gradient from the other voxels only."""
    image, ddf = (tensor.detach() for tensor in Case("warp", batch=1).tensors(widest(backend)))
    broken = ddf.clone()
    broken[0, 1, 2, 3, 4] = bad
    results = []
    with uk.use_backend(backend):
        for field in (ddf, broken):
            leaves = [image.clone().requires_grad_(), field.requires_grad_()]
            warped = uk.warp(*leaves, mode=mode, padding_mode=padding_mode)
            incoming = torch.ones_like(warped)
            incoming[..., 2, 3, 4] = 0 if field is ddf else 1
            results.append([warped.detach(), *torch.autograd.grad(warped, leaves, incoming)])
    (warped, image_gradient, field_gradient), (found, found_image_gradient, found_field_gradient) = results
    assert found[..., 2, 3, 4].isnan().all()
    assert torch.equal(found_image_gradient, image_gradient)
    if mode == "nearest":
        assert not found_field_gradient.any()
    else:
        assert found_field_gradient[..., 2, 3, 4].isnan().all()
    for tensor, other in ((found, warped), (found_field_gradient, field_gradient)):
        tensor[..., 2, 3, 4] = other[..., 2, 3, 4] = 0
        assert torch.equal(tensor, other)


@pytest.mark.parametrize("far", [1e9, -1e9, 3e38, -3e38])
@pytest.mark.parametrize("mode", INTERPOLATIONS)
@BACKENDS
def test_far_outside(backend: str, mode: str, far: float) -> None:
    image, ddf = (tensor.detach() for tensor in Case("warp").tensors(widest(backend)))
    with uk.use_backend(backend):
        edge = uk.warp(image, torch.full_like(ddf, far), mode=mode)
        zeros = uk.warp(image, torch.full_like(ddf, far), mode=mode, padding_mode="zeros")
        reflected = uk.warp(image, torch.full_like(ddf, far), mode=mode, padding_mode="reflection")
    corner = -1 if far > 0 else 0
    assert torch.equal(edge, image[:, :, corner, corner, corner, None, None, None].expand_as(edge))
    assert not zeros.any()
    assert ((reflected >= image.amin()) & (reflected <= image.amax())).all()


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@BACKENDS
def test_an_axis_of_one_voxel(backend: str, padding_mode: str) -> None:
    """Its neighbours are the padding."""
    image = torch.tensor([2.0, 4.0], dtype=widest(backend)).reshape(1, 1, 1, 2, 1)
    shifts = torch.tensor([-1.5, -0.25, 0.0, 0.25, 1.5], dtype=image.dtype)
    ddf = image.new_zeros(1, 3, 1, 5, 1)
    ddf[0, 0, 0, :, 0] = shifts
    ddf[0, 1, 0, :, 0] = -torch.arange(5)  # the first voxel along the second axis
    with uk.use_backend(backend):
        warped = uk.warp(image, ddf, padding_mode=padding_mode).flatten()
    weights = (1 - shifts.abs()).clamp(min=0) if padding_mode == "zeros" else torch.ones_like(shifts)
    assert_close(warped, 2 * weights, LOSS_TOLERANCE[widest(backend)])


@BACKENDS
def test_many_voxels_that_look_at_the_same_one(backend: str) -> None:
    """The gradient to the image is a sum; on every run, its bits are the same."""
    shape = (1, 2, 6, 7, 20)
    image = torch.rand(shape, dtype=widest(backend), generator=torch.Generator().manual_seed(1)).requires_grad_()
    ddf = -voxel_coordinates(shape[2:]).to(image.dtype) + 2.5
    with uk.use_backend(backend):
        gradients = [torch.autograd.grad(uk.warp(image, ddf).square().sum(), image)[0] for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert gradients[0].count_nonzero() == 2 * 8
    with uk.use_backend("reference"):
        (expected,) = torch.autograd.grad(uk.warp(image.double(), ddf.double()).square().sum(), image)
    assert_close(gradients[0], expected, GRADIENT_TOLERANCE[widest(backend)])


@pytest.mark.parametrize("exponent", [-120, -100, 100, 120])
@BACKENDS
def test_gradients_of_any_magnitude(backend: str, exponent: int) -> None:
    """The powers of two of the incoming gradient are those of all others."""
    image, ddf = Case("warp", batch=1).tensors(widest(backend))
    with uk.use_backend(backend):
        warped = uk.warp(image, ddf)
        incoming = torch.rand(warped.shape, generator=torch.Generator().manual_seed(6), dtype=warped.dtype)
        wanted = torch.autograd.grad(warped, (image, ddf), incoming, retain_graph=True)
        found = torch.autograd.grad(warped, (image, ddf), incoming * 2.0**exponent)
    for gradient, other in zip(found, wanted, strict=True):
        assert_close(gradient.double() * 2.0**-exponent, other, LOSS_TOLERANCE[widest(backend)])


@BACKENDS
def test_incoming_gradients_that_are_not_finite(backend: str) -> None:
    """They reach the voxels of the image that their voxels look at, and no others."""
    image, ddf = (tensor.detach() for tensor in Case("warp", batch=1).tensors(widest(backend)))
    incoming = torch.rand(image.shape, generator=torch.Generator().manual_seed(7), dtype=image.dtype)
    incoming[0, 0, 0, 0, 0] = float("inf")
    incoming[0, 0, 1, 0, 0] = float("-inf")  # they share voxels of the image
    incoming[0, 0, 3, 4, 0] = float("-inf")
    incoming[0, 1, 0, 3, 4] = float("nan")
    results = []
    for name, dtype in ((backend, image.dtype), ("reference", torch.float64)):
        leaves = [image.to(dtype).requires_grad_(), ddf.to(dtype).requires_grad_()]
        with uk.use_backend(name):
            results.append(torch.autograd.grad(uk.warp(*leaves), leaves, incoming.to(dtype)))
    (found, found_field), (expected, expected_field) = results
    assert len(expected[expected.isinf()].unique()) == 2
    assert expected.isnan().any()
    for gradient, wanted in ((found, expected), (found_field, expected_field)):
        kinds = [torch.isposinf, torch.isneginf, torch.isnan]
        if gradient is found_field:  # a sum of infinite and finite terms may be either, by how it is ordered
            assert torch.equal(gradient.isfinite(), wanted.isfinite())
        else:
            assert all(torch.equal(kind(gradient), kind(wanted)) for kind in kinds)
        finite = wanted.isfinite()
        assert_close(gradient[finite], wanted[finite], GRADIENT_TOLERANCE[widest(backend)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@BACKENDS
def test_half_precision_has_float32_coordinates_and_values(backend: str, dtype: torch.dtype) -> None:
    """Coordinate 300.5 does not exist in bfloat16: a field of halves reaches it in float32."""
    image = torch.arange(600).reshape(1, 1, 600).to(dtype)
    ddf = torch.full((1, 1, 600), 0.5, dtype=dtype)
    with uk.use_backend(backend):
        warped = uk.warp(image, ddf)
        expected = uk.warp(image.float(), ddf.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(uk.warp(image, ddf), warped)
    assert warped.dtype == torch.float32
    assert torch.equal(warped, expected)


def test_dtypes_that_differ_are_widened() -> None:
    image, ddf = Case("warp").tensors(torch.float32)
    assert uk.warp(image, ddf.half()).dtype == torch.float32
    assert uk.warp(image, ddf.double()).dtype == torch.float64
    assert uk.warp(image.half(), affine=torch.eye(3, 4)).dtype == torch.float32
    leaf = ddf.detach().half().requires_grad_()
    (gradient,) = torch.autograd.grad(uk.warp(image, leaf).sum(), leaf)
    assert gradient.dtype == torch.float16


@BACKENDS
def test_composition_is_one_warp_after_the_other(backend: str) -> None:
    """Exactly, for whole voxels within the image."""
    outer = torch.ones(1, 2, 9, 8, dtype=widest(backend))
    outer[:, 1] = -2
    inner = torch.zeros_like(outer)
    inner[:, 0, :4, 3:] = 2
    image = torch.rand(1, 1, 9, 8, dtype=widest(backend))
    with uk.use_backend(backend):
        both = uk.warp(image, uk.compose_ddf(outer, inner), padding_mode="zeros")
        expected = uk.warp(uk.warp(image, outer, padding_mode="zeros"), inner, padding_mode="zeros")
    assert torch.equal(both, expected)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", INTERPOLATIONS)
def test_an_image_of_more_than_2_31_voxels(mode: str, padding_mode: str) -> None:
    """At its far corner, beyond indices of 31 bits, as in a copy of that corner. Only pages in use take memory.

    The corner starts at even indices, so that halves round to the same voxels.
    """
    if "cpu" not in uk.available_backends("warp"):
        pytest.skip("no CPU library")
    image = torch.empty(1, 1, 2, 32768, 32769)
    corner = torch.rand(1, 1, 2, 40, 41, generator=torch.Generator().manual_seed(1))
    image[..., -40:, -41:] = corner
    ddf = torch.randint(-32, 33, (1, 3, 2, 3, 5), generator=torch.Generator().manual_seed(2)) / 16  # exact at 32768
    results = []
    with uk.use_backend("cpu"):
        for volume in (image, corner):
            affine = torch.eye(3, 4)
            affine[1:, 3] = torch.tensor([volume.shape[-2] - 3.0, volume.shape[-1] - 5.0])
            leaf = ddf.clone().requires_grad_()
            warped = uk.warp(volume, leaf, affine=affine, mode=mode, padding_mode=padding_mode)
            results.append([warped.detach(), *torch.autograd.grad(warped.square().sum(), leaf)])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a ddf, an affine, or both"),
        ({"ddf": torch.zeros(2, 2, 5, 6, 7)}, r"one component per spatial axis.*\(B, 3"),
        ({"ddf": torch.zeros(1, 3, 5, 6, 7)}, r"ddf must have.*\(2, 3, 5, 6, 7\)"),
        ({"ddf": torch.zeros(2, 2, 6, 7)}, r"ddf must have"),
        ({"affine": torch.eye(4)}, r"leave out the last row"),
        ({"affine": torch.eye(3)}, r"affine must have shape"),
        ({"affine": torch.zeros(3, 3, 4)}, r"affine must have shape"),
        ({"affine": torch.eye(3, 4), "size": (4, 5)}, "size must be 3 integers"),
        ({"affine": torch.eye(3, 4), "size": (4, 5, -1)}, "size must be 3 integers"),
        ({"affine": torch.eye(3, 4), "size": (4, 5, 6.5)}, "size must be 3 integers"),
        ({"affine": torch.eye(3, 4), "size": (4, 5, "6")}, "size must be 3 integers"),
        ({"ddf": torch.zeros(2, 3, 5, 6, 7), "size": (4, 5, 6)}, "size must be that of the ddf"),
        ({"ddf": torch.zeros(2, 3, 5, 6, 7), "mode": "trilinear"}, "mode must be one of 'bilinear', 'nearest'"),
        ({"ddf": torch.zeros(2, 3, 5, 6, 7), "padding_mode": "edge"}, "padding_mode must be one of 'border'"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uk.warp(torch.zeros(2, 1, *SPATIAL[3]), **arguments)


def test_an_image_without_voxels() -> None:
    with pytest.raises(ValueError, match="at least one voxel"):
        uk.warp(torch.zeros(1, 1, 0, 4), torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match="at least 1 voxels"):
        uk.compose_ddf(torch.zeros(1, 2, 0, 4), torch.zeros(1, 2, 0, 4))
    assert uk.warp(torch.zeros(1, 1, 3, 4), torch.zeros(1, 2, 0, 3)).shape == (1, 1, 0, 3)

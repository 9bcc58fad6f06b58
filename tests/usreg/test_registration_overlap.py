"""The term of the labels beside a registration's loss: that of whole channels, in a part of their memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from usreg.losses.lncc_dice import DiceTerm
from usreg.registration.inputs.intensities import Scaling
from usreg.registration.inputs.preparing import Volume, make_side
from usreg.registration.inputs.sides import Side
from usreg.registration.inputs.structures import AT_A_TIME
from usreg.registration.stages.overlap import Overlap
from usreg.registration.stages.similarity import Similarity
from usreg.spatial import Affine, Grid
from usreg_kernels import gaussian_smooth, warp

SIZE = (30, 26, 28)
MSE = {"name": "mse"}


def pair(size: tuple[int, int, int] = SIZE, structures: int = 11, speckled: bool = False) -> tuple[Side, Side]:
    """Structures of all sizes, also at the ends of the grid; those of the moving side lie a bit elsewhere."""
    generator = torch.Generator().manual_seed(3)
    grid, sides, labels = Grid(size, np.eye(4)), [], []
    noise = gaussian_smooth(torch.randn(1, structures, *size, generator=generator), 0.0 if speckled else 3.0)
    for shift in (0, 2):
        moved = noise.roll(shift, dims=-1) + 0.01 * torch.randn(noise.shape, generator=generator)
        labels.append(moved.argmax(dim=1).add(1).float())
    image = Volume(torch.rand(1, *size, generator=generator), grid)
    volumes = [Volume(label, grid) for label in labels]
    for name, own, other in (("fixed", *volumes), ("moving", *volumes[::-1])):
        sides.append(make_side(name, image, Scaling(), label=own, other_label=other))
    return sides[0], sides[1]


def whole(side: Side, moving: bool = False, factor: float = 1) -> torch.Tensor:
    """(1, L, D, H, W): the labels as channels of their level."""
    return side.levels([factor], moving=moving, labels=True)[0].image[:, len(side.image) :]


def field_of(kind: str, size: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    if kind == "zero":
        return torch.zeros(1, 3, *size)
    if kind == "whole voxels":
        return torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, *size).contiguous()
    rough = torch.randn(1, 3, *size, generator=generator)
    if kind == "far":
        return 12 * rough
    return gaussian_smooth(rough, 2.0) * 15


def with_gradient(value: torch.Tensor, leaf: torch.Tensor) -> tuple[float, torch.Tensor]:
    return value.item(), torch.autograd.grad(value, leaf)[0]


def compare(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert other[1].abs().max() > 0
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-5 * float(other[1].abs().max()))


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("kind", ["zero", "whole voxels", "smooth", "far"])
def test_value_and_gradient_under_a_field_are_those_of_whole_channels(kind: str, factor: float) -> None:
    fixed, moving = pair((52, 50, 48) if factor > 1 else SIZE)
    overlap = Similarity(MSE, fixed, moving, 0.7).levels(fixed, moving, [factor])[1][0].overlap
    target, source = whole(fixed, factor=factor), whole(moving, True, factor)
    ddf = field_of(kind, target.shape[2:]).requires_grad_()
    assert overlap is not None
    found = with_gradient(3 * overlap.of_field(ddf), ddf)
    compare(found, with_gradient(3 * 0.7 * DiceTerm()(warp(source, ddf), target), ddf))


@pytest.mark.parametrize("kind", ["identity", "turned", "flattened"])
def test_value_and_gradient_under_an_affine_are_those_of_whole_channels(kind: str) -> None:
    fixed, moving = pair()
    target, source = whole(fixed), whole(moving, True)
    affine = torch.eye(3, 4, dtype=torch.float64)
    if kind == "turned":
        affine += 0.1 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        affine[:, 3] += 4
    if kind == "flattened":  # all voxels see one plane
        affine[0] = torch.tensor([0.0, 0.0, 0.0, 14.3])
    affine.requires_grad_()
    overlap = Overlap(fixed.label_levels([1])[0], moving.label_levels([1], moving=True)[0])
    found = with_gradient(overlap.of_affine(affine), affine)
    seen = warp(source, affine=affine.float(), size=target.shape[2:])
    compare(found, with_gradient(DiceTerm()(seen, target), affine))


def test_slices_and_structures_that_are_missing() -> None:
    """On a coarse level of a slice some structures of single voxels are on one side only, some nowhere."""
    fixed, moving = pair((1, 40, 44), 30, speckled=True)
    target, source = whole(fixed), whole(moving, True)
    fixed.labels.crops[3] = moving.labels.crops[4] = None  # type: ignore[union-attr, index]
    fixed.labels.crops[5] = moving.labels.crops[5] = None  # type: ignore[union-attr, index]
    target[:, [3, 5]] = 0
    source[:, [4, 5]] = 0
    overlap = Overlap(fixed.label_levels([1])[0], moving.label_levels([1], moving=True)[0])
    ddf = field_of("smooth", target.shape[2:]).requires_grad_()
    compare(with_gradient(overlap.of_field(ddf), ddf), with_gradient(DiceTerm()(warp(source, ddf), target), ddf))
    away = torch.full_like(ddf, 100.0)
    assert overlap.of_field(away).item() == pytest.approx(DiceTerm()(warp(source, away), target).item(), rel=1e-6)


def test_a_field_that_is_not_finite_is_not_hidden() -> None:
    fixed, moving = pair()
    overlap = Overlap(fixed.label_levels([1])[0], moving.label_levels([1], moving=True)[0])
    ddf = torch.zeros(1, 3, *SIZE)
    ddf[0, 1, 3, 4, 5] = torch.nan
    assert overlap.of_field(ddf).isnan()
    assert overlap.of_affine(torch.full((3, 4), torch.nan, dtype=torch.float64)).isnan()


class Largest(TorchDispatchMode):
    """The most numbers that an operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_no_more_than_a_few_channels_are_there_at_a_time() -> None:
    voxels = 30 * 26 * 28
    with Largest() as largest:
        fixed, moving = pair()
        similarity = Similarity(MSE, fixed, moving, 1.0)
        largest.numbers = 0
        (_, (level,)) = similarity.levels(fixed, moving.on(fixed.grid, Affine(np.eye(4))), [1])
        assert largest.numbers <= AT_A_TIME * voxels
        assert level.overlap is not None
        ddf = field_of("smooth", SIZE).requires_grad_()
        largest.numbers = 0
        level.overlap.of_field(ddf).backward()
    assert largest.numbers <= 3 * voxels

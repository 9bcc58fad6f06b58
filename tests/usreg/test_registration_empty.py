"""Voxels without data, and the margin of masks, as around the cone of an ultrasound volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import usreg
from usreg.errors import ConfigError, DataError
from usreg.registration.inputs.given import with_data
from usreg.registration.inputs.preparing import Volume
from usreg.registration.inputs.sides import Side
from usreg.registration.stages.settings import load_stages
from usreg.registration.stages.similarity import LOST, Similarity, with_margin
from usreg.spatial import Grid
from usreg_kernels import gaussian_smooth

SIZE = (26, 28, 30)
GRID = Grid(SIZE, np.eye(4))


def texture(seed: int = 0) -> torch.Tensor:
    """(D, H, W), smooth noise from above 0 to 1."""
    noise = gaussian_smooth(torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(seed)), 1.5)[0, 0]
    return 0.1 + 0.9 * (noise - noise.min()) / (noise.max() - noise.min())


def cone() -> torch.Tensor:
    """(D, H, W), true in a wedge that gets wider along the first axis."""
    z, y, _ = torch.meshgrid(*(torch.arange(length) for length in SIZE), indexing="ij")
    return (y - 14).abs() <= 3 + z // 2


def test_the_margin_of_a_box_is_as_wide_as_said() -> None:
    mask = torch.zeros(1, 1, 20, 20, 20)
    mask[..., 3:17, 4:18, 0:14] = 1
    expected = torch.zeros_like(mask)
    expected[..., 5:15, 6:16, 2:12] = 1
    assert torch.equal(with_margin(mask, 2), expected)


def test_the_margin_leaves_a_part_of_the_mask() -> None:
    mask = torch.zeros(1, 1, 11, 11, 11)
    mask[..., 2:9, 2:9, 2:9] = 1
    left = with_margin(mask, 5)
    assert left.sum() == 5**3  # 3**3 would be less than a quarter of 7**3
    assert left.sum() >= (1 - LOST) * mask.sum()


def test_a_slice_has_no_margin_across_it() -> None:
    left = with_margin(torch.ones(1, 1, 1, 20, 20), 3)
    assert left.sum() == 14**2


def test_small_gaps_hold_data_and_the_outside_does_not() -> None:
    image = torch.where(cone(), texture(), torch.zeros(()))
    image[18:20, 12:15, 14:17] = 0  # a shadow
    found = with_data("fixed", Volume(image[None], GRID), 0.0).voxels[0]
    assert bool(found[cone()].all())
    assert found[:4, :4].sum() == 0
    assert found.sum() < 1.1 * cone().sum()


@pytest.mark.parametrize(
    ("voxels", "empty", "message"),
    [
        (texture(), 0.0, r"fixed_empty is 0, and no voxel of the fixed image has that value; its lowest one is 0.1"),
        (torch.zeros(SIZE), 0.0, "fixed_empty is 0, and all voxels of the fixed image have that value"),
    ],
)
def test_values_that_do_not_say_what_is_empty(voxels: torch.Tensor, empty: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_data("fixed", Volume(voxels[None], GRID), empty)


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_an_empty_value_is_a_number(value: str) -> None:
    with pytest.raises(ConfigError, match=r"moving_empty on the command line is .*must be a finite number"):
        load_stages(None, [f"moving_empty={value}"])


def test_a_stage_may_have_a_margin_of_its_own() -> None:
    stages = "stages=[{stage: rigid, mask_margin: false}, {stage: greedy}]"
    _, found = load_stages(None, [stages, "mask_margin=true"])
    assert [stage.mask_margin for stage in found] == [False, True]


@pytest.mark.parametrize(
    ("section", "reach"),
    [
        ({"name": "mind", "radius": 3, "dilation": 2}, 5),
        ({"name": "mind_dice", "radius": 1, "dilation": 1}, 2),
        ({"name": "lncc", "kernel_size": 7}, 3),
        ({"name": "sum", "terms": [{"name": "lncc", "kernel_size": 3}, {"name": "mind"}]}, 4),
        ({"name": "mse"}, 0),
        ({"name": "mutual_information"}, 0),
    ],
)
def test_the_margin_is_what_the_loss_sees(section: dict[str, object], reach: int) -> None:
    mask = torch.ones(1, *SIZE)
    side = Side(texture()[None], GRID, mask)
    assert Similarity(section, side, side, mask_margin=True).margin == reach
    assert Similarity(section, side, side).margin == 0


@pytest.mark.parametrize("name", ["mind", "lncc"])
def test_with_a_margin_nothing_outside_of_the_mask_counts(name: str) -> None:
    """Another content outside changes the loss near the border of the mask, and with a margin it does not."""
    inside = cone()
    moving = Side(texture(1)[None], GRID)
    values = {}
    for margin in (False, True):
        for outside in (0.0, 1.0):
            image = torch.where(inside, texture(), torch.full((), outside))
            fixed = Side(image[None], GRID, inside[None].float())
            section = {"name": name, "radius": 1, "dilation": 1} if name == "mind" else {"name": name, "kernel_size": 5}
            similarity = Similarity(section, fixed, moving, mask_margin=margin)
            levels = similarity.described(fixed.levels([1.0]), True)
            source = similarity.described(moving.levels([1.0]), False)
            values[margin, outside] = float(similarity(source[0].image, levels[0].image))
    assert abs(values[True, 0.0] - values[True, 1.0]) < 1e-6 * abs(values[True, 0.0])
    assert abs(values[False, 0.0] - values[False, 1.0]) > 1e-3 * abs(values[False, 0.0])


def test_a_cone_is_registered_by_what_it_holds() -> None:
    """The moving image is 2 mm away; the fixed one is inverted, and 0 outside of a cone."""
    image = texture()
    fixed = torch.where(cone(), 1.2 - image, torch.zeros(()))
    moved = np.eye(4)
    moved[:3, 3] = (1.5, -1.0, 1.0)
    stages = "stages=[{stage: translation, levels: [1], iterations: [60], loss: {name: mind, dilation: 1}}]"
    settings = {"plain": [], "masked": ["fixed_empty=0", "mask_margin=true"]}
    missed = {}
    for name, given in settings.items():
        found = usreg.register((fixed, np.eye(4)), (image, moved), overrides=[stages, *given])
        missed[name] = float(np.linalg.norm(found.affine.matrix[:3, 3] - moved[:3, 3]))
    assert missed["masked"] < 0.1
    assert missed["masked"] < missed["plain"]

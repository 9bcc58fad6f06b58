"""Stages, starts, masks, labels and intensities of a registration, on small pairs with a known answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from usreg.errors import ConfigError, DataError
from usreg.losses import MINDImageLoss
from usreg.metrics.field import folding_ratio
from usreg.registration.inputs.intensities import Scaling
from usreg.registration.inputs.preparing import make_side
from usreg.registration.pair import Registration, Volume, register_pair
from usreg.registration.stages import load_stages
from usreg.registration.transforms import starts
from usreg.registration.transforms.inverse import miss_of
from usreg.spatial import Affine, Chain, DisplacementField, Grid, resample
from usreg_kernels import gaussian_smooth, warp

SIZE = (26, 24, 28)
INSIDE = (..., slice(6, -6), slice(6, -6), slice(6, -6))
LNCC = "loss={name: lncc, kernel_size: 5, smooth_dr: 1e-3, clamp_smoothing: false}"


def texture(size: Sequence[int] = SIZE, seed: int = 0, channels: int = 1) -> torch.Tensor:
    """(C, ...): smooth noise that fades towards the faces."""
    noise = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(seed))
    sigma = [1.5 if length > 1 else 0.0 for length in size]
    smooth = gaussian_smooth(noise, sigma)[0]
    axes = [torch.linspace(-1, 1, length) if length > 1 else torch.zeros(1) for length in size]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (smooth - smooth.amin()) * torch.exp(-2 * (z**2 + y**2 + x**2) ** 2)


def grid_of(size: Sequence[int] = SIZE) -> Grid:
    """One axis flipped, voxels of 1 x 1.2 x 0.9 mm."""
    affine = np.diag([-1.0, 1.2, 0.9, 1.0])
    affine[:3, 3] = (20.0, -15.0, 7.0)
    return Grid((size[0], size[1], size[2]), affine)


def waves(size: Sequence[int] = SIZE, seed: int = 3, amplitude: float = 90.0) -> torch.Tensor:
    """(1, 3, ...): a smooth displacement in voxels, 0 along an axis of one voxel."""
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) - 0.5
    field = amplitude * gaussian_smooth(noise, [4.0 if length > 1 else 0.0 for length in size])
    for axis, length in enumerate(size):
        if length == 1:
            field[:, axis] = 0
    return field


def deformed_pair(channels: int = 1) -> tuple[Volume, Volume, torch.Tensor]:
    """Fixed and moving image, and the field that was put between them."""
    truth = waves()
    moving = Volume(texture(channels=channels), grid_of())
    return Volume(warp(moving.voxels[None], truth)[0], grid_of()), moving, truth


def run(fixed: Volume, moving: Volume, stages: str, *overrides: str, **given: object) -> Registration:
    """Register with stages and settings as the command line has them."""
    config, checked = load_stages(None, [LNCC, f"stages={stages}", *overrides])
    scaling = {side: config.scaling(side) for side in ("fixed", "moving")}
    return register_pair(fixed, moving, checked, scaling=scaling, seconds=config.seconds, **given)  # type: ignore[arg-type]


def miss(found: Registration, truth: torch.Tensor, where: tuple[object, ...] = INSIDE) -> float:
    """Mean distance, voxels, of the field found from the true one, over that of no field at all."""
    assert found.ddf is not None
    return ((found.ddf - truth)[where].norm(dim=1).mean() / truth[where].norm(dim=1).mean()).item()


def inverse_of(found: Registration) -> torch.Tensor:
    """(1, 3, D, H, W), the inverse field in voxels."""
    assert found.inverse_field is not None
    to_voxels = torch.linalg.inv(torch.tensor(found.inverse_field.grid.affine[:3, :3]))
    displacement = found.inverse_field.displacement
    return (to_voxels.to(displacement) @ displacement.flatten(1)).reshape(1, *displacement.shape)


@pytest.mark.parametrize("stage", ["greedy", "svf", "displacement"])
def test_a_deformable_stage_finds_a_deformation(stage: str) -> None:
    fixed, moving, truth = deformed_pair()
    found = run(fixed, moving, f"[{{stage: {stage}, levels: [2, 1], iterations: [40, 20]}}]")
    assert truth[INSIDE].norm(dim=1).mean() > 0.5
    assert miss(found, truth) < 0.4
    assert found.ddf is not None
    assert folding_ratio(found.ddf).item() == 0
    assert miss_of(found.ddf, inverse_of(found)) < 0.05
    assert found.inverse_miss is not None
    assert found.inverse_miss < 0.1  # in the worse order
    assert found.stages[0].losses[0][-1] < found.stages[0].losses[0][0]


def test_the_inverse_of_a_velocity_is_its_negative() -> None:
    fixed, moving, _ = deformed_pair()
    found = run(fixed, moving, "[{stage: svf, levels: [2], iterations: [40]}]")
    assert found.ddf is not None
    assert found.inverse_miss is not None
    assert miss_of(found.ddf, inverse_of(found)) < 0.02
    assert found.inverse_miss < 0.03  # in the worse order


def test_deformable_stages_follow_on_one_another() -> None:
    fixed, moving, truth = deformed_pair()
    first = "{stage: greedy, levels: [1], iterations: [10]}"
    first_only = run(fixed, moving, f"[{first}]")
    for second in ("svf", "displacement"):
        found = run(fixed, moving, f"[{first}, {{stage: {second}, levels: [1], iterations: [20]}}]")
        assert miss(found, truth) < miss(first_only, truth)
        assert found.ddf is not None
        assert found.inverse_field is not None
        assert found.inverse_miss is not None
        assert found.inverse_miss < 0.1


def test_a_velocity_of_no_iterations_changes_nothing_of_the_field_before() -> None:
    fixed, moving, truth = deformed_pair()
    start = Chain([starts.field_in_mm(truth, fixed.grid)])
    found = run(fixed, moving, "[{stage: svf, levels: [1], iterations: [0]}]", start=start)
    assert found.ddf is not None
    torch.testing.assert_close(found.ddf, truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("regulariser", ["gradient", "bending"])
def test_the_weight_of_the_penalty_makes_a_displacement_smoother(regulariser: str) -> None:
    fixed, moving, _ = deformed_pair()
    stage = "stage: displacement, levels: [2], iterations: [30], sigma_gradient: 0, sigma_field: 0"
    rough, smooth = (
        run(fixed, moving, f"[{{{stage}, regulariser: {regulariser}, weight: {weight}}}]").ddf for weight in (0.0, 5.0)
    )
    assert rough is not None
    assert smooth is not None
    assert smooth.diff(dim=2).square().mean() < 0.5 * rough.diff(dim=2).square().mean()


def test_centres_and_moments_are_stages() -> None:
    moving = Volume(texture(), grid_of())
    matrix = np.eye(4)
    matrix[:3, 3] = (3.0, -2.0, 4.0)
    affine = matrix @ moving.grid.affine
    fixed = Volume(moving.voxels, Grid(SIZE, affine))
    for stage in ("centres", "moments"):
        found = run(fixed, moving, f"[{{stage: {stage}}}]")
        np.testing.assert_allclose(found.affine.matrix[:3, 3], (-3.0, 2.0, -4.0), atol=1e-4)
        np.testing.assert_allclose(found.affine.matrix[:3, :3], np.eye(3), atol=1e-9)
        assert found.field is None


def ellipsoid(turn: np.ndarray, centre: Sequence[float], size: int = 32) -> Volume:
    """An ellipsoid with half axes 4, 7 and 12 mm, one end of each brighter, so that its turn is unambiguous."""
    grid = Grid((size, size, size), np.block([[np.eye(3), np.full((3, 1), -size / 2)], [np.zeros((1, 3)), 1]]))
    points = grid.to_world(np.indices(grid.size).reshape(3, -1).T)
    local = (points - np.asarray(centre)) @ turn / (4.0, 7.0, 12.0)
    inside = 1 / (1 + np.exp(12 * ((local**2).sum(axis=1) - 1)))
    shade = 1 + 0.4 * np.tanh(local).sum(axis=1)
    return Volume(torch.from_numpy((inside * shade).reshape(1, *grid.size)).float(), grid)


@pytest.mark.parametrize("degrees", [40, 170])
def test_moments_with_axes_find_a_large_turn(degrees: float) -> None:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    fixed, moving = ellipsoid(np.eye(3), (1, 0, -1)), ellipsoid(turn, (-1, 2, 0))
    found = run(fixed, moving, "[{stage: moments, axes: true}]")
    np.testing.assert_allclose(found.affine.matrix[:3, :3], turn, atol=0.12)


def test_linear_stages_come_before_deformable_ones() -> None:
    fixed, moving, _ = deformed_pair()
    with pytest.raises(ConfigError, match=r"stage 1 \(rigid\) cannot follow on stage 0 \(greedy\)"):
        run(fixed, moving, "[{stage: greedy}, {stage: rigid}]")


def test_a_budget_ends_a_stage_and_a_run(caplog: pytest.LogCaptureFixture) -> None:
    fixed, moving, _ = deformed_pair()
    stage = "stage: greedy, levels: [2, 1], iterations: [100000, 100000], tolerance: 0"
    found = run(fixed, moving, f"[{{{stage}, seconds: 1e-4}}]")
    assert [len(losses) for losses in found.stages[0].losses] == [1, 1]
    assert not found.stopped
    with caplog.at_level(logging.WARNING):
        late = run(fixed, moving, f"[{{{stage}}}, {{stage: svf}}]", "seconds=0.01")
    assert [stage.stage for stage in late.stages] == ["greedy"]
    assert "stage 1 (svf) is left out: the 0.01 seconds are over" in caplog.text


def far_apart(shift: Sequence[float]) -> tuple[Volume, Volume]:
    moving = Volume(texture(), grid_of())
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return Volume(moving.voxels, Grid(SIZE, matrix @ moving.grid.affine)), moving


@pytest.mark.parametrize("stage", ["greedy", "displacement"])
def test_any_transform_is_a_start(stage: str) -> None:
    fixed, moving, truth = deformed_pair()
    field = starts.field_in_mm(truth, fixed.grid)
    shift = np.eye(4)
    shift[:3, 3] = (200.0, 0, 0)
    moved = Volume(moving.voxels, Grid(SIZE, shift @ moving.grid.affine))
    settings = f"[{{stage: {stage}, levels: [1], iterations: [0]}}]"
    for start in (Chain([field, Affine(shift)]), Chain([Affine(shift), Shifted(field, shift)])):
        found = run(fixed, moved, settings, start=start)
        assert miss(found, truth) < 1e-4
        np.testing.assert_allclose(found.affine.matrix, shift)


class Shifted:
    """A field in a world that lies elsewhere."""

    def __init__(self, field: DisplacementField, shift: np.ndarray) -> None:
        grid = Grid(field.grid.size, shift @ field.grid.affine)
        self.field = DisplacementField(grid, field.displacement)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self.field(points)


def test_linear_stages_are_left_out_after_a_field(caplog: pytest.LogCaptureFixture) -> None:
    fixed, moving, truth = deformed_pair()
    with caplog.at_level(logging.WARNING):
        found = run(
            fixed,
            moving,
            "[{stage: affine}, {stage: greedy, levels: [1], iterations: [0]}]",
            start=starts.field_in_mm(truth, fixed.grid),
        )
    assert [stage.stage for stage in found.stages] == ["greedy"]
    assert "stage 0 (affine) is left out: the start is a field already" in caplog.text


@pytest.mark.parametrize("model", ["rigid", "affine"])
def test_landmarks_give_the_map_of_least_squares(model: str) -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(8, 3)) * 20
    linear = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    linear *= np.sign(np.linalg.det(linear))
    if model == "affine":
        linear = linear @ np.diag([1.2, 0.9, 1.1])
    targets = points @ linear.T + (5, -3, 2)
    found = starts.by_landmarks(points, targets, model)
    np.testing.assert_allclose(found.matrix[:3, :3], linear, atol=1e-9)
    np.testing.assert_allclose(found(points), targets, atol=1e-9)


def test_landmarks_in_a_plane_fix_a_rigid_map_without_a_reflection() -> None:
    points = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0.0]])
    found = starts.by_landmarks(points, points[:, [1, 0, 2]] + 1.0, "rigid")
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(found(points), points[:, [1, 0, 2]] + 1.0, atol=1e-9)


@pytest.mark.parametrize(
    ("fixed", "moving", "model", "message"),
    [
        (np.eye(3), np.eye(4, 3), "rigid", "3 fixed and 4 moving landmarks"),
        (np.eye(2, 3), np.eye(2, 3), "rigid", "needs 3 pairs or more; there are 2"),
        (np.eye(3), np.eye(3), "affine", "needs 4 pairs or more; there are 3"),
        (np.outer(np.arange(5), (1, 2, 3)), np.eye(5, 3), "rigid", "the fixed landmarks lie on a line"),
        (np.zeros((4, 3)), np.eye(4, 3), "rigid", "the fixed landmarks lie at one point"),
        (np.eye(4, 3), np.eye(4, 3) * (1, 1, 0), "affine", "the moving landmarks lie in a plane"),
    ],
)
def test_landmarks_that_fix_no_map(fixed: np.ndarray, moving: np.ndarray, model: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        starts.by_landmarks(fixed, moving, model)


def test_landmarks_of_slices_stay_in_the_plane() -> None:
    points = np.array([[0, 0, 5], [10, 0, 5], [0, 8, 5.0]])
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    for model in ("rigid", "affine"):
        found = starts.by_landmarks(points, points @ turn.T + (1, 2, 3), model, normal=(0, 0, 1))
        np.testing.assert_allclose(found.matrix[:3, :3], turn, atol=1e-9)
        np.testing.assert_allclose(found.matrix[:3, 3], (1, 2, 3), atol=1e-9)


@pytest.mark.parametrize("loss", ["{name: lncc, smooth_dr: 1e-3, clamp_smoothing: false}", "{name: mse}"])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_what_a_mask_leaves_out_does_not_count(side: str, loss: str) -> None:
    fixed, moving, truth = deformed_pair()
    patched = {"fixed": fixed, "moving": moving}
    bright = patched[side].voxels.clone()
    bright[..., 8:14, 8:14, 8:14] = 3 * bright.max()  # what the other image does not have
    patched[side] = Volume(bright, grid_of())
    mask = torch.ones(1, *SIZE)
    mask[..., 6:16, 6:16, 6:16] = 0
    stages = f"[{{stage: greedy, levels: [2, 1], iterations: [30, 15], loss: {loss}}}]"
    given = {f"{side}_mask": Volume(mask, grid_of())}
    elsewhere = (..., slice(16, 21), slice(6, -6), slice(6, -6))
    without = miss(run(patched["fixed"], patched["moving"], stages), truth, elsewhere)
    masked = miss(run(patched["fixed"], patched["moving"], stages, **given), truth, elsewhere)
    clean = miss(run(fixed, moving, stages, **given), truth, elsewhere)
    assert masked < 0.7
    assert masked < 0.75 * without or loss != "{name: mse}"  # a correlation of windows sees the patch only near it
    assert masked == pytest.approx(clean, abs=0.05)


def test_a_mask_on_another_grid_counts_where_its_header_puts_it() -> None:
    fixed = Volume(texture(), grid_of())
    coarse = grid_of().resized([length // 2 for length in SIZE])
    mask = torch.zeros(1, *coarse.size)
    mask[:, :6] = 1
    side = make_side("fixed", fixed, Scaling(), Volume(mask, coarse))
    assert side.mask is not None
    assert side.mask[:, :11].min() == 1
    assert side.mask[:, 13:].max() == 0


def test_masks_that_cannot_be_used() -> None:
    fixed, moving, _ = deformed_pair()
    stages = "[{stage: greedy, levels: [1], iterations: [1]}]"
    empty = Volume(torch.zeros(1, *SIZE), grid_of())
    with pytest.raises(DataError, match="the moving mask is empty"):
        run(fixed, moving, stages, moving_mask=empty)
    far = grid_of().affine + np.array([[0, 0, 0, 900.0], [0] * 4, [0] * 4, [0] * 4])
    with pytest.raises(DataError, match="the fixed mask lies outside of the fixed image"):
        run(fixed, moving, stages, fixed_mask=Volume(torch.ones(1, *SIZE), Grid(SIZE, far)))
    halves = [torch.zeros(1, *SIZE) for _ in range(2)]
    halves[0][:, :10] = 1
    halves[1][:, 14:] = 1
    masks = {f"{side}_mask": Volume(half, grid_of()) for side, half in zip(("fixed", "moving"), halves, strict=True)}
    with pytest.raises(DataError, match="do not overlap at the start"):
        run(fixed, moving, stages, **masks)
    with pytest.raises(ConfigError, match=r"loss 'dice_smooth': a mask is given.*no parameter 'mask'"):
        run(fixed, moving, "[{stage: greedy, loss: {name: dice_smooth}}]", fixed_mask=masks["fixed_mask"])


def blocks(grid: Grid, shift: int) -> Volume:
    """Two labels that only their numbers tell apart."""
    label = torch.zeros(1, *grid.size)
    label[:, 6 + shift : 14 + shift, 6:16, 8:20] = 2
    label[:, 14 + shift : 20 + shift, 6:16, 8:20] = 5
    return Volume(label, grid)


@pytest.mark.parametrize("stage", ["translation", "greedy"])
def test_labels_pull_where_images_do_not(stage: str) -> None:
    grid = grid_of()
    ramp = Volume(torch.linspace(0, 1, SIZE[2]).expand(1, *SIZE).contiguous(), grid)  # the same for any shift along x
    labels = {"fixed_label": blocks(grid, 0), "moving_label": blocks(grid, 2)}
    settings = f"[{{stage: {stage}, levels: [1], iterations: [60], loss: {{name: mse}}}}]"
    without = run(ramp, ramp, settings, **labels)
    found = run(ramp, ramp, settings, "labels_weight=1", **labels)
    inside = np.array([grid.to_world([[13, 11, 14]])[0]])
    assert np.linalg.norm(without.transform(inside) - inside) < 0.05
    assert grid.to_voxels(found.transform(inside))[0, 0] == pytest.approx(
        15, abs=0.4 if stage == "translation" else 1.3
    )


def test_a_loss_of_labels_gets_the_warped_ones() -> None:
    grid = grid_of()
    ramp = Volume(torch.linspace(0, 1, SIZE[2]).expand(1, *SIZE).contiguous(), grid)
    settings = "[{stage: translation, levels: [1], iterations: [40], loss: {name: lncc_dice, image_weight: 0}}]"
    found = run(ramp, ramp, settings, fixed_label=blocks(grid, 0), moving_label=blocks(grid, 2))
    inside = np.array([grid.to_world([[13, 11, 14]])[0]])
    np.testing.assert_allclose(grid.to_voxels(found.transform(inside))[0, 0], 15, atol=0.4)
    with pytest.raises(ConfigError, match=r"stage 0 \(translation\), loss 'lncc_dice': the loss cannot use"):
        run(ramp, ramp, settings)
    with pytest.raises(ConfigError, match="labels_weight is 1; give the labels of both images"):
        run(ramp, ramp, "[{stage: translation, loss: {name: mse}}]", "labels_weight=1")


def test_mind_registers_images_of_different_contrast() -> None:
    fixed, moving, truth = deformed_pair()
    inverted = Volume((1 - fixed.voxels) ** 2, fixed.grid)
    stage = "stage: svf, levels: [2, 1], iterations: [40, 30], weight: 0.05, loss: {name: mind, radius: 1, dilation: 1}"
    assert miss(run(inverted, moving, f"[{{{stage}}}]"), truth) < 0.5


@pytest.mark.parametrize("flat", [False, True])
def test_mind_compares_descriptors_that_are_computed_once(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 channels, or 4 of a slice, are warped beside the mask; the images themselves are not seen again."""
    size = (1, 24, 28) if flat else SIZE
    calls: list[tuple[int, ...]] = []
    descriptor = MINDImageLoss.descriptor

    def counted(self: MINDImageLoss, image: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(image.shape))
        return descriptor(self, image)

    monkeypatch.setattr(MINDImageLoss, "descriptor", counted)
    moving = Volume(texture(size), grid_of(size))
    fixed = Volume(warp(moving.voxels[None], waves(size))[0], grid_of(size))
    mask = Volume(torch.ones(1, *size), grid_of(size))
    stages = "[{stage: rigid, levels: [1], iterations: [9], loss: {name: mind}}]"
    found = run(fixed, moving, stages, fixed_mask=mask, moving_mask=mask)
    assert calls == [(1, 1, *size[flat:])] * 3  # the trial of the loss, and each side
    losses = found.stages[0].losses[0]
    assert losses[-1] < losses[0]


def test_mind_dice_gets_the_warped_labels() -> None:
    grid = grid_of()
    ramp = Volume(torch.linspace(0, 1, SIZE[2]).expand(1, *SIZE).contiguous(), grid)
    settings = "[{stage: translation, levels: [1], iterations: [40], loss: {name: mind_dice, mind_weight: 0}}]"
    found = run(ramp, ramp, settings, fixed_label=blocks(grid, 0), moving_label=blocks(grid, 2))
    inside = np.array([grid.to_world([[13, 11, 14]])[0]])
    np.testing.assert_allclose(grid.to_voxels(found.transform(inside))[0, 0], 15, atol=0.4)


def test_intensities_by_windows_and_quantiles_of_each_side() -> None:
    config, _ = load_stages(None, ["window=[-1000, 400]", "moving_quantiles=[0.1, 0.9]"])
    assert config.scaling("fixed").window == (-1000, 400)
    assert config.scaling("moving") == Scaling((0.1, 0.9), None)
    ct = torch.tensor([[[[-2000.0, -1000, -300, 400, 3000]]]])
    torch.testing.assert_close(config.scaling("fixed")("fixed", ct), torch.tensor([[[[0, 0, 0.5, 1, 1]]]]))
    with pytest.raises(DataError, match=r"the fixed image, 0 to 1, have no contrast in its window \[-1000.0, 400.0\]"):
        config.scaling("fixed")("fixed", torch.tensor([[[[0.0, 1.0]]]]))


def test_images_of_several_channels_are_registered_together() -> None:
    fixed, moving, truth = deformed_pair(channels=2)
    found = run(fixed, moving, "[{stage: greedy, levels: [2, 1], iterations: [40, 20]}]")
    assert miss(found, truth) < 0.4
    with pytest.raises(DataError, match="the fixed image has 2 channels and the moving one 1"):
        run(fixed, Volume(moving.voxels[:1], moving.grid), "[{stage: greedy}]")


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("stage", ["greedy", "svf", "displacement"])
def test_slices_are_registered_in_their_plane(stage: str, axis: int) -> None:
    size = [44, 40, 42]
    size[axis] = 1
    grid = grid_of(size)
    truth = waves(size, amplitude=25.0)
    moving = Volume(texture(size), grid)
    fixed = Volume(warp(moving.voxels[None], truth)[0], grid)
    found = run(fixed, moving, f"[{{stage: {stage}, levels: [2, 1], iterations: [50, 30]}}]")
    assert found.ddf is not None
    assert found.ddf[:, axis].abs().max() == 0
    inside = (..., *(slice(None) if length == 1 else slice(8, -8) for length in size))
    assert miss(found, truth, inside) < 0.4
    if stage == "displacement":
        run(fixed, moving, "[{stage: displacement, regulariser: bending, levels: [2], iterations: [3]}]")


@pytest.mark.parametrize("stage", ["rigid", "affine"])
def test_slices_turn_in_their_plane_and_meet_across_it(stage: str) -> None:
    size = (44, 1, 42)
    moving = Volume(texture(size), grid_of(size))
    angle = np.deg2rad(6)
    matrix = np.eye(4)
    matrix[np.ix_([0, 2], [0, 2])] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = moving.grid.centre
    matrix[:3, 3] = centre + np.array([1.0, 0, -1.0]) - matrix[:3, :3] @ centre
    fixed_voxels = resample(moving.voxels, moving.grid, moving.grid, Affine(matrix))
    apart = np.eye(4)
    apart[1, 3] = 30.0  # the slices lie 30 mm from each other, across their plane
    fixed = Volume(fixed_voxels, Grid(size, np.linalg.inv(apart) @ moving.grid.affine))
    found = run(fixed, moving, f"[{{stage: {stage}, levels: [2, 1], iterations: [80, 40]}}]")
    truth = matrix @ apart
    points = fixed.grid.to_world(np.array([[x, 0, z] for x in (10, 34) for z in (10, 32)]))
    assert np.linalg.norm(found.affine(points) - Affine(truth)(points), axis=1).mean() < 0.3
    np.testing.assert_allclose(found.affine(points)[:, 1], moving.grid.centre[1], atol=1e-6)


def test_pairs_that_are_none() -> None:
    volume, flat = Volume(texture(), grid_of()), Volume(texture((26, 24, 1)), grid_of((26, 24, 1)))
    with pytest.raises(DataError, match="the moving image is a single slice, 26 x 24 x 1, and the fixed one a volume"):
        run(volume, flat, "[{stage: greedy}]")
    line = Volume(torch.rand(1, 26, 1, 1), grid_of((26, 1, 1)))
    with pytest.raises(DataError, match="the fixed image has 26 x 1 x 1 voxels: a line or a point"):
        run(line, line, "[{stage: greedy}]")
    upright = Grid((26, 1, 24), grid_of().affine)
    with pytest.raises(DataError, match="planes meet at 90 degrees"):
        run(flat, Volume(texture((26, 1, 24)), upright), "[{stage: greedy}]")
    with pytest.raises(DataError, match=r"do not overlap in the world.*start=centres"):
        run(*far_apart((500.0, 0, 0)), "[{stage: greedy}]")


PLUGIN = """\
import torch
from usreg.losses import register_loss

class Absolute(torch.nn.Module):
    def forward(self, warped, fixed, pred_dvf=None, gt_dvf=None, *, mask=None):
        assert pred_dvf.shape[2:] == fixed.shape[2:] and gt_dvf is None
        difference = (warped - fixed).abs()
        return difference.mean() if mask is None else (mask * difference).sum() / mask.sum()

@register_loss("{name}")
def create(**_):
    return Absolute()
"""


def test_a_loss_of_the_users_own_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "absolute_of_a_test.py").write_text(PLUGIN.replace("{name}", "absolute_of_a_test"))
    monkeypatch.chdir(tmp_path)
    fixed, moving, truth = deformed_pair()
    stage = "stage: greedy, levels: [2, 1], iterations: [40, 20], loss: {name: absolute_of_a_test}"
    mask = Volume(torch.ones(1, *SIZE), grid_of())
    found = run(fixed, moving, f"[{{{stage}}}]", "plugins=[absolute_of_a_test]", fixed_mask=mask)
    assert miss(found, truth) < 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[{stage: svf, loss: {name: mnid}}]", "unknown loss 'mnid'.*Known: .*mind"),
        ("stages=[{stage: svf, regulariser: elastic}]", "'elastic'; it must be one of gradient, bending"),
        ("stages=[{stage: svf, weight: -1}]", r"weight on the command line is -1.0; it must be a number 0 or more"),
        ("stages=[{stage: svf, integration_steps: 0}]", "integration_steps .* is 0; it must be a number above 0"),
        ("stages=[{stage: centres, levels: [1]}]", "the stage centres has no levels, iterations or loss"),
        ("landmarks_model=spline", "landmarks_model .* must be one of rigid, affine"),
        ("window=[400,-1000]", "window .* must be two numbers, the smaller one first"),
        ("moving_window=[1]", "moving_window .* must be two numbers"),
        ("fixed_empty=.inf", "fixed_empty on the command line is inf; it must be a finite number"),
        ("nan=ignore", "nan .* must be one of error, fill, mask"),
        ("modalities=other", "modalities .* must be one of same, different"),
        ("header=aform", "header .* must be one of sform, qform"),
        ("seconds=0", "seconds on the command line is 0.0; it must be a number above 0"),
        ("labels_weight=-1", "labels_weight .* must be a number 0 or more"),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stages(None, [override])


def test_linear_stages_between_modalities_take_mutual_information() -> None:
    stages = "[{stage: rigid}, {stage: affine, loss: {name: mse}}, {stage: greedy}]"
    _, same = load_stages(None, [LNCC, f"stages={stages}"])
    _, different = load_stages(None, [LNCC, f"stages={stages}", "modalities=different"])
    assert [stage.loss["name"] for stage in same] == ["lncc", "mse", "lncc"]
    assert [stage.loss["name"] for stage in different] == ["mutual_information", "mse", "lncc"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stage", ["translation", "rigid", "affine"])
def test_images_of_two_modalities_meet(stage: str, masked: bool) -> None:
    """The one image is bright where the other is neither dark nor bright."""
    moving = texture()
    fixed = 1 - (3 * moving / moving.max() - 1).square()
    shifted = grid_of().affine.copy()
    shifted[:3, 3] += (2.0, -1.5, 1.0)
    given = {}
    if masked:
        fixed[..., :5, :, :] = 0.8  # what the other image does not have
        mask = torch.ones(1, *SIZE)
        mask[..., :5, :, :] = 0
        given["fixed_mask"] = Volume(mask, grid_of())
    pair = Volume(fixed, grid_of()), Volume(moving, Grid(SIZE, shifted))
    stages = f"[{{stage: {stage}, levels: [2, 1], iterations: [60, 40]}}]"
    found = run(*pair, stages, "modalities=different", **given)
    corners = grid_of().centre + np.array([[0.0, 0, 0], [8, 0, 0], [0, 8, 0], [0, 0, 8]])
    missed = np.linalg.norm(found.affine(corners) - corners - (2.0, -1.5, 1.0), axis=1)
    assert missed.max() < (0.5 if stage == "affine" else 0.3)  # the start: 2.7 mm


def test_the_inverse_of_two_fields_in_a_row_undoes_both() -> None:
    fixed, moving, _ = deformed_pair()
    start = starts.field_in_mm(waves(amplitude=40.0), fixed.grid)
    found = run(fixed, moving, "[{stage: svf, levels: [1], iterations: [5]}]", start=start)
    assert found.ddf is not None
    assert miss_of(found.ddf, inverse_of(found)) < 0.05


def test_greedy_drifts_little_where_both_images_are_empty() -> None:
    fixed, moving, _ = deformed_pair()
    empty = 24
    size = (SIZE[0] + empty, *SIZE[1:])
    pair = [Volume(torch.nn.functional.pad(v.voxels, (0, 0, 0, 0, empty, 0)), grid_of(size)) for v in (fixed, moving)]
    found = run(*pair, "[{stage: greedy, levels: [1], iterations: [30]}]")
    assert found.ddf is not None
    lengths = found.ddf.norm(dim=1)[0]
    assert lengths[empty + 5 : -5].mean() > 0.5
    assert lengths[: empty - 4].mean(dim=(1, 2)).max() < 0.7  # 1.1 with an eps that is next to nothing

from __future__ import annotations

import math

import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_distance import compute_average_surface_distance

from usreg.datasets import collate
from usreg.datasets.deepreg_synthetic import DeepRegSynthetic
from usreg.metrics import (
    METRIC_REGISTRY,
    MetricTable,
    evaluate_metrics,
    identity_inputs,
    missing_inputs,
    model_inputs,
    register_metric,
)
from usreg.metrics.landmarks import sample_at_points
from usreg.models.warp import warp
from usreg_kernels import jacobian_determinant

SIZE = (8, 9, 10)


def affine_field(matrix: torch.Tensor, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """The displacement (1, 3, D, H, W) of ``x -> matrix x + offset``."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij"))
    moved = torch.einsum("ij,jzyx->izyx", matrix, grid) + torch.tensor(offset).reshape(3, 1, 1, 1)
    return (moved - grid)[None]


def cube(start: tuple[int, int, int], size: int = 3) -> torch.Tensor:
    label = torch.zeros(1, 1, *SIZE)
    z, y, x = start
    label[..., z : z + size, y : y + size, x : x + size] = 1
    return label


@pytest.fixture
def batch() -> dict:
    data = DeepRegSynthetic(2, SIZE, cp_spacing=6)
    return collate([data[0], data[1]])


@pytest.fixture
def own_metric():
    """Registers metrics for one test."""
    known = dict(METRIC_REGISTRY)
    yield register_metric
    METRIC_REGISTRY.clear()
    METRIC_REGISTRY.update(known)


MATRIX = torch.tensor([[1.1, 0.2, -0.1], [0.05, 0.9, 0.3], [-0.2, 0.1, 1.2]])


def test_jacobian_of_an_affine_field():
    determinant = jacobian_determinant(affine_field(MATRIX, (1.0, -2.0, 0.5)))
    assert determinant.shape == (1, 1, *SIZE)
    torch.testing.assert_close(determinant, torch.full_like(determinant, float(MATRIX.det())))


def test_field_metrics_of_an_affine_field():
    ddf = affine_field(MATRIX)
    values = evaluate_metrics({"ddf": ddf})
    gradient = float(((MATRIX - torch.eye(3)) ** 2).sum() / 3)  # the mean is over the three components too
    assert values["grad_l2"] == pytest.approx(gradient, rel=1e-4)
    assert values["jac_det_min"] == pytest.approx(float(MATRIX.det()), rel=1e-4)
    assert values["log_jac_std"] == pytest.approx(0, abs=1e-4)
    assert values["neg_jac_ratio"] == 0


def test_folding_is_counted():
    mirrored = affine_field(torch.diag(torch.tensor([1.0, 1.0, -1.0])))
    values = evaluate_metrics({"ddf": torch.cat([mirrored, torch.zeros_like(mirrored)])})
    assert values["neg_jac_ratio"].tolist() == [1, 0]
    assert values["jac_det_min"].tolist() == pytest.approx([-1, 1])
    assert values["jac_det_mean"].tolist() == pytest.approx([-1, 1])
    assert values["log_jac_std"].tolist() == pytest.approx([math.nan, 0], nan_ok=True)


def test_log_jac_std():
    ddf = torch.zeros(1, 3, *SIZE)
    x = torch.arange(float(SIZE[2]))
    ddf[0, 2] = 0.02 * x**2
    slope = torch.gradient(0.02 * x**2)[0]
    expected = float((1 + slope).log().std(correction=0))
    assert evaluate_metrics({"ddf": ddf})["log_jac_std"] == pytest.approx(expected, rel=1e-4)


def test_log_jac_std_is_that_of_the_voxels_that_do_not_fold():
    ddf = torch.zeros(1, 3, *SIZE)
    x = torch.arange(float(SIZE[2]))
    ddf[0, 2] = -0.1 * x**2  # folds from the sixth voxel on
    determinant = 1 + torch.gradient(-0.1 * x**2)[0]
    expected = float(determinant[determinant > 0].log().std(correction=0))
    values = evaluate_metrics({"ddf": ddf})
    assert 0.3 < values["neg_jac_ratio"] < 0.7
    assert values["log_jac_std"] == pytest.approx(expected, rel=1e-4)
    assert values["jac_det_mean"] == pytest.approx(float(determinant.mean()), rel=1e-4)


def test_intensity_metrics():
    fixed = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    values = evaluate_metrics({"warped": 0.5 * fixed + 0.25, "fixed": fixed})
    difference = (0.25 - 0.5 * fixed).flatten(1)
    torch.testing.assert_close(values["mse"], difference.square().mean(1))
    torch.testing.assert_close(values["mae"], difference.abs().mean(1))
    torch.testing.assert_close(values["ncc"], torch.ones(2))
    torch.testing.assert_close(evaluate_metrics({"warped": 1 - fixed, "fixed": fixed})["ncc"], -torch.ones(2))


def test_ncc_of_a_constant_image_is_no_number():
    fixed = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    assert evaluate_metrics({"warped": torch.full_like(fixed, 0.3), "fixed": fixed})["ncc"].isnan().all()


def test_epe_is_the_mean_distance_in_voxels():
    dvf = torch.zeros(1, 3, *SIZE)
    ddf = dvf + torch.tensor([2.0, 3.0, 6.0]).reshape(1, 3, 1, 1, 1)
    assert evaluate_metrics({"ddf": ddf, "dvf": dvf})["epe"].tolist() == [7]


def test_points_are_sampled_trilinearly_in_order_z_y_x():
    field = affine_field(2 * torch.eye(3))[0]  # ddf(p) = p
    points = torch.tensor([[0.0, 0.0, 0.0], [1.25, 3.5, 6.75], [7.0, 8.0, 9.0]])
    torch.testing.assert_close(sample_at_points(field, points), points)


def test_tre_uses_the_field_and_the_moving_spacing():
    ddf = torch.zeros(2, 3, *SIZE)
    ddf[:, 0] = 1.0
    fixed = torch.tensor([[2.5, 3.0, 4.0], [1.0, 1.0, 1.0]])
    target = fixed + torch.tensor([3.0, 0.0, 0.0])  # the field goes 1 of 3 voxels
    points = {"fixed_points": [fixed, torch.zeros(0, 3)], "moving_points": [target, torch.zeros(0, 3)]}
    in_voxels = evaluate_metrics({"ddf": ddf, **points})["tre"]
    assert in_voxels[0] == pytest.approx(2)
    assert in_voxels[1].isnan()
    spacing, moving_spacing = torch.full((2, 3), 10.0), torch.tensor([[0.5, 1.0, 1.0]]).repeat(2, 1)
    assert evaluate_metrics({"ddf": ddf, **points, "spacing": spacing})["tre"][0] == pytest.approx(20)
    both = {"spacing": spacing, "moving_spacing": moving_spacing}
    assert evaluate_metrics({"ddf": ddf, **points, **both})["tre"][0] == pytest.approx(1)


def test_dice_and_hd95_of_shifted_cubes():
    moving, fixed = cube((2, 2, 2)), cube((2, 2, 3))
    labels = {"warped_label": moving, "moving_label": moving, "fixed_label": fixed}
    values = evaluate_metrics(labels)
    assert values["dice"].tolist() == [[pytest.approx(2 / 3)]]
    assert values["hd95"].tolist() == [[pytest.approx(1)]]
    # Of the 26 surface voxels of either cube, the 9 of the face that sticks out are 1 away; the middle of the other
    # cube's face is a voxel inside, 1 from the surface.
    assert values["asd"].tolist() == [[pytest.approx(10 / 26)]]
    in_mm = evaluate_metrics({**labels, "spacing": torch.tensor([[1.0, 1.0, 2.5]])})
    assert in_mm["hd95"].tolist() == [[pytest.approx(2.5)]]
    assert in_mm["asd"].tolist() == [[pytest.approx((9 * 2.5 + 1) / 26)]]


def test_labels_warp_below_a_voxel():
    """The ddf pulls: +1 along x brings the moving cube one voxel back, onto the fixed one."""
    moving, fixed = cube((2, 2, 3)), cube((2, 2, 2))
    ddf = torch.zeros(1, 3, *SIZE)
    ddf[:, 2] = 1
    sample = {"moving": moving, "fixed": fixed, "moving_label": moving, "fixed_label": fixed}
    inputs = model_inputs(sample, warp(moving, ddf), ddf)
    assert evaluate_metrics(inputs)["dice"].tolist() == [[1]]
    assert evaluate_metrics(identity_inputs(sample))["dice"].tolist() == [[pytest.approx(2 / 3)]]
    half = model_inputs(sample, warp(moving, 0.4 * ddf), 0.4 * ddf)["warped_label"]
    assert half[0, 0, 3, 3].tolist() == pytest.approx([0, 0, 0.4, 1, 1, 0.6, 0, 0, 0, 0], abs=1e-5)


def test_absent_labels_have_no_value():
    empty, there = torch.zeros(1, 1, *SIZE), cube((2, 2, 2))
    moving = torch.cat([there, empty, empty, there], dim=1)
    fixed = torch.cat([there, empty, there, there], dim=1)
    warped = torch.cat([there, empty, empty, empty], dim=1)
    values = evaluate_metrics({"warped_label": warped, "moving_label": moving, "fixed_label": fixed})
    assert values["dice"][0].tolist() == pytest.approx([1, math.nan, math.nan, 0], nan_ok=True)
    assert values["hd95"][0].tolist() == pytest.approx([0, math.nan, math.nan, math.nan], nan_ok=True)
    assert values["asd"][0].tolist() == pytest.approx([0, math.nan, math.nan, math.nan], nan_ok=True)


def test_a_structure_that_resampling_lost_has_dice_0_where_the_fixed_label_has_it():
    empty, there = torch.zeros(1, 1, *SIZE), cube((2, 2, 2))
    moving, fixed = torch.cat([there, empty, empty], dim=1), torch.cat([there, there, empty], dim=1)
    labels = {"warped_label": moving, "moving_label": moving, "fixed_label": fixed}
    lost = torch.tensor([[False, True, True]])
    dice = evaluate_metrics(labels | {"moving_label_lost": lost})["dice"]
    assert dice[0].tolist() == pytest.approx([1, 0, math.nan], nan_ok=True)
    assert evaluate_metrics(labels)["dice"][0, 1].isnan()


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_surface_distances_are_those_of_monai():
    noise = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    warped, fixed = torch.nn.functional.avg_pool3d(noise, 3, 1, 1), torch.roll(noise, (1, 2), (2, 4))
    labels = {"warped_label": warped, "fixed_label": fixed, "spacing": torch.tensor([[3.0, 1, 0.5], [1, 1, 2]])}
    values = evaluate_metrics(labels)
    inputs = {"y_pred": warped > 0.5, "y": fixed > 0.5, "include_background": True}
    inputs["spacing"] = labels["spacing"].tolist()
    torch.testing.assert_close(values["hd95"], compute_hausdorff_distance(**inputs, percentile=95))
    torch.testing.assert_close(values["asd"], compute_average_surface_distance(**inputs, symmetric=True))


SHEARED = torch.tensor([[0, 0.3, 0.5, 7], [0, 1.5, 0.1, -3], [2, 0, 0.2, 4], [0, 0, 0, 1.0]])


def test_distances_in_mm_follow_an_oblique_and_sheared_affine():
    moved = torch.tensor([1.0, 2.0, -1.0])
    points = [torch.tensor([[3.0, 4, 5], [2, 2, 2]])]
    other = SHEARED * torch.tensor([2.0, 1, 1, 1]).reshape(4, 1)
    inputs = {"ddf": torch.zeros(1, 3, *SIZE), "fixed_points": points, "moving_points": [points[0] + moved]}
    inputs["spacing"] = torch.ones(1, 3)
    for affines, used in (
        ({"affine": SHEARED[None]}, SHEARED),
        ({"affine": SHEARED[None], "moving_affine": other[None]}, other),
    ):
        expected = float((used[:3, :3] @ moved).norm())
        assert evaluate_metrics(inputs | affines)["tre"].tolist() == pytest.approx([expected])


def test_hd95_of_a_sheared_grid():
    """Two single voxels are as far apart as their centres in the world."""
    warped, fixed = cube((2, 2, 2), 1), cube((4, 5, 3), 1)
    distance = float((SHEARED[:3, :3] @ torch.tensor([2.0, 3, 1])).norm())
    values = evaluate_metrics({"warped_label": warped, "fixed_label": fixed, "affine": SHEARED[None]})
    assert float(values["hd95"]) == pytest.approx(distance)
    assert float(values["asd"]) == pytest.approx(distance)


@pytest.mark.parametrize("metric", ["hd95", "asd"])
def test_surfaces_of_an_oblique_grid_are_as_far_apart_as_by_its_spacing(metric):
    turn = torch.tensor([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    affine = torch.eye(4)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([2.0, 1.0, 0.5]))
    labels = {"warped_label": cube((2, 2, 2), 4), "fixed_label": cube((3, 4, 1), 4)}
    by_spacing = evaluate_metrics(labels | {"spacing": torch.tensor([[2.0, 1.0, 0.5]])})[metric]
    torch.testing.assert_close(evaluate_metrics(labels | {"affine": affine[None]})[metric], by_spacing)
    affine[0, 1] += 1e-3  # enough for the other way of computing it
    found = evaluate_metrics(labels | {"affine": affine[None]})[metric]
    torch.testing.assert_close(found, by_spacing, atol=1e-2, rtol=0)


def test_the_true_field_beats_the_identity(batch):
    truth = evaluate_metrics(model_inputs(batch, batch["fixed"], batch["dvf"]))
    identity = evaluate_metrics(identity_inputs(batch))
    for name in ("mse", "mae", "epe", "tre"):
        assert (truth[name] < 1e-4).all()
        assert (identity[name] > 10 * truth[name]).all()
    torch.testing.assert_close(identity["epe"], batch["dvf"].norm(dim=1).flatten(1).mean(1))
    assert (identity["grad_l2"] == 0).all()
    assert (identity["jac_det_min"] == 1).all()


def test_half_precision_outputs_are_evaluated_in_float32(batch):
    inputs = model_inputs(batch, batch["fixed"].half(), batch["dvf"].bfloat16().requires_grad_())
    assert inputs["ddf"].dtype == inputs["warped"].dtype == torch.float32
    assert not inputs["ddf"].requires_grad
    assert all(value.dtype == torch.float32 for value in evaluate_metrics(inputs).values() if value is not None)


def test_metrics_without_inputs_are_absent(batch):
    values = evaluate_metrics(identity_inputs({"moving": batch["moving"], "fixed": batch["fixed"]}))
    absent = {name for name, value in values.items() if value is None}
    assert absent == {"epe", "dice", "hd95", "asd", "tre"}
    assert missing_inputs("tre", {"ddf": batch["dvf"], "fixed_points": None}) == ["fixed_points", "moving_points"]


def test_own_metric_gets_the_inputs_it_names(batch, own_metric):
    @own_metric("masked_mae")
    def masked_mae(warped, fixed, fixed_mask, confidence=None):
        assert confidence is None
        return ((warped - fixed).abs() * fixed_mask).flatten(1).sum(1) / fixed_mask.flatten(1).sum(1)

    assert evaluate_metrics(identity_inputs(batch))["masked_mae"].shape == (2,)
    assert evaluate_metrics({"warped": batch["fixed"], "fixed": batch["fixed"]})["masked_mae"] is None


def test_a_name_is_taken_once(own_metric):
    own_metric("mine")(lambda ddf: ddf)
    with pytest.raises(ValueError, match="already registered"):
        own_metric("mine")(lambda ddf: -ddf)


def test_table_averages_samples_labels_and_skips_nan():
    table = MetricTable()
    nan = math.nan
    dice = torch.tensor([[0.5, nan], [0.7, 0.9]])
    table.update("model", {"dice": dice, "ncc": torch.tensor([0.5, nan]), "epe": None})
    table.update("model", {"dice": torch.tensor([[0.4, 0.2, 0.6]]), "ncc": torch.tensor([0.7]), "epe": None})
    means = table.means("model")
    assert means["dice"] == pytest.approx((0.5 + 0.8 + 0.4) / 3)
    assert means["dice_label0"] == pytest.approx((0.5 + 0.7 + 0.4) / 3)
    assert means["dice_label1"] == pytest.approx((0.9 + 0.2) / 2)
    assert means["dice_label2"] == pytest.approx(0.6)
    assert means["ncc"] == pytest.approx(0.6)
    assert means["epe"] is None
    assert table.means("identity") == {}


def test_table_counts_values() -> None:
    table = MetricTable()
    nan = math.nan
    table.update(
        "model", {"hd95": torch.tensor([[0.5, nan], [0.7, 0.9]]), "epe": None, "tre": torch.tensor([nan, 1.0])}
    )
    table.update("model", {"hd95": torch.tensor([[nan, nan, 0.6]]), "epe": None, "tre": torch.tensor([2.0])})
    assert table.counts("model") == {"hd95": 4, "epe": 0, "tre": 2}
    assert table.counts("identity") == {}


def test_table_reports_values_that_are_all_nan_as_absent():
    table = MetricTable()
    table.update("model", {"tre": torch.tensor([math.nan, math.nan])})
    assert table.means("model") == {"tre": None}


def test_ncc_is_the_mean_over_the_channels() -> None:
    """A channel far from the others in value must not decide."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 2, 5, 6, 7, generator=generator) for _ in range(2))
    offset = torch.tensor([0.0, 100.0]).reshape(1, 2, 1, 1, 1)
    each = [METRIC_REGISTRY["ncc"](a[:, i : i + 1], b[:, i : i + 1]) for i in range(2)]
    torch.testing.assert_close(METRIC_REGISTRY["ncc"](a + offset, b + offset), sum(each) / 2, atol=1e-3, rtol=0)
    assert METRIC_REGISTRY["ncc"](a * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1), b).isnan().all()

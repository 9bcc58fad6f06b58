"""The built-in losses: values against formulas in float64, gradients, mixed dtypes, weights, and what they refuse."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import nn
from torch.nn import functional as F

import usreg.losses.utils
from usreg.errors import ConfigError
from usreg.losses import LOSS_REGISTRY, LNCCWithDVFSupervision, build_loss, register_loss, validate_smoothing_params
from usreg.losses.dice_smooth import DiceSmoothLoss
from usreg_kernels import mind_loss, mutual_information_loss, use_backend

SIZE = (7, 6, 8)
BUILT_IN = (
    "lncc",
    "lncc_dvf",
    "lncc_smooth",
    "lncc_dice",
    "mind",
    "mind_dice",
    "dice_smooth",
    "mse",
    "mutual_information",
)
COMPOSED = ("sum", "dice", "smoothness", "folding")
"""Those of ``test_losses_composed.py``."""

RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def volumes(channels: int = 1, count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Float64 volumes (2, C, D, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, channels, *SIZE, generator=generator, dtype=torch.float64) for _ in range(count)]


def inputs() -> dict[str, torch.Tensor]:
    """Everything that the loop can hand to a loss, in float64."""
    warped, fixed = volumes()
    pred_dvf, gt_dvf = volumes(channels=3, seed=1)
    warped_label, fixed_label = volumes(channels=2, seed=2)
    return {
        "warped": warped,
        "fixed": fixed,
        "pred_dvf": pred_dvf,
        "gt_dvf": gt_dvf,
        "warped_label": warped_label,
        "fixed_label": (fixed_label > 0.5).double(),
    }


def call(loss: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Call a loss with those of the inputs that its forward names."""
    names = inspect.signature(loss.forward).parameters
    return loss(**{name: value for name, value in given.items() if name in names})


def monai_lncc(warped: torch.Tensor, fixed: torch.Tensor, **keys: Any) -> torch.Tensor:
    keys = {"spatial_dims": 3, "kernel_size": 3, "smooth_nr": 1e-4, "smooth_dr": 1e-2, **keys}
    return LocalNormalizedCrossCorrelationLoss(**keys)(warped, fixed)


def smoothness(field: torch.Tensor) -> torch.Tensor:
    return sum((field.diff(dim=dim).square().mean() for dim in (2, 3, 4)), start=torch.zeros(()))


def soft_dice_loss(pred: torch.Tensor, target: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    return 1 - (2 * (pred * target).sum() + epsilon) / (pred.sum() + target.sum() + epsilon)


def mutual_information(warped: torch.Tensor, fixed: torch.Tensor, bins: int = 32) -> torch.Tensor:
    """From tables of voxels by bins; no value lies between two boxes."""

    def places(image: torch.Tensor) -> torch.Tensor:
        size = (image.amax() - image.amin()) / (bins - 4)
        return ((image - image.amin()) / size + 2).clamp(2, bins - 3).flatten(1)

    distance = (places(warped)[..., None] - torch.arange(bins)).abs()
    cubic = torch.where(distance < 1, 4 - 6 * distance**2 + 3 * distance**3, (2 - distance).clamp(min=0) ** 3) / 6
    box = F.one_hot((places(fixed) + 0.5).long(), bins).to(cubic.dtype)
    p = cubic.transpose(1, 2) @ box / cubic.shape[1]
    q = p.sum(2, keepdim=True) * p.sum(1, keepdim=True)
    return -(p * ((p + 1e-7) / (q + 1e-7) + 1e-7).log()).sum((1, 2)).mean()


def expected(name: str, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each loss at its defaults, from its definition."""
    warped, fixed, pred_dvf = given["warped"], given["fixed"], given["pred_dvf"]
    lncc = monai_lncc(warped, fixed)
    if name == "lncc":
        return lncc
    if name == "lncc_dvf":
        return monai_lncc(warped, fixed, kernel_size=9) + F.mse_loss(pred_dvf, given["gt_dvf"])
    if name == "lncc_smooth":
        return lncc + 0.01 * smoothness(pred_dvf)
    pairs = zip(given["warped_label"].flatten(0, 1), given["fixed_label"].flatten(0, 1), strict=True)
    dice = torch.stack([soft_dice_loss(*pair) for pair in pairs]).mean()
    if name == "lncc_dice":
        return lncc + dice
    if name.startswith("mind"):
        with use_backend("reference"):
            mind = mind_loss(warped, fixed, radius=2, dilation=2)
        return mind if name == "mind" else mind + dice
    if name == "dice_smooth":
        return soft_dice_loss(warped, fixed) + 0.01 * smoothness(pred_dvf)
    if name == "mutual_information":
        return mutual_information(warped, fixed)
    return F.mse_loss(warped, fixed)


def test_every_built_in_is_tested() -> None:
    built_in = {name for name, factory in LOSS_REGISTRY.items() if factory.__module__.startswith("usreg.")}
    assert built_in == {*BUILT_IN, *COMPOSED}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BUILT_IN)
def test_value_and_gradient_at_the_defaults(name: str, dtype: torch.dtype) -> None:
    given = {key: value.to(dtype).double() for key, value in inputs().items()}  # the same rounded values for both
    leaves = {key: value.to(dtype).requires_grad_() for key, value in given.items()}
    loss = call(build_loss({"name": name}), leaves)
    assert loss.shape == ()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), expected(name, given), rtol=RTOL[dtype], atol=RTOL[dtype])

    loss.backward()
    exact = {key: value.requires_grad_() for key, value in given.items()}
    expected(name, exact).backward()
    for key in ("warped", "pred_dvf", "warped_label"):
        reference, gradient = exact[key].grad, leaves[key].grad
        if reference is None:
            assert gradient is None, key
        else:
            assert gradient is not None, key
            assert gradient.dtype == dtype
            assert (gradient.double() - reference).norm() <= 10 * RTOL[dtype] * reference.norm(), key


@pytest.mark.parametrize("name", BUILT_IN)
def test_mixed_dtypes_take_the_common_one(name: str) -> None:
    given = inputs()
    mixed = {key: v.to(torch.float16 if i % 2 else torch.float32) for i, (key, v) in enumerate(given.items())}
    loss = call(build_loss({"name": name}), mixed)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected(name, given), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", BUILT_IN)
def test_sums_do_not_overflow_in_half(name: str) -> None:
    ones = torch.ones(1, 1, 48, 48, 48, dtype=torch.float16)
    field = torch.zeros(1, 3, 48, 48, 48, dtype=torch.float16)
    given = {
        "warped": ones,
        "fixed": ones,
        "pred_dvf": field,
        "gt_dvf": field,
        "warped_label": ones,
        "fixed_label": ones,
    }
    assert call(build_loss({"name": name}), given).isfinite()


@pytest.mark.parametrize(
    "keys",
    [
        {"kernel_size": 5},
        {"patch_size": 5},
        {"kernel_size": [3, 5, 1]},
        {"kernel_type": "triangular"},
        {"kernel_type": "gaussian"},
        {"reduction": "sum"},
        {"smooth_nr": 0.5, "smooth_dr": 0.25},
    ],
    ids=str,
)
def test_keys_of_lncc(keys: dict[str, Any]) -> None:
    warped, fixed = volumes()
    loss = build_loss({"name": "lncc", **keys})(warped, fixed)
    renamed = {"kernel_size" if key == "patch_size" else key: value for key, value in keys.items()}
    if isinstance(renamed.get("kernel_size"), list):  # MONAI has one size for all axes
        assert loss != build_loss({"name": "lncc"})(warped, fixed)
    else:
        torch.testing.assert_close(loss, monai_lncc(warped, fixed, **renamed), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dims", [1, 2])
def test_lncc_in_fewer_dimensions(dims: int) -> None:
    warped, fixed = (volume[(..., *[0] * (3 - dims))] for volume in volumes())
    loss = build_loss({"name": "lncc", "spatial_dims": dims})(warped, fixed)
    torch.testing.assert_close(loss, monai_lncc(warped, fixed, spatial_dims=dims), rtol=1e-9, atol=0)


def test_keys_of_the_other_losses() -> None:
    given = inputs()
    warped, fixed, pred_dvf, gt_dvf = (given[key] for key in ("warped", "fixed", "pred_dvf", "gt_dvf"))
    loss = build_loss(
        {"name": "lncc_dvf", "kernel_size": 3, "image_weight": 2.0, "dvf_weight": 3.0, "smooth_weight": 4.0}
    )
    value = 2 * monai_lncc(warped, fixed) + 3 * F.mse_loss(pred_dvf, gt_dvf) + 4 * smoothness(pred_dvf)
    torch.testing.assert_close(loss(warped, fixed, pred_dvf, gt_dvf), value)

    loss = build_loss({"name": "lncc_smooth", "smooth_weight": 2.0, "penalty": "l1", "spacing": [0.5, 1.0, 2.0]})
    per_mm = sum(pred_dvf.diff(dim=2 + i).abs().mean() / mm for i, mm in enumerate((0.5, 1.0, 2.0)))
    torch.testing.assert_close(loss(warped, fixed, pred_dvf), monai_lncc(warped, fixed) + 2 * per_mm)

    loss = build_loss({"name": "lncc_dice", "dice_weight": 2.0, "image_weight": 0.0, "smooth_weight": 3.0})
    dice = expected("lncc_dice", given) - monai_lncc(warped, fixed)
    torch.testing.assert_close(call(loss, given), 2 * dice + 3 * smoothness(pred_dvf))

    loss = build_loss({"name": "dice_smooth", "dice_weight": 2.0, "smooth_weight": 3.0, "epsilon": 0.5})
    value = 2 * soft_dice_loss(warped, fixed, 0.5) + 3 * smoothness(pred_dvf)
    torch.testing.assert_close(loss(warped, fixed, pred_dvf), value)


def test_defaults_are_those_of_the_reference() -> None:
    lncc = {
        "kernel_size": 3,
        "patch_size": None,
        "spatial_dims": 3,
        "kernel_type": "rectangular",
        "reduction": "mean",
        "smooth_nr": 0.0,
        "smooth_dr": 1e-5,
        "clamp_smoothing": True,
    }
    smoothing = {"smooth_nr": 1e-4, "smooth_dr": 1e-2, "clamp_smoothing": True}
    folding = {"folding_weight": 0.0, "folding_margin": 0.0}
    mind = {"radius": 2, "dilation": 2, "mind_weight": 1.0}
    dice = {
        "include_background": True,
        "dice_smooth_nr": 1e-5,
        "dice_smooth_dr": 1e-5,
        "label_warp_mode": "bilinear",
        "label_warp_padding_mode": "border",
    }
    dvf = {"kernel_size": 9, **smoothing, "image_weight": 1.0, "dvf_weight": 1.0}
    reference: dict[str, dict[str, Any]] = {
        "lncc": lncc,
        "lncc_dvf": {**dvf, "smooth_weight": 0.0},
        "lncc_smooth": {**lncc, "smooth_weight": 0.01, "penalty": "l2", "spacing": None, **folding},
        "lncc_dice": {
            **lncc,
            "dice_weight": 1.0,
            "image_weight": 1.0,
            "smooth_weight": 0.0,
            "lncc_weight": None,
            **dice,
        },
        "mind": mind,
        "mind_dice": {**mind, "dice_weight": 1.0, "smooth_weight": 0.0, **dice},
        "dice_smooth": {"dice_weight": 1.0, "smooth_weight": 0.01, "epsilon": 1e-5},
        "mse": {},
        "mutual_information": {
            "num_bins": 32,
            "kernel_type": "b-spline",
            "normalized": False,
            "sigma_ratio": 0.5,
            "reduction": "mean",
            "smooth_nr": 1e-7,
            "smooth_dr": 1e-7,
            "smooth_weight": 0.0,
        },
    }
    for name, defaults in reference.items():
        assert {key: p.default for key, p in LOSS_REGISTRY.accepted(name).parameters.items()} == defaults


def test_mind_weighs_the_mask_and_sums_its_terms() -> None:
    given = inputs()
    warped, fixed, mask = given["warped"], given["fixed"], (given["fixed"] > 0.3).double()
    mind = mind_loss(warped, fixed, radius=1, dilation=3, mask=mask)
    loss = build_loss({"name": "mind", "radius": 1, "dilation": 3, "mind_weight": 2.0})
    torch.testing.assert_close(loss(warped, fixed, mask=mask), 2 * mind)
    keys = {"name": "mind_dice", "radius": 1, "dilation": 3, "mind_weight": 0.5, "dice_weight": 3.0}
    labels = {"warped_label": given["warped_label"], "fixed_label": given["fixed_label"]}
    dice = build_loss({"name": "mind_dice", "mind_weight": 0.0})(warped, fixed, **labels)
    found = build_loss({**keys, "smooth_weight": 2.0})(warped, fixed, given["pred_dvf"], mask=mask, **labels)
    torch.testing.assert_close(found, 0.5 * mind + 3 * dice + 2 * smoothness(given["pred_dvf"]))


def test_mind_of_ready_descriptors_is_the_same_loss() -> None:
    given = inputs()
    warped, fixed, mask = given["warped"], given["fixed"], (given["fixed"] > 0.3).double()
    labels = {"warped_label": given["warped_label"], "fixed_label": given["fixed_label"]}
    for name, extras in (("mind", {}), ("mind_dice", labels)):
        loss = build_loss({"name": name, "mind_weight": 0.5, "dilation": 1})
        mind = loss if name == "mind" else loss.image_loss
        ready = loss.of_descriptors()(mind.descriptor(warped), mind.descriptor(fixed), mask=mask, **extras)
        torch.testing.assert_close(ready, loss(warped, fixed, mask=mask, **extras))


def test_classes_have_the_guides_names() -> None:
    assert isinstance(build_loss({"name": "lncc_dvf"}), LNCCWithDVFSupervision)
    assert isinstance(build_loss({"name": "dice_smooth"}), DiceSmoothLoss)


@pytest.mark.parametrize("name", BUILT_IN)
def test_extra_keys_are_absorbed_and_params_merged(name: str) -> None:
    assert isinstance(build_loss({"name": name, "params": {"unheard_of": 1}, "other": 2}), nn.Module)


def test_lncc_dvf_without_the_true_field_is_the_image_term() -> None:
    warped, fixed = volumes()
    warped.requires_grad_()
    loss = build_loss({"name": "lncc_dvf", "kernel_size": 3, "smooth_weight": 1.0})
    torch.testing.assert_close(loss(warped, fixed), monai_lncc(warped, fixed))
    alone = build_loss({"name": "lncc_dvf", "image_weight": 0.0})(warped, fixed, warped.expand(-1, 3, -1, -1, -1), None)
    assert alone == 0
    alone.backward()
    assert warped.grad is not None
    assert not warped.grad.any()


def test_lncc_smooth_counts_what_the_field_folds() -> None:
    warped, fixed = (volume.float()[:1] for volume in volumes())
    mirror = torch.zeros(1, 3, *SIZE)
    mirror[:, 2] = -2.0 * torch.arange(float(SIZE[2]))  # determinant -1 everywhere
    options = {"name": "lncc_smooth", "smooth_weight": 0.0, "spacing": [0.5, 1.0, 2.0]}
    without = build_loss(options)(warped, fixed, mirror)
    found = build_loss({**options, "folding_weight": 3.0, "folding_margin": 0.5})(warped, fixed, mirror)
    torch.testing.assert_close(found, without + 3.0 * 1.5)
    with pytest.raises(ConfigError, match="folding_weight is"):
        build_loss({**options, "folding_weight": -1.0})


def test_a_term_of_weight_zero_is_not_computed() -> None:
    nothing = torch.full((1, 3, *SIZE), torch.nan)
    warped, fixed = (volume.float()[:1] for volume in volumes())
    assert build_loss({"name": "lncc_dvf", "dvf_weight": 0.0})(warped, fixed, nothing, nothing).isfinite()
    assert build_loss({"name": "lncc_smooth", "smooth_weight": 0.0})(warped, fixed, nothing).isfinite()
    assert build_loss({"name": "lncc_dice", "dice_weight": 0.0})(warped, fixed, nothing).isfinite()
    broken = torch.full_like(warped, torch.nan)
    field = torch.zeros(1, 3, *SIZE)
    assert build_loss({"name": "lncc_dvf", "image_weight": 0.0})(broken, fixed, field, field).isfinite()


@pytest.mark.parametrize("name", BUILT_IN)
def test_nan_is_not_hidden(name: str) -> None:
    given = {key: value.float() for key, value in inputs().items()}
    given["warped"][0, 0, 3, 3, 3] = torch.nan
    assert call(build_loss({"name": name}), given).isnan()


def test_dice_ignores_channels_that_are_empty_in_both() -> None:
    given = inputs()
    loss = build_loss({"name": "lncc_dice"})
    alone = call(loss, given)
    padding = torch.zeros(2, 1, *SIZE, dtype=torch.float64)
    padded = {k: torch.cat([v, padding], dim=1) if "label" in k else v for k, v in given.items()}
    torch.testing.assert_close(call(loss, padded), alone)
    # Cases of unequal numbers of labels weigh alike, as in batches of one.
    given["warped_label"][1, 1] = given["fixed_label"][1, 1] = 0
    dice = [soft_dice_loss(given["warped_label"][i], given["fixed_label"][i]) for i in [(0, 0), (0, 1), (1, 0)]]
    wanted = monai_lncc(given["warped"], given["fixed"]) + (dice[0] + dice[1]) / 4 + dice[2] / 2
    torch.testing.assert_close(call(loss, given), wanted)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "dice_smooth"])
def test_a_batch_has_the_mean_of_its_samples(name: str) -> None:
    """So batches that are accumulated, and those of several processes, have the gradient of one large batch.

    Not ``dice_smooth``: the guide that it is from takes the Dice of a whole batch.
    """
    loss = build_loss({"name": name})
    given = inputs()
    for image in ("warped", "fixed"):  # the bins of mutual information cover the values of a batch
        given[image][:, :, 0, 0, 0], given[image][:, :, 0, 0, 1] = -9, 9
    for label in ("warped_label", "fixed_label"):
        given[label][1, 1] = 0
    samples = [call(loss, {key: value[i : i + 1] for key, value in given.items()}) for i in (0, 1)]
    torch.testing.assert_close(call(loss, given), torch.stack(samples).mean())


def test_dice_counts_a_structure_that_one_side_misses() -> None:
    given = inputs()
    given["fixed_label"][:] = 0
    dice = call(build_loss({"name": "lncc_dice", "image_weight": 0.0}), given)
    torch.testing.assert_close(dice, torch.ones((), dtype=torch.float64), rtol=1e-5, atol=0)


def test_dice_without_any_structure_is_zero_and_differentiable() -> None:
    given = {k: v * 0 if "label" in k else v for k, v in inputs().items()}
    given["warped_label"].requires_grad_()
    dice = call(build_loss({"name": "lncc_dice", "image_weight": 0.0}), given)
    assert dice == 0
    dice.backward()


def test_keys_of_the_dice_term(caplog) -> None:
    given = inputs()
    pair = given["warped_label"][:, 1], given["fixed_label"][:, 1]
    keys = {"lncc_weight": 0.0, "dice_smooth_nr": 0.5, "dice_smooth_dr": 2.0, "include_background": False}
    loss = build_loss({"name": "lncc_dice", "params": keys})
    dice = [(2 * (p * t).sum() + 0.5) / (p.sum() + t.sum() + 2.0) for p, t in zip(*pair, strict=True)]
    torch.testing.assert_close(call(loss, given), 1 - torch.stack(dice).mean())
    single = {key: value[:, :1] if "label" in key else value for key, value in given.items()}
    assert call(loss, single) != 0  # the only channel is no background
    assert not caplog.records
    build_loss({"name": "lncc_dice", "label_warp_mode": "nearest"})
    assert "nearest has no gradient" in caplog.text


def test_warped_moving_label_is_another_name() -> None:
    given = inputs()
    loss = build_loss({"name": "lncc_dice"})
    other = {"warped_moving_label": given["warped_label"], "moving_label": given["fixed_label"]}
    torch.testing.assert_close(
        loss(given["warped"], given["fixed"], fixed_label=given["fixed_label"], **other), call(loss, given)
    )


def test_dice_needs_labels_and_says_which_keys() -> None:
    warped, fixed = volumes()
    loss = build_loss({"name": "lncc_dice"})
    with pytest.raises(ValueError, match="'moving_label' and 'fixed_label'"):
        loss(warped, fixed)
    with pytest.raises(ValueError, match=r"warped_label has shape \(2, 1, 7, 6, 8\) and fixed_label \(2, 2, 7, 6, 8\)"):
        loss(warped, fixed, warped_label=warped, fixed_label=warped.expand(-1, 2, -1, -1, -1))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "lncc", "kernel_size": 4}, "loss 'lncc': .*odd"),
        ({"name": "lncc", "kernel_type": "round"}, "loss 'lncc': .*kernel_type"),
        ({"name": "lncc", "spatial_dims": 4}, "loss 'lncc': .*(spatial_dims|dim)"),
        ({"name": "lncc", "reduction": "none"}, "reduction is 'none'; it must be 'mean' or 'sum', because training"),
        ({"name": "lncc", "reduction": "median"}, "reduction is 'median'"),
        ({"name": "lncc", "kernel_size": 5, "patch_size": 7}, "kernel_size 5 and patch_size 7 name one window"),
        ({"name": "lncc", "smooth_dr": float("nan")}, "must be finite"),
        ({"name": "lncc_dvf", "kernel_size": 8}, "loss 'lncc_dvf': .*odd"),
        ({"name": "lncc_dvf", "dvf_weight": -1.0}, r"dvf_weight is -1\.0; it must be"),
        ({"name": "lncc_dvf", "image_weight": float("inf")}, "image_weight is inf"),
        ({"name": "lncc_smooth", "smooth_weight": -1.0}, "smooth_weight is"),
        ({"name": "lncc_smooth", "penalty": "l3"}, "loss 'lncc_smooth': .*penalty"),
        ({"name": "lncc_smooth", "spacing": [1.0, 0.0, 1.0]}, "loss 'lncc_smooth': .*spacing"),
        ({"name": "lncc_dice", "dice_weight": -1.0}, "dice_weight is"),
        ({"name": "lncc_dice", "dice_smooth_dr": -1.0}, "dice_smooth_dr is"),
        (
            {"name": "lncc_dice", "lncc_weight": 0.5, "image_weight": 0.3},
            "lncc_weight 0.5 and image_weight 0.3 name",
        ),
        ({"name": "mind", "radius": -1}, "radius must be an integer from 0 to 32, got -1"),
        ({"name": "mind", "dilation": 1.5}, "dilation must be an integer from 1 to 32, got 1.5"),
        ({"name": "mind", "mind_weight": -1.0}, "mind_weight is"),
        ({"name": "mind_dice", "dice_weight": -1.0}, "dice_weight is"),
        ({"name": "mind_dice", "label_warp_padding_mode": "wrap"}, "the warp padding mode is 'wrap'"),
        ({"name": "lncc_dice", "label_warp_mode": "cubic"}, "the warp mode is 'cubic'"),
        ({"name": "lncc_dice", "label_warp_padding_mode": "wrap"}, "the warp padding mode is 'wrap'"),
        ({"name": "dice_smooth", "dice_weight": -1.0}, "dice_weight is"),
        ({"name": "lncc", "kernel_size": "nine"}, "loss 'lncc': "),
        ({"name": "mutual_information", "num_bins": 4}, "num_bins must be at least 6 for kernel='b-spline', got 4"),
        ({"name": "mutual_information", "kernel_type": "box"}, "kernel_type must be one of 'b-spline', 'gaussian'"),
        ({"name": "mutual_information", "reduction": "none"}, "reduction is 'none'; it must be 'mean' or 'sum'"),
        ({"name": "mutual_information", "smooth_weight": -1.0}, "smooth_weight is -1"),
    ],
)
def test_impossible_values(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(section)


def test_mse_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match="they must agree"):
        build_loss({"name": "mse"})(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 1))


@pytest.mark.parametrize(
    ("given", "raised"),
    [((0.0, 1e-5), (1e-4, 1e-2)), ((1.0, 1e-5), (1.0, 1e-2)), ((0.0, 1.0), (1e-4, 1.0)), ((1e-4, 1e-2), (1e-4, 1e-2))],
)
def test_validate_smoothing_params(
    given: tuple[float, float], raised: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    usreg.losses.utils._log_raised.cache_clear()
    with caplog.at_level(logging.INFO, "usreg"):
        assert validate_smoothing_params(*given) == raised
        assert validate_smoothing_params(*given) == raised
    assert len(caplog.records) == (given != raised)


def test_register_loss_is_the_registry() -> None:
    @register_loss("test_losses_own")
    def make(scale: float = 1.0) -> nn.Module:
        return nn.Softshrink(scale)

    try:
        assert build_loss({"name": "test_losses_own", "scale": 0.25}).lambd == 0.25
        with pytest.raises(ConfigError, match="unexpected keyword"):
            build_loss({"name": "test_losses_own", "unknown": 1})
    finally:
        del LOSS_REGISTRY["test_losses_own"]


# ---- smoothing terms -------------------------------------------------------------------------------------------------


def test_the_default_smoothing_is_raised_without_a_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loss = build_loss({"name": "lncc"})
    assert (loss.lncc.smooth_nr, loss.lncc.smooth_dr) == (1e-4, 1e-2)
    assert not caplog.records


@pytest.mark.parametrize("name", ["lncc", "lncc_dice", "lncc_dvf", "lncc_smooth"])
def test_smoothing_is_taken_as_given_when_asked(name: str) -> None:
    loss = build_loss({"name": name, "smooth_nr": 0.0, "smooth_dr": 1e-6, "clamp_smoothing": False})
    lncc = getattr(loss, "image_loss", loss).lncc
    assert (lncc.smooth_nr, lncc.smooth_dr) == (0.0, 1e-6)


def test_a_loss_below_minus_one_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    image = 0.5 + 0.0037 * torch.randn(1, 1, 24, 24, 24)
    loss = build_loss({"name": "lncc", "kernel_size": 9})
    with caplog.at_level(logging.WARNING):
        assert loss(image, image) < -1.2
        loss(image, image)
    assert len(caplog.records) == 1
    assert "clamp_smoothing=false" in caplog.text
    caplog.clear()
    as_given = build_loss({"name": "lncc", "kernel_size": 9, "clamp_smoothing": False})
    assert as_given(image, image).item() == pytest.approx(-1.0, abs=1e-3)
    assert not caplog.records


def test_numbers_may_be_text() -> None:
    """YAML 1.1, which PyYAML reads, makes text of 1e-4."""
    given = {"name": "lncc", "kernel_size": "5", "smooth_nr": "1e-3", "smooth_dr": "2e-2"}
    assert repr(build_loss(given)) == repr(
        build_loss({**given, "kernel_size": 5, "smooth_nr": 1e-3, "smooth_dr": 0.02})
    )
    spaced = build_loss({"name": "lncc_smooth", "spacing": ["1", "2.0", "5e-1"]})
    assert list(spaced.smoothness.spacing) == [1.0, 2.0, 0.5]
    assert validate_smoothing_params("1e-3", "1") == (1e-3, 1.0)
    for name, loss in (("smooth_nr", "lncc"), ("dvf_weight", "lncc_dvf")):
        with pytest.raises(ConfigError, match=f"{name} is 'much'; it must be a number"):
            build_loss({"name": loss, name: "much"})


def test_a_key_that_does_nothing_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_loss({"name": "lncc", "kernal_size": 5})
    assert "'lncc' has no key 'kernal_size': it does nothing. Did you mean 'kernel_size'?" in caplog.text


@pytest.mark.parametrize("name", ["lncc", "mse", "lncc_smooth"])
def test_a_mask_weighs_the_voxels(name: str) -> None:
    warped, fixed = torch.rand(2, 1, 1, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    loss = build_loss({"name": name})
    everywhere = torch.ones_like(fixed)
    torch.testing.assert_close(loss(warped, fixed, mask=everywhere), loss(warped, fixed))
    half = everywhere.clone()
    half[..., 4:] = 0
    other = 1 - half
    parts = [float(mask.sum()) * loss(warped, fixed, mask=mask) for mask in (half, other)]
    torch.testing.assert_close(sum(parts) / everywhere.sum(), loss(warped, fixed))
    changed = torch.where(other > 0, warped + 5, warped)
    if name == "mse":
        torch.testing.assert_close(loss(changed, fixed, mask=half), loss(warped, fixed, mask=half))
    assert loss(warped, fixed, mask=torch.zeros_like(fixed)) == 0


def test_keys_and_mask_of_mutual_information() -> None:
    given = inputs()
    warped, fixed, field = given["warped"], given["fixed"], given["pred_dvf"]
    keys = {"num_bins": 12, "kernel_type": "gaussian", "normalized": True, "sigma_ratio": 0.8, "smooth_dr": 1e-6}
    mask = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(4))
    loss = build_loss({"name": "mutual_information", "smooth_weight": 0.3, **keys})
    image_term = mutual_information_loss(
        warped, fixed, num_bins=12, kernel="gaussian", normalized=True, sigma_ratio=0.8, smooth_dr=1e-6, mask=mask
    )
    torch.testing.assert_close(loss(warped, fixed, mask=mask), image_term)
    torch.testing.assert_close(loss(warped, fixed, field, mask=mask), image_term + 0.3 * smoothness(field))
    half = (torch.arange(SIZE[2]) < 4).expand(2, 1, *SIZE)
    changed = torch.where(half, warped, warped + 5)
    torch.testing.assert_close(loss(changed, fixed, mask=half), loss(warped[..., :4], fixed[..., :4]))


@pytest.mark.parametrize("name", ["lncc", "mse", "mind", "mutual_information"])
def test_images_of_several_channels(name: str) -> None:
    """The mean over the channels; mutual information takes all voxels of all channels together."""
    generator = torch.Generator().manual_seed(0)
    scale, offset = (torch.tensor(values).reshape(1, 3, 1, 1, 1) for values in ((1.0, 0.3, 0.2), (0.0, 0.5, 0.1)))
    warped, fixed = (torch.rand(2, 3, *SIZE, generator=generator) * scale + offset for _ in range(2))
    loss = build_loss({"name": name})
    if name == "mutual_information":
        expected = loss(*(image.reshape(2, 1, 3 * SIZE[0], *SIZE[1:]) for image in (warped, fixed)))
    else:
        expected = torch.stack([loss(warped[:, i : i + 1], fixed[:, i : i + 1]) for i in range(3)]).mean()
    torch.testing.assert_close(loss(warped, fixed), expected, rtol=1e-5, atol=1e-6)


def test_lncc_of_slices(caplog: pytest.LogCaptureFixture) -> None:
    """A window of 1 across the slice gives the value in 2-D; a larger one sees zeros, which is said once."""
    generator = torch.Generator().manual_seed(0)
    warped, fixed = (torch.rand(2, 1, 1, 20, 21, generator=generator) for _ in range(2))
    flat = build_loss({"name": "lncc", "kernel_size": 9, "spatial_dims": 2})(warped[:, :, 0], fixed[:, :, 0])
    torch.testing.assert_close(build_loss({"name": "lncc", "kernel_size": [1, 9, 9]})(warped, fixed), flat)
    assert not caplog.records
    cube = build_loss({"name": "lncc", "kernel_size": 9})
    assert cube(warped, fixed) < flat - 0.1
    cube(warped, fixed)
    assert [
        record.getMessage().endswith("kernel_size: [1, 9, 9] looks at the slice only") for record in caplog.records
    ] == [True]

"""Losses put together from others in the config: the value and the gradient of the sum written out."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from usreg.config import load_config
from usreg.datasets import DATASET_REGISTRY
from usreg.datasets.deepreg_synthetic import DeepRegSynthetic
from usreg.errors import ConfigError
from usreg.losses import LOSS_REGISTRY, build_loss
from usreg.losses.call import LossCall
from usreg.models.warp import warp
from usreg_kernels import folding_loss, gradient_smoothness_loss

GENERATOR = torch.Generator().manual_seed(0)
MOVING, FIXED = (torch.rand(2, 1, 8, 9, 10, generator=GENERATOR) for _ in range(2))
LABELS = [(torch.rand(2, 2, 8, 9, 10, generator=GENERATOR) > 0.5).float() for _ in range(2)]
BATCH = {"moving": MOVING, "fixed": FIXED, "moving_label": LABELS[0], "fixed_label": LABELS[1]}
FIELD = 1.5 * torch.rand(2, 3, 8, 9, 10, generator=GENERATOR) - 0.75


def value_and_gradient(section):
    field = FIELD.clone().requires_grad_()
    total, terms = LossCall(build_loss(section)).with_terms(warp(MOVING, field), field, BATCH)
    total.backward()
    return total.detach(), field.grad, terms


def test_a_sum_is_the_named_loss_of_the_same_terms():
    named = {"name": "lncc_dice", "kernel_size": 5, "dice_weight": 0.5, "smooth_weight": 0.25}
    terms = [
        {"name": "lncc", "kernel_size": 5},
        {"name": "dice", "weight": 0.5},
        {"name": "smoothness", "weight": 0.25},
    ]
    expected, found = value_and_gradient(named), value_and_gradient({"name": "sum", "terms": terms})
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert list(found[2]) == ["lncc", "dice", "smoothness"]


def test_terms_of_the_field():
    terms = [{"name": "folding", "margin": 0.5, "weight": 2}, {"name": "smoothness", "penalty": "l1", "weight": 3}]
    total, gradient, found = value_and_gradient({"name": "sum", "terms": terms})
    field = FIELD.clone().requires_grad_()
    folding, smoothness = folding_loss(field, margin=0.5), gradient_smoothness_loss(field, penalty="l1")
    (2 * folding + 3 * smoothness).backward()
    assert folding > 0
    torch.testing.assert_close(total, (2 * folding + 3 * smoothness).detach())
    torch.testing.assert_close(gradient, field.grad)
    torch.testing.assert_close(found, {"folding": folding.detach(), "smoothness": smoothness.detach()})


def test_a_term_of_weight_0_is_looked_at_and_changes_nothing():
    terms = [{"name": "mse"}, {"name": "dice", "weight": 0}, {"name": "mse", "weight": 0.5}]
    total, gradient, found = value_and_gradient({"name": "sum", "terms": terms})
    expected = value_and_gradient({"name": "mse"})
    torch.testing.assert_close(total, 1.5 * expected[0])
    torch.testing.assert_close(gradient, 1.5 * expected[1])
    assert 0 < found["dice"] < 1
    assert found["mse"] == found["mse_2"] == expected[0]


def test_labels_are_warped_as_the_term_says():
    shifted = torch.full_like(FIELD, 20.0)
    label = torch.ones(2, 1, 8, 9, 10)
    batch = BATCH | {"moving_label": label, "fixed_label": label}
    for padding, expected in (("border", 0.0), ("zeros", 1.0)):
        section = {"name": "sum", "terms": [{"name": "dice", "label_warp_padding_mode": padding}]}
        assert LossCall(build_loss(section))(MOVING, shifted, batch) == pytest.approx(expected, abs=1e-4)
    both = [{"name": "dice"}, {"name": "dice", "label_warp_padding_mode": "zeros"}]
    with pytest.raises(ConfigError, match="border and zeros; give all of them the same"):
        build_loss({"name": "sum", "terms": both})


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, warped, fixed, *, fixed_mask=None):
        return {"loss": self.scale * (warped - fixed).abs().mean(), "masked": float(fixed_mask is not None)}


def test_terms_of_ones_own(monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY, "own", Own)
    loss = build_loss({"name": "sum", "terms": [{"name": "own", "weight": 2.0}, {"name": "mse"}]})
    assert [name for name, _ in loss.named_parameters()] == ["terms.own.scale"]
    mask = torch.ones_like(FIXED)
    _, terms = LossCall(loss).with_terms(MOVING, FIELD, BATCH | {"fixed_mask": mask})
    assert terms["own_masked"] == 1.0
    torch.testing.assert_close(terms["own"], (MOVING - FIXED).abs().mean())


def test_a_sum_asks_for_what_its_terms_ask_for():
    """A registration with masks refuses a loss that does not take them, and warps labels only for one that does."""
    sums = {
        names: LossCall(build_loss({"name": "sum", "terms": [{"name": name} for name in names]})).extras
        for names in (("lncc", "smoothness"), ("lncc", "dice"), ("lncc_dvf", "mse"))
    }
    assert sums == {
        ("lncc", "smoothness"): ("mask",),
        ("lncc", "dice"): ("fixed_label", "warped_label", "mask"),
        ("lncc_dvf", "mse"): (),  # the first would leave the mask out
    }


class Labelled(DeepRegSynthetic):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {"moving_label": sample["moving_mask"], "fixed_label": sample["fixed_mask"]}


def test_a_composed_loss_trains_and_its_terms_are_recorded(train_tiny, monkeypatch):
    monkeypatch.setitem(DATASET_REGISTRY, "labelled", Labelled)
    names = "train_dataset.name=labelled", "val_dataset.name=labelled"
    terms = (
        "[{name: lncc, kernel_size: 3}, {name: dice, weight: 0.5}, {name: smoothness, weight: 0.1}, {name: folding}]"
    )
    result = train_tiny(*names, f"loss={{name: sum, terms: {terms}}}", "training.best=[dice, tre]")
    with (result.folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            total = sum(
                weight * float(row[f"val_{name}"])
                for name, weight in {"lncc": 1, "dice": 0.5, "smoothness": 0.1, "folding": 1}.items()
            )
            assert float(row["val_loss"]) == pytest.approx(total, rel=1e-4)
    assert (result.folder / "best_dice.pt").exists()
    again = load_config(result.folder / "config.yaml")
    assert again.loss["terms"][1] == {"name": "dice", "weight": 0.5}
    table = train_tiny.output.getvalue().split("validation after epoch 1")[1]
    places = [table.index(name) for name in ("dice", "tre", "neg_jac_ratio", "log_jac_std", "mse")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("[]", "terms is empty"),
        ("[mse]", r"loss\.terms\[0\].*section with a 'name'"),
        ("[{name: mse}, {name: lnc}]", r"loss\.terms\[1\].*Did you mean 'lncc'"),
        ("[{name: lncc, kernel_sise: 3}]", r"loss\.terms\[0\]\.kernel_sise .*Did you mean 'kernel_size'"),
        ("[{name: lncc, kernel_size: 4}]", r"terms\[0\]: .*kernel_size"),
        ("[{name: mse, weight: -1}]", r"loss\.terms\[0\]\.weight .*0 or more"),
    ],
)
def test_what_is_wrong_with_a_term_is_named(train_tiny, terms, message):
    with pytest.raises(ConfigError, match=message):
        train_tiny(f"loss={{name: sum, terms: {terms}}}")

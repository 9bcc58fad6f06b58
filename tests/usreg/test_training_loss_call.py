"""The loop calls a loss by its signature, found once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from usreg.errors import ConfigError
from usreg.losses import LOSS_REGISTRY, build_loss
from usreg.models.warp import warp
from usreg.training import LossCall

WARPED, FIXED, MOVING = (torch.rand(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
DDF, DVF = torch.full((1, 3, 4, 4, 4), 0.5), torch.full((1, 3, 4, 4, 4), 0.25)
LABEL = torch.ones(1, 2, 4, 4, 4)
BATCH = {"moving": MOVING, "fixed": FIXED, "dvf": DVF, "moving_label": LABEL, "fixed_label": LABEL}


class Recorder(nn.Module):
    """Keeps what its subclasses' forward was called with."""

    seen: tuple = ()

    def keep(self, *values):
        self.seen = values
        return torch.zeros(())


class ImageOnly(Recorder):
    def forward(self, warped, fixed):
        return self.keep(warped, fixed)


class DVFAware(Recorder):
    def forward(self, warped, fixed, pred_dvf=None, gt_dvf=None):
        return self.keep(warped, fixed, pred_dvf, gt_dvf)


class Starred(Recorder):
    def forward(self, *images):
        return self.keep(*images)


class ThirdOptional(Recorder):
    def forward(self, warped, fixed, sharpness=2.0):
        return self.keep(warped, fixed, sharpness)


class Labelled(Recorder):
    def forward(self, warped, fixed, *, warped_label=None, fixed_label=None, moving_mask=None, sharpness=2.0):
        return self.keep(warped_label, fixed_label, moving_mask, sharpness)


class ByName(Recorder):
    def forward(self, warped, fixed, *, pred_dvf, gt_dvf):
        return self.keep(pred_dvf, gt_dvf)


@pytest.mark.parametrize(
    ("loss", "seen"),
    [
        (ImageOnly(), (WARPED, FIXED)),
        (DVFAware(), (WARPED, FIXED, DDF, DVF)),
        (Starred(), (WARPED, FIXED, DDF, DVF)),
        (ThirdOptional(), (WARPED, FIXED, 2.0)),
        (ByName(), (DDF, DVF)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_passes_what_the_signature_asks_for(loss, seen):
    LossCall(loss)(WARPED, DDF, BATCH)
    assert all(a is b or a == b for a, b in zip(loss.seen, seen, strict=True))


def test_keyword_only_tensors_are_filled_and_absent_ones_are_none():
    loss = Labelled()
    LossCall(loss)(WARPED, DDF, BATCH)
    warped_label, fixed_label, moving_mask, sharpness = loss.seen
    torch.testing.assert_close(warped_label, warp(LABEL, DDF))
    assert fixed_label is LABEL
    assert moving_mask is None
    assert sharpness == 2.0
    LossCall(loss)(WARPED, DDF, {"moving": MOVING, "fixed": FIXED})
    assert loss.seen[:2] == (None, None)


class OldNames(Recorder):
    def forward(self, warped, fixed, pred_dvf=None, gt_dvf=None, fixed_label=None, warped_moving_label=None):
        return self.keep(pred_dvf, gt_dvf, fixed_label, warped_moving_label)


class LabelsOnly(Recorder):
    label_warp_padding_mode = "zeros"

    def forward(self, warped, fixed, warped_label, moving_label=None):
        return self.keep(warped_label, moving_label)


def test_labels_by_name_need_not_be_keyword_only():
    loss = OldNames()
    LossCall(loss)(WARPED, DDF, BATCH)
    assert loss.seen[:3] == (DDF, DVF, LABEL)
    torch.testing.assert_close(loss.seen[3], warp(LABEL, DDF))
    loss = LabelsOnly()
    assert not LossCall(loss).dvf_aware
    LossCall(loss)(WARPED, 9 * DDF, BATCH)
    assert loss.seen[1] is LABEL
    torch.testing.assert_close(loss.seen[0], warp(LABEL, 9 * DDF, padding_mode="zeros"))
    assert not loss.seen[0].any()


class FieldThird(Recorder):
    def forward(self, warped, fixed, pred_dvf=None):
        return self.keep(pred_dvf)


class Swapped(Recorder):
    def forward(self, warped, fixed, gt_dvf=None, pred_dvf=None, sharpness=2.0, fixed_mask=None):
        return self.keep(pred_dvf, gt_dvf)


class MixedOrder(Recorder):
    def forward(self, warped, fixed, sharpness=2.0, pred_dvf=None, fixed_label=None, *, gt_dvf=None):
        assert sharpness == 2.0
        assert fixed_label is LABEL
        return self.keep(pred_dvf, gt_dvf)


class OtherNames(Recorder):
    def forward(self, warped, fixed, flow, target=None):
        return self.keep(flow, target)


class Numbers(Recorder):
    def forward(self, warped, fixed, sharpness=2.0, contrast=3.0):
        return self.keep(sharpness, contrast)


@pytest.mark.parametrize("loss", [Swapped(), MixedOrder(), OtherNames()], ids=lambda x: type(x).__name__)
def test_fields_are_filled_wherever_they_stand(loss, caplog):
    call = LossCall(loss)
    assert call.dvf_aware
    call(WARPED, DDF, BATCH)
    assert loss.seen[0] is DDF
    assert loss.seen[1] is DVF
    said = "OtherNames: flow gets pred_dvf, target gets gt_dvf by their places"
    assert (said in caplog.text) is isinstance(loss, OtherNames)


def test_one_field_is_filled_by_name():
    loss = FieldThird()
    LossCall(loss)(WARPED, DDF, BATCH)
    assert loss.seen == (DDF,)


def test_numbers_are_no_fields(caplog):
    loss = Numbers()
    LossCall(loss)(WARPED, DDF, BATCH)
    assert loss.seen == (2.0, 3.0)
    assert not caplog.text


class Unknown(Recorder):
    def forward(self, warped, fixed, ddf=None):
        return self.keep(ddf)


def test_what_stays_none_is_said(caplog):
    LossCall(Unknown())
    assert "Unknown: ddf stays None" in caplog.text
    assert "pred_dvf" in caplog.text


class Terms(nn.Module):
    def forward(self, warped, fixed):
        error = (warped - fixed).abs().mean()
        return {"loss": 2 * error, "error": error, "weight": 2.0}


def test_terms_come_beside_the_total():
    warped = WARPED.clone().requires_grad_()
    total, terms = LossCall(Terms()).with_terms(warped, DDF, BATCH)
    error = (WARPED - FIXED).abs().mean()
    assert total == 2 * error
    assert total.requires_grad
    assert terms == {"error": error, "weight": torch.tensor(2.0)}
    assert not terms["error"].requires_grad
    assert LossCall(Terms())(WARPED, DDF, BATCH) == total


def test_terms_without_a_total_are_refused():
    with pytest.raises(ConfigError, match="dictionary of image, field; it needs an entry 'loss'"):
        LossCall(lambda warped, fixed: {"image": 1.0, "field": 2.0})(WARPED, DDF, BATCH)


@pytest.mark.parametrize(
    ("factory", "message"), [(lambda: None, "None.*end with 'return'"), (lambda: nn.MSELoss, "the class MSELoss")]
)
def test_a_factory_that_makes_no_loss(monkeypatch, factory, message):
    monkeypatch.setitem(LOSS_REGISTRY, "mine", factory)
    with pytest.raises(ConfigError, match=f"the loss 'mine' returned {message}"):
        build_loss({"name": "mine"})


def test_a_factory_may_make_a_function(monkeypatch):
    """Its further parameters have names of their own, and keep their defaults."""
    monkeypatch.setitem(LOSS_REGISTRY, "mine", lambda: nn.functional.l1_loss)
    loss = build_loss({"name": "mine"})
    assert isinstance(loss, nn.Module)
    assert LossCall(loss)(WARPED, DDF, BATCH) == (WARPED - FIXED).abs().mean()


def test_a_batch_without_field_gives_none():
    loss = DVFAware()
    LossCall(loss)(WARPED, DDF, {"moving": MOVING, "fixed": FIXED})
    assert loss.seen[2] is DDF
    assert loss.seen[3] is None


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
@pytest.mark.parametrize(("loss", "aware"), [(ImageOnly(), False), (DVFAware(), True)])
def test_looks_through_wrappers(wrap, loss, aware):
    assert LossCall(wrap(loss)).dvf_aware is aware


def test_plain_function():
    assert LossCall(lambda warped, fixed: (warped - fixed).mean())(WARPED, DDF, BATCH) == (WARPED - FIXED).mean()


class NeedsThree(nn.Module):
    def forward(self, warped, fixed, atlas):
        return warped


class NeedsFive(nn.Module):
    def forward(self, warped, fixed, pred_dvf, gt_dvf, atlas):
        return warped


class NeedsKeyword(nn.Module):
    def forward(self, warped, fixed, *, atlas):
        return warped


class TakesOne(nn.Module):
    def forward(self, warped):
        return warped


@pytest.mark.parametrize(
    "loss", [NeedsThree(), NeedsFive(), NeedsKeyword(), TakesOne()], ids=lambda x: type(x).__name__
)
def test_a_signature_that_cannot_be_served_is_refused_at_once(loss):
    with pytest.raises(ConfigError, match=r"forward\(warped, fixed, pred_dvf, gt_dvf\)") as error:
        LossCall(loss)
    assert type(loss).__name__ in str(error.value)
    if not isinstance(loss, TakesOne):
        assert "atlas" in str(error.value)


class RaisesTypeError(nn.Module):
    def forward(self, warped, fixed, pred_dvf=None, gt_dvf=None):
        return warped + "a bug of the loss"


def test_a_type_error_inside_the_loss_reaches_the_user():
    with pytest.raises(TypeError, match="unsupported operand"):
        LossCall(RaisesTypeError())(WARPED, DDF, BATCH)


class TakesMask(nn.Module):
    def forward(self, warped, fixed, *, mask=None):
        return warped.mean() if mask is None else mask.mean()


def test_a_mask_is_passed_where_the_batch_has_one():
    call = LossCall(TakesMask())
    assert call(WARPED, DDF, BATCH) == WARPED.mean()
    assert call(WARPED, DDF, {**BATCH, "mask": torch.full_like(WARPED, 0.25)}) == 0.25

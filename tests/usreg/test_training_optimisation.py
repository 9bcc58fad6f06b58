"""Schedules, accumulation, averages, optimizers, freezing, starts from other weights, and the choice of checkpoints."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from torch import nn

from usreg.config import load_config
from usreg.errors import ConfigError, UsageError
from usreg.losses import LOSS_REGISTRY
from usreg.metrics import METRIC_REGISTRY
from usreg.models import build_model
from usreg.training import load_checkpoint
from usreg.training.averaging import MovingAverage
from usreg.training.checkpoints import find_checkpoint, load_weights
from usreg.training.optimizers import build_optimizer, optimizer_names
from usreg.training.schedules import SCHEDULER_REGISTRY, Length
from usreg.training.selection import Selection


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rates(section, steps=20, epoch=5, lr=1.0):
    """The learning rate of each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = SCHEDULER_REGISTRY.build(section)(optimizer, Length(steps, epoch))
    found = []
    for _ in range(steps):
        found.append(schedule.lr)
        optimizer.step()
        schedule.after_step()
    return [*found, schedule.lr]


def test_cosine():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 20)) / 2 for i in range(21)]
    assert rates({"name": "cosine", "eta_min": 0.1}) == pytest.approx(expected)


def test_cosine_after_a_warm_up():
    found = rates({"name": "cosine", "warmup_steps": 4, "warmup_factor": 0.2})
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * i / 16)) / 2 for i in range(17)], abs=1e-12)


def test_step():
    assert rates({"name": "step", "step_size": 2, "gamma": 0.5}) == [1.0] * 10 + [0.5] * 10 + [0.25]


def test_one_cycle():
    found = rates({"name": "one_cycle", "pct_start": 0.5, "div_factor": 10, "final_div_factor": 100})
    assert found[0] == pytest.approx(0.1)
    assert max(found) == pytest.approx(1.0, abs=0.01)  # the peak lies between two steps
    assert found.index(max(found)) in (9, 10)
    assert found[-1] == pytest.approx(0.001)


def test_warm_up():
    assert rates({"name": "constant", "warmup_steps": 2, "warmup_factor": 0.5})[:4] == [0.5, 0.75, 1.0, 1.0]


def test_plateau(train_tiny, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY, "flat", lambda ddf: torch.ones(len(ddf)))
    section = "scheduler={name: plateau, metric: 'flat:max', patience: 0, factor: 0.5}"
    result = train_tiny(section, "training.epochs=4", "optimizer.lr=8e-4")
    assert [float(row["lr"]) for row in rows(result.folder)] == pytest.approx([8e-4, 8e-4, 4e-4, 2e-4])


@pytest.mark.parametrize(
    "section",
    [
        "{name: cosine, warmup_steps: 2}",
        "{name: one_cycle}",
        "{name: step, step_size: 1}",
        "{name: plateau, metric: epe, patience: 0, factor: 0.5, threshold: 1}",
        "{name: constant, warmup_steps: 5}",
    ],
)
def test_a_resumed_schedule_is_the_uninterrupted_one(train_tiny, monkeypatch, section):
    """The stop comes from a validation that fails."""
    whole = train_tiny(f"scheduler={section}", "training.save_dir=whole", "training.ema=0.9")
    table = [(row["lr"], row["train_loss"], row["val_loss"]) for row in rows(whole.folder)]
    calls = []

    def failing(ddf):
        calls.append(1)
        if len(calls) == 5:
            raise ValueError("stop here")
        return ddf.flatten(1).mean(1)

    with monkeypatch.context() as context:
        context.setitem(METRIC_REGISTRY, "failing", failing)
        with pytest.raises(ValueError, match="stop here"):
            train_tiny(f"scheduler={section}", "training.ema=0.9")
    rest = train_tiny(f"scheduler={section}", "training.resume=run", "training.ema=0.9")
    assert [(row["lr"], row["train_loss"], row["val_loss"]) for row in rows(rest.folder)] == table
    states = [load_checkpoint(result.folder / "last.pt") for result in (whole, rest)]
    for key in ("model", "ema"):
        one, other = (state[key]["model"] if key == "ema" else state[key] for state in states)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_length_is_refused_by_a_schedule_that_depends_on_it(train_tiny):
    train_tiny("scheduler={name: cosine}")
    with pytest.raises(ConfigError, match=r"made for name cosine, steps 6.*name cosine, steps 9.*training\.init_from"):
        train_tiny("scheduler={name: cosine}", "training.resume=run", "training.epochs=3")
    train_tiny("scheduler={name: step, step_size: 1}", "training.save_dir=steps")
    train_tiny("scheduler={name: step, step_size: 1}", "training.resume=steps", "training.epochs=3")


def test_accumulated_batches_are_one_large_one(train_tiny):
    """Five samples: the last batch, and the last step, are smaller."""
    base = "train_dataset.num_samples=5", "training.epochs=1", "optimizer={name: SGD, lr: 1e-3}"
    large = train_tiny(*base, "training.batch_size=4", "training.save_dir=large")
    small = train_tiny(*base, "training.batch_size=1", "training.accumulate=4", "training.save_dir=small")
    states = [load_checkpoint(result.folder / "last.pt") for result in (large, small)]
    assert [state["progress"]["step"] for state in states] == [2, 2]
    for name, weights in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], weights, rtol=1e-4, atol=1e-6)
    assert float(rows(small.folder)[0]["train_loss"]) == pytest.approx(
        float(rows(large.folder)[0]["train_loss"]), rel=1e-4
    )


def test_the_average_of_the_weights():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = MovingAverage(network, 0.5)
    expected = network[0].weight.item()
    for step in range(30):
        with torch.no_grad():
            network[0].weight.fill_(float(step))
        network(torch.rand(4, 1))
        average.update(network)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.network[0].weight.item() == pytest.approx(expected, rel=1e-5)
    assert average.network[1].num_batches_tracked == 30
    assert not average.network[0].weight.requires_grad


def test_the_average_is_what_is_validated_and_read_back(train_tiny):
    result = train_tiny("training.ema=0.9", "optimizer.lr=1e-3")
    content = load_checkpoint(result.folder / "last.pt")
    name = "network.1.weight"
    assert not torch.equal(content["ema"]["model"][name], content["model"][name])
    config = load_config(result.folder / "config.yaml")
    network = build_model(config.model, config.image_size)
    load_weights(network, content, result.folder / "last.pt")
    assert torch.equal(network.state_dict()[name], content["ema"]["model"][name])


@pytest.mark.parametrize("name", [name for name in optimizer_names() if name not in ("Muon",)])
def test_every_optimizer_of_torch_trains(name):
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(name, [weight], lr=1e-2, weight_decay=0.0, options={})
    weight.square().sum().backward()
    optimizer.step()
    assert (weight < 1).any()


def test_options_of_an_optimizer(train_tiny):
    result = train_tiny("optimizer={name: adamw, lr: 1e-3, betas: [0.8, 0.9], amsgrad: true}", "training.epochs=1")
    group = load_checkpoint(result.folder / "last.pt")["optimizer"]["param_groups"][0]
    assert (group["betas"], group["amsgrad"]) == ((0.8, 0.9), True)
    assert load_config(result.folder / "config.yaml").optimizer.options == {"betas": [0.8, 0.9], "amsgrad": True}
    with pytest.raises(ConfigError, match="has none; leave it out"):
        build_optimizer("Rprop", [nn.Parameter(torch.ones(1))], 1e-3, 0.1, {})


def test_frozen_weights_stay(train_tiny):
    first = train_tiny("training.epochs=1", "training.max_steps=1", "training.save_dir=first")
    result = train_tiny("training.freeze=['network.0*']", "training.init_from=first", "training.best=[mse]")
    before, after = (load_checkpoint(r.folder / "last.pt")["model"] for r in (first, result))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"network.1.weight", "network.1.bias"}


def test_weights_of_another_model_are_named(train_tiny):
    train_tiny("training.epochs=1")
    with pytest.raises(ConfigError, match=r"another model.*leave training\.init_from out"):
        train_tiny("training.init_from=run", "model.channels=[4,12]")


class Terms(nn.Module):
    def forward(self, warped, fixed, pred_dvf, gt_dvf):
        image, field = (warped - fixed).square().mean(), (pred_dvf - gt_dvf).square().mean()
        return {"loss": image + field, "image": image, "field": field}


def test_terms_are_recorded_one_by_one(train_tiny, monkeypatch):
    monkeypatch.setitem(LOSS_REGISTRY, "terms", Terms)
    result = train_tiny("loss={name: terms}", "training.accumulate=2")
    for row in rows(result.folder):
        for part in ("train", "val"):
            total = float(row[f"{part}_image"]) + float(row[f"{part}_field"])
            assert float(row[f"{part}_loss"]) == pytest.approx(total, rel=1e-4)
    assert "   image 0." in train_tiny.output.getvalue()


def scripted(*values):
    """A metric that has these values, one after the other: the trial takes the first two, and the identity one."""
    left = [0.0, 0.0, *(v for pair in zip(values[:1], [0.0], strict=True) for v in pair), *values[1:]]
    return lambda ddf: torch.full((len(ddf),), left.pop(0))


def test_the_best_checkpoints_by_any_metric(train_tiny, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY, "mine", scripted(1.0, 3.0, 2.0, 2.5))
    monkeypatch.setitem(METRIC_REGISTRY, "yours", scripted(1.0, 3.0, 0.5, 0.75))
    result = train_tiny("training.epochs=4", "training.best=['mine:max', 'yours:min']", "training.keep=2")
    names = {path.name for path in result.folder.glob("*.pt")}
    assert names == {"last.pt", "best_mine.pt", "best_yours.pt", "epoch_0003.pt", "epoch_0004.pt"}
    epochs = {name: load_checkpoint(result.folder / name)["progress"]["epoch"] for name in names}
    assert epochs == {"last.pt": 4, "best_mine.pt": 2, "best_yours.pt": 3, "epoch_0003.pt": 3, "epoch_0004.pt": 4}
    assert find_checkpoint(result.folder).name == "best_mine.pt"


def test_early_stopping(train_tiny, monkeypatch):
    monkeypatch.setitem(METRIC_REGISTRY, "mine", scripted(1.0, 3.0, 2.0, 2.5, 9.0))
    result = train_tiny("training.epochs=9", "training.best='mine:max'", "training.patience=2")
    assert len(rows(result.folder)) == 4
    assert "stopped early: 2 validations without a better mine than 3" in train_tiny.output.getvalue()
    monkeypatch.setitem(METRIC_REGISTRY, "mine", scripted(0.0))
    with pytest.raises(UsageError, match=r"nothing is left.*larger training\.patience"):
        train_tiny("training.epochs=9", "training.best='mine:max'", "training.patience=2", "training.resume=run")


def test_metrics_with_a_rhythm_of_their_own(train_tiny):
    result = train_tiny("training.epochs=5", "training.metric_every={epe: 3}")
    assert [bool(row["epe"]) for row in rows(result.folder)] == [False, False, True, False, True]
    assert all(row["mse"] for row in rows(result.folder))
    assert result.evaluation.metrics["epe"] is not None
    assert result.evaluation.identity["epe"] is not None


def test_a_checkpoint_of_another_run_is_not_overwritten(train_tiny, monkeypatch, tmp_path):
    """Somebody else writes into the folder while the second epoch is validated."""
    calls = []

    def intruding(ddf):
        calls.append(1)
        if len(calls) == 5:
            (tmp_path / "run" / "last.pt").write_bytes(b"another run's")
        return ddf.flatten(1).mean(1)

    monkeypatch.setitem(METRIC_REGISTRY, "intruding", intruding)
    with pytest.raises(UsageError, match=r"written by another run.*training\.save_dir"):
        train_tiny()
    assert (tmp_path / "run" / "last.pt").read_bytes() == b"another run's"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dice", Selection("dice", True)),
        ("dice_label2", Selection("dice_label2", True)),
        ("tre", Selection("tre", False)),
        ("val_loss", Selection("val_loss", False)),
        ("mae:max", Selection("mae", True)),
    ],
)
def test_directions(text, expected):
    assert Selection.parse(text) == expected

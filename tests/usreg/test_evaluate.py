"""Evaluation: the numbers of a validation in training, by case; comparisons; files; and what is wrong is said."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import scipy.stats
import torch
from rich.console import Console

import usreg
from usreg import evaluate as command
from usreg.config import load_config
from usreg.errors import ConfigError, DataError, UsageError
from usreg.evaluation import CaseResult, Results
from usreg.evaluation.methods import method_of_registration
from usreg.evaluation.results import paired_p
from usreg.evaluation.tables import show
from usreg.io.writing import write_volume
from usreg.models import build_model
from usreg.spatial import Grid
from usreg.training.checkpoints import save_checkpoint
from usreg.transformation import apply

QUICK_REGISTRATION = "stages: [{stage: affine, levels: [2], iterations: [3], loss: {name: lncc, kernel_size: 3}}]\n"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_means_are_those_of_the_last_validation_in_training(train_tiny: Callable, tmp_path: Path) -> None:
    run = train_tiny("val_dataset.num_samples=3")
    found = usreg.evaluate(run.folder / "last.pt", split="val", out=tmp_path / "out")
    (name,) = found.methods
    assert name == "run-last"
    assert run.evaluation is not None
    known = {metric: value for metric, value in run.evaluation.metrics.items() if value is not None}
    assert set(found.metrics) == set(known)
    for metric, value in known.items():
        assert found.values(name, metric).mean() == pytest.approx(value, rel=1e-6)
        assert found.values(name, metric, before=True).mean() == pytest.approx(
            run.evaluation.identity[metric], rel=1e-6
        )
    rows = rows_of(tmp_path / "out" / "cases.csv")
    assert len(rows) == 3 * len(known)
    (first,) = (row for row in rows if row["case"] == "val[1]" and row["metric"] == "epe")
    assert float(first["after"]) == pytest.approx(found.values(name, "epe")[1], rel=1e-5)
    summary = {row["metric"]: row for row in rows_of(tmp_path / "out" / "summary.csv")}
    values = found.values(name, "ncc")
    assert float(summary["ncc"]["after_sd"]) == pytest.approx(values.std(ddof=1), rel=1e-4)
    assert summary["ncc"]["cases"] == "3"


def test_a_structure_that_the_warp_lost_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """It has no surface distance, and the mean over the others may look better for it."""
    nan = float("nan")
    before = {"hd95": 5.0, "hd95_label0": 2.0, "hd95_label1": 8.0, "asd": 3.0}
    cases = [
        CaseResult("whole", before, {**before, "hd95": 4.0, "hd95_label1": 6.0}),
        CaseResult("lost", before, {**before, "hd95": 2.0, "hd95_label1": nan, "asd": nan}),
        CaseResult("never", {"hd95": nan, "asd": nan}, {"hd95": nan, "asd": nan}),
    ]
    results = Results("test", {"run": cases})
    lost = {row.metric: row.lost for row in results.summary()}
    assert lost == {"hd95": 1, "hd95_label0": 0, "hd95_label1": 1, "asd": 1}
    show(results, Console(width=120), worst=0)
    text = capsys.readouterr().out
    assert "(1 lost)" in text
    assert "the warp has lost" in text
    all_lost = Results("test", {"run": [CaseResult("lost", {"asd": 3.0}, {"asd": nan})]})
    assert [row.lost for row in all_lost.summary()] == [1]


def test_a_command_compares_runs_and_a_registration(
    train_tiny: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_tiny("training.save_dir=one")
    second = train_tiny("training.save_dir=two", "training.epochs=1", "training.seed=7")
    (tmp_path / "quick.yaml").write_text(QUICK_REGISTRATION)
    runs = [f"--checkpoint={run.folder}" for run in (first, second)]
    arguments = [*runs, "--out", "out", "--register", "quick.yaml", "--save", "warped", "val_dataset.num_samples=4"]
    assert command.main(arguments) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "4 cases of the list 'test'" in text
    assert "worst cases by tre" in text
    assert text.count("p vs") == 3
    rows = rows_of(Path("out/cases.csv"))
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["one", "two", "register"]
    values = {
        name: np.array([float(row["after"]) for row in rows if row["method"] == name and row["metric"] == "epe"])
        for name in ("one", "two")
    }
    (summary,) = (r for r in rows_of(Path("out/summary.csv")) if r["method"] == "two" and r["metric"] == "epe")
    assert float(summary["p_first"]) == pytest.approx(scipy.stats.wilcoxon(values["two"] - values["one"]).pvalue)
    assert sorted(path.name for path in Path("out/register/3_test_3").iterdir()) == [
        "fixed.nii.gz", "moving.nii.gz", "warped.nii.gz"
    ]  # fmt: skip
    assert command.main([*runs, "--out", "out"]) == 0
    assert Path("out-2/cases.csv").is_file(), "a taken folder gets a number"


def test_a_registration_beside_a_network_does_the_same_task(
    tiny_file: Path, tmp_path: Path, fresh_accelerate: None
) -> None:
    """What it finds is measured as a network's field: it lowers the error of the known field."""
    (tmp_path / "greedy.yaml").write_text(
        "stages: [{stage: greedy, levels: [2, 1], iterations: [40, 20], loss: {name: lncc, kernel_size: 5}}]\n"
    )
    overrides = ["val_dataset.max_disp=0.15", "image_size=[32,32,32]"]
    checkpoint = untrained(tiny_file, tmp_path / "last.pt")
    found = usreg.evaluate(checkpoint, register=tmp_path / "greedy.yaml", overrides=overrides, split="test")
    errors = found.values("register", "epe"), found.values("register", "epe", before=True)
    assert errors[0].mean() < 0.8 * errors[1].mean()
    assert found.values("register", "mse").mean() < 0.3 * found.values("register", "mse", before=True).mean()


def shifted_batch() -> dict[str, Any]:
    """A sample, two structures that lie 5 voxels apart along x, with labels, masks and landmarks."""
    place = torch.stack(torch.meshgrid(*(torch.arange(24.0) for _ in range(3)), indexing="ij"))

    def sphere(x: float) -> torch.Tensor:
        centre = torch.tensor([11.0, 12.0, x]).view(3, 1, 1, 1)
        return torch.exp(-(place - centre).square().sum(0) / 12)[None, None]

    batch: dict[str, Any] = {"fixed": sphere(8.0), "moving": sphere(13.0), "case": ["one"]}
    batch |= {f"{side}_label": (batch[side] > 0.4).float() for side in ("fixed", "moving")}
    batch |= {f"{side}_mask": torch.ones_like(batch[side]) for side in ("fixed", "moving")}
    points = torch.tensor([[[11.0, 12.0, 8.0], [4.0, 6.0, 8.0], [15.0, 6.0, 5.0], [15.0, 16.0, 9.0]]])
    return batch | {"fixed_landmarks": points, "moving_landmarks": points + torch.tensor([0.0, 0.0, 5.0])}


@pytest.mark.parametrize("start", ["landmarks", "moments"])
def test_a_registration_starts_where_its_config_says(start: str, tiny_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "start.yaml"
    loss = "{name: lncc, kernel_size: 5}"
    file.write_text(f"start: {start}\nstages: [{{stage: affine, levels: [1], iterations: [0], loss: {loss}}}]\n")
    batch = shifted_batch()
    warped, ddf = method_of_registration(file, "register", load_config(tiny_file)).predict(batch)
    assert ddf[0, 2].mean() == pytest.approx(5.0, abs=0.1)
    assert ddf[0, :2].abs().max() < 0.1
    assert (warped - batch["fixed"]).abs().max() < 0.1


def test_a_registration_honours_masks_and_labels(tiny_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    stage = "{stage: greedy, levels: [1], iterations: [20], loss: {name: lncc, kernel_size: 5}}"
    file.write_text(f"labels_weight: 1.0\nstages: [{stage}]\n")
    method = method_of_registration(file, "register", load_config(tiny_file))
    batch = shifted_batch()
    flat = batch | {side: batch[side] * 0 + torch.rand(1, 1, 24, 24, 24) for side in ("fixed", "moving")}
    _, ddf = method.predict(flat)
    assert ddf[0, 2][batch["fixed_label"][0, 0] > 0].mean() > 1.0, "only the labels say where to go"
    with pytest.raises(DataError, match="case one: the fixed mask is empty"):
        method.predict(batch | {"fixed_mask": torch.zeros(1, 1, 24, 24, 24)})
    with pytest.raises(ConfigError, match=r"case one: .* give the labels of both images"):
        method.predict(batch | {"moving_label": torch.zeros(1, 1, 24, 24, 24)})


def made_cases(folder: Path, count: int = 2) -> Path:
    """A manifest of pairs whose images have oblique grids of their own, with labels of three structures."""
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.2, 1.0, 0.1], [0.1, -0.1, 1.0]]))[0]
    cases = []
    for number in range(count):
        case = {"subject_id": f"p{number}"}
        for side, size, spacing in (
            ("moving", (20, 18, 16), (1.0, 1.1, 1.3)),
            ("fixed", (17, 19, 21), (1.2, 1.0, 1.0)),
        ):
            affine = np.eye(4)
            affine[:3, :3] = turn @ np.diag(spacing) * (1 if side == "fixed" else -1)
            affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2)
            grid = Grid(size, affine)
            world = grid.to_world(np.indices(size).reshape(3, -1).T)
            centre = generator.normal(size=3)
            distance = np.linalg.norm(world - centre, axis=1).reshape(1, *size)
            label = np.digitize(distance, [3, 5, 7]).astype(np.uint8)
            for key, voxels in (
                (side, np.exp(-((distance / 5) ** 2)).astype(np.float32)),
                (f"{side}_label", 3 - label),
            ):
                write_volume(folder / f"{key}{number}.nii.gz", voxels, grid)
                case[key] = f"{key}{number}.nii.gz"
        cases.append(case)
    (folder / "cases.json").write_text(json.dumps({"train": cases[:1], "val": cases[1:]}))
    return folder / "cases.json"


@pytest.mark.parametrize("shared", [True, False])
def test_a_saved_field_warps_the_files_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, fresh_accelerate: None
) -> None:
    """A field in mm, by usreg.apply, gives from the moving file what the network gave from its sample."""
    monkeypatch.chdir(tmp_path)
    manifest = made_cases(tmp_path)
    section = f"{{name: custom_dataset, json_file: {manifest}, align_shared_grid: {shared}, align_margin_mm: 40}}"
    (tmp_path / "config.yaml").write_text(
        "image_size: [20, 18, 16]\ndevice: cpu\n"
        f"train_dataset: {section}\nval_dataset: {section}\n"
        "model: {name: unetreg3d, channels: [4, 8], strides: [2], num_res_units: 0}\n"
        "loss: {name: mse}\noptimizer: {lr: 1e-3}\ntraining: {epochs: 1, batch_size: 1, num_workers: 0}\n"
    )
    checkpoint = untrained(tmp_path / "config.yaml", tmp_path / "last.pt", shift=0.4)
    found = usreg.evaluate(checkpoint, out="out", save=["warped", "labels", "fields"])
    assert found.split == "val", "the manifest has no test list"
    assert len(found.methods) == 1
    assert {"dice", "dice_label2", "hd95"} <= set(found.metrics)
    (place,) = Path("out").glob("*/0_p1")
    inside = (slice(2, -2),) * 3

    def both(moving: Path, saved: str, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
        """What usreg.apply makes of a file, and what the network made of its sample."""
        ours = apply(place / "field.nii.gz", moving, place / saved, interpolation=interpolation)  # type: ignore[arg-type]
        return ours.voxels[0].numpy()[inside], np.asarray(nib.load(place / saved).dataobj)[inside]  # type: ignore

    np.testing.assert_allclose(*both(place / "moving.nii.gz", "warped.nii.gz", "linear"), atol=1e-4)
    ours, theirs = both(Path("moving1.nii.gz"), "warped.nii.gz", "linear")
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.98
    ours, theirs = both(place / "moving_label.nii.gz", "warped_label.nii.gz", "label")
    assert set(np.unique(theirs)) == {0, 1, 2, 3}
    assert (ours[theirs > 0] == theirs[theirs > 0]).all()


def untrained(config_file: Path, path: Path, shift: float = 0.0) -> Path:
    """A checkpoint of a network whose field is about ``shift`` voxels everywhere."""
    from dataclasses import asdict

    config = load_config(config_file)
    torch.manual_seed(0)
    network = build_model(config.model, image_size=tuple(config.image_size))
    state = {key: value + shift if value.shape == (3,) else value for key, value in network.state_dict().items()}
    entries = {
        "model": state,
        "loss": {},
        "scheduler": None,
        "ema": None,
        "optimizer": {},
        "scaler": None,
        "progress": {},
        "random": [],
        "config": asdict(config),
    }
    save_checkpoint(path, entries)
    return path


@pytest.mark.slow
def test_processes_share_the_cases_and_find_the_same(tiny_file: Path) -> None:
    checkpoint = untrained(tiny_file, tiny_file.with_name("last.pt"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for out, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]),
    ):
        words = [*launcher, "-m", "usreg.evaluate", f"--checkpoint={checkpoint}", f"--out={out}", "--save", "fields"]
        done = subprocess.run(
            [sys.executable, *words, "val_dataset.num_samples=3"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("3 cases of the list 'test'") == 1
    for name in ("cases.csv", "summary.csv"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    fields = [sorted(str(path.relative_to(out)) for path in Path(out).rglob("field.nii.gz")) for out in ("one", "two")]
    assert fields[0] == fields[1]
    assert len(fields[0]) == 3
    assert not Path("two-2").exists()


def test_wilcoxon_leaves_out_what_cannot_be_compared() -> None:
    one, other = np.array([1.0, 2, 3, np.nan, 5]), np.array([2.0, 2, 5, 1, 9])
    assert paired_p(one, other) == pytest.approx(scipy.stats.wilcoxon([-1.0, -2, -4]).pvalue)
    assert paired_p(one, one) == 1.0
    assert paired_p(one[:1], other[:1]) is None


def test_the_worst_cases_are_the_worst() -> None:
    cases = [
        CaseResult(name, {}, {"dice": dice, "tre": dice}) for name, dice in (("a", 0.9), ("b", 0.2), ("c", np.nan))
    ]
    results = Results("test", {"m": cases})
    assert results.ranking_metric() == "dice"
    assert [case.case for case in results.worst("m", "dice", 5)] == ["b", "a"]
    assert [case.case for case in results.worst("m", "tre", 1)] == ["a"]


def test_what_is_wrong_is_said(tmp_path: Path, tiny_file: Path, fresh_accelerate: None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last.pt", "best_val_loss.pt"):
        untrained(tiny_file, folder / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.pt").write_bytes((folder / "last.pt").read_bytes()[:-300])
    other = tiny_file.with_name("other.yaml")
    other.write_text(tiny_file.read_text().replace("channels: [4, 8]", "channels: [4, 16]"))
    untrained(other, tmp_path / "other.pt")
    manifest = made_cases(tmp_path)
    manifest_keys = ["val_dataset.name=custom_dataset", f"val_dataset.json_file={manifest}"]
    for kind, message, call in [
        (DataError, "there is no checkpoint or run's folder", {"checkpoint": "missing"}),
        (DataError, "holds no checkpoint", {"checkpoint": tmp_path / "empty"}),
        (DataError, "cannot be read as a checkpoint, it is damaged", {"checkpoint": tmp_path / "damaged.pt"}),
        (ConfigError, "is a checkpoint of another model", {"checkpoint": folder, "config": other}),
        (UsageError, "a checkpoint is given twice", {"checkpoint": [folder, folder / "best_val_loss.pt"]}),
        (UsageError, "there is no checkpoint", {"register": True}),
        (UsageError, "there is nothing to evaluate", {"config": other}),
        (ConfigError, "the list is 'all'; it must be one of train, val, test", {"checkpoint": folder, "split": "all"}),
        (
            ConfigError,
            "save is field; it must be some of warped",
            {"checkpoint": folder, "save": ["field"], "out": "o"},
        ),
        (ConfigError, "what is saved needs a folder", {"checkpoint": folder, "save": ["fields"]}),
        (DataError, "has no list 'test'", {"checkpoint": folder, "overrides": manifest_keys, "split": "test"}),
        (ConfigError, "Did you mean 'num_samples'", {"checkpoint": folder, "overrides": ["val_dataset.num_sample=3"]}),
        (UsageError, "--out DIR", {"checkpoint": folder, "out": tiny_file / "out"}),
    ]:
        with pytest.raises(kind, match=message.replace("(", r"\(")):
            usreg.evaluate(call.pop("checkpoint", ()), **call)  # type: ignore[arg-type]


def test_files_that_changed_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    checkpoint = untrained(tiny_file, tmp_path / "last.pt")
    manifest = made_cases(tmp_path)
    keys = ["val_dataset.name=custom_dataset", f"val_dataset.json_file={manifest}"]
    (tmp_path / "fixed1.nii.gz").write_bytes((tmp_path / "fixed1.nii.gz").read_bytes()[:-50])
    with pytest.raises(DataError, match=r"val\[0\].*fixed1.nii.gz.*cut short or corrupt"):
        usreg.evaluate(checkpoint, overrides=keys)
    (tmp_path / "fixed1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"fixed1.nii.gz: no such file"):
        usreg.evaluate(checkpoint, overrides=keys)


def test_runs_with_other_cases_are_not_compared(
    tmp_path: Path, tiny_file: Path, caplog: pytest.LogCaptureFixture, fresh_accelerate: None
) -> None:
    changes = {"more": ("num_samples: 2", "num_samples: 5"), "smaller": ("[16, 16, 16]", "[12, 12, 12]")}
    for name, change in changes.items():
        config = tiny_file.with_name(f"{name}.yaml")
        config.write_text(tiny_file.read_text().replace(*change))
        untrained(config, tmp_path / f"{name}.pt")
    first = untrained(tiny_file, tmp_path / "first.pt")
    with pytest.raises(DataError, match=r"different numbers of cases: .*first 2, .*more 5"):
        usreg.evaluate([first, tmp_path / "more.pt"])
    usreg.evaluate([first, tmp_path / "smaller.pt"])
    assert "prepare the cases differently" in caplog.text

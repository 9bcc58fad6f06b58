"""The folder of a registration: numbers as other libraries find them, whole files, a page that needs no other."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console

from usreg import register
from usreg.io import read_landmarks
from usreg.io.landmark_details import read_details
from usreg.io.landmark_writing import write_landmarks
from usreg.registration.demo import make_pair, write_pair
from usreg.registration.reports.bars import StageBars
from usreg.registration.reports.measures import inverse_consistency, label_measures
from usreg.registration.stages import load_stages
from usreg.spatial import DisplacementField, Grid

sitk = pytest.importorskip("SimpleITK")

SHORT = ["stages[0].iterations=[20,10]", "stages[1].iterations=[20,15,10]"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a small pair, by the options that take them."""
    return write_pair(tmp_path_factory.mktemp("pair"), make_pair(0.35))


def options(pair: dict[str, str], out: Path, *names: str) -> list[str]:
    chosen = {name: pair[name] for name in names or pair}
    return [*(f"--{name.replace('_', '-')}={file}" for name, file in chosen.items()), f"--out={out}"]


@pytest.fixture(scope="module")
def folder(pair: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a registration with labels, landmarks and pictures."""
    out = tmp_path_factory.mktemp("out")
    assert register.main([*options(pair, out), *SHORT]) == 0
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def volume(path: str | Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_everything_gets_better(report: dict) -> None:
    assert report["status"] == "finished"
    measures = report["measures"]
    for name in ("ncc", "dice"):
        assert measures[name]["after"] > measures[name]["before"] + 0.1
    for name in ("hd95", "asd", "tre"):
        assert measures[name]["after"] < 0.6 * measures[name]["before"]
        assert measures[name]["unit"] == "mm"


def test_overlap_and_distances_are_those_of_simpleitk(folder: Path, report: dict, pair: dict[str, str]) -> None:
    """ITK's surfaces differ by up to half a voxel from MONAI's, so that distances agree to a part of a voxel."""
    fixed, warped = (
        sitk.ReadImage(str(path), sitk.sitkInt32) for path in (pair["fixed_label"], folder / "warped_label.nii.gz")
    )
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(fixed, warped)
    labels = report["measures"]["dice"]["labels"]
    assert list(labels) == ["1", "2", "3", "4", "5"]
    for number, values in labels.items():
        assert values["after"] == pytest.approx(overlap.GetDiceCoefficient(int(number)), abs=1e-6)
        distance = sitk.HausdorffDistanceImageFilter()
        distance.Execute(fixed == int(number), warped == int(number))
        assert report["measures"]["asd"]["labels"][number]["after"] == pytest.approx(
            distance.GetAverageHausdorffDistance(), abs=0.5 * max(fixed.GetSpacing())
        )
        assert report["measures"]["hd95"]["labels"][number]["after"] <= distance.GetHausdorffDistance() + 1e-3
    assert report["measures"]["dice"]["after"] == pytest.approx(np.mean([v["after"] for v in labels.values()]))


def itk_transform(folder: Path) -> sitk.Transform:
    affine = sitk.ReadTransform(str(folder / "affine.mat"))
    field = sitk.ReadImage(str(folder / "field.nii.gz"), sitk.sitkVectorFloat64)
    return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])


def test_landmark_errors_and_warped_landmarks_are_those_of_simpleitk(
    folder: Path, report: dict, pair: dict[str, str]
) -> None:
    transform = itk_transform(folder)
    fixed, moving = (read_landmarks(Path(pair[f"{name}_landmarks"])).points for name in ("fixed", "moving"))
    misses = np.linalg.norm(
        [np.subtract(transform.TransformPoint(p), q) for p, q in zip(fixed, moving, strict=True)], axis=1
    )
    tre = report["measures"]["tre"]
    np.testing.assert_allclose([entry["after"] for entry in tre["landmarks"]], misses, atol=1e-3)
    assert tre["after"] == pytest.approx(misses.mean(), abs=1e-3)
    assert tre["before"] == pytest.approx(np.linalg.norm(fixed - moving, axis=1).mean(), abs=1e-3)

    warped = read_landmarks(folder / "warped_landmarks.csv")
    assert warped.space == "lps"
    back = [transform.TransformPoint(point) for point in warped.points]
    assert np.linalg.norm(back - moving, axis=1).mean() < 0.01


def test_the_composite_is_field_and_affine(folder: Path) -> None:
    both, one = itk_transform(folder), sitk.ReadTransform(str(folder / "composite.h5"))
    for point in ((0.0, 0.0, 0.0), (21.0, -13.0, 9.0)):
        np.testing.assert_allclose(one.TransformPoint(point), both.TransformPoint(point), atol=1e-4)


def test_folding_is_counted_in_the_map(folder: Path, report: dict) -> None:
    jacobian = volume(folder / "jacobian.nii.gz")
    folding = report["measures"]["neg_jac_ratio"]
    assert folding["voxels"] == (jacobian <= 0).sum()
    assert folding["after"] == pytest.approx((jacobian <= 0).mean())
    spread = np.log(jacobian[jacobian > 0]).std()
    assert report["measures"]["log_jac_std"]["after"] == pytest.approx(spread, rel=1e-4)


def test_everything_is_on_the_fixed_images_grid(folder: Path, pair: dict[str, str]) -> None:
    fixed = nib.load(pair["fixed"])
    for name in ("warped", "warped_label", "field", "inverse_field", "jacobian"):
        image = nib.load(folder / f"{name}.nii.gz")
        assert image.shape[:3] == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)


def test_the_report_says_how_to_do_it_again(report: dict, folder: Path, pair: dict[str, str]) -> None:
    for name, file in pair.items():
        assert report["files"][name] == str(Path(file).resolve())
    assert report["command"] == [*options(pair, folder), *SHORT]
    assert {"python", "torch", "usreg"} <= set(report["versions"])
    assert report["machine"]["processor"]
    assert [stage["stage"] for stage in report["stages"]] == ["affine", "greedy"]
    for stage in report["stages"]:
        assert stage["seconds"] > 0
        for level in stage["levels"]:
            assert len(level["losses"]) == level["iterations"] > 0
    _, again = load_stages(folder / "config.yaml")
    assert again == load_stages(None, SHORT)[1]


class Sources(HTMLParser):
    """Where the pictures of a page come from, and what closes."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag not in ("meta", "br", "img"):
            self.opened.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


def test_the_page_needs_no_other_file(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Sources()
    page.feed(text)
    assert not page.opened
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in text
    for name in ("ncc", "dice", "hd95, mm", "tre, mm", "inverse_consistency, mm", "right is on the left"):
        assert name in text
    assert sorted(path.stem for path in (folder / "pictures").iterdir()) == [
        "before_after",
        "checkerboard",
        "deformation",
        "losses",
    ]


def test_nothing_is_left_over(folder: Path) -> None:
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("name", ["points.fcsv", "points.mrk.json", "points.tag", "points.pts", "points.txt", "p.npy"])
def test_landmarks_come_back_in_their_format(name: str, pair: dict[str, str], tmp_path: Path) -> None:
    points = read_landmarks(Path(pair["moving_landmarks"])).points * (-1, -1, 1)
    write_landmarks(tmp_path / name, points, "lps", details={"label": [f"place {n}" for n in range(len(points))]})
    arguments = options(pair, tmp_path / "out", "fixed", "moving")
    settings = ["stages=[{stage: translation, levels: [4], iterations: [0]}]"]
    landmarks = f"--moving-landmarks={tmp_path / name}"
    assert register.main([*arguments, landmarks, "--no-pictures", "--quiet", *settings]) == 0
    (written,) = (tmp_path / "out").glob("warped_landmarks.*")
    assert written.name.split(".", 1)[1] == name.split(".", 1)[1]
    grid = Grid((1, 1, 1), np.eye(4))
    np.testing.assert_allclose(read_landmarks(written).to_world(grid), points, atol=1e-4)
    assert read_details(written) == read_details(tmp_path / name)


def test_a_moving_label_is_warped_without_a_fixed_one(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(pair, tmp_path, "fixed", "moving", "moving_label")
    settings = ["stages=[{stage: translation, levels: [4], iterations: [3]}]"]
    assert register.main([*arguments, "--no-pictures", "--quiet", *settings]) == 0
    assert set(np.unique(volume(tmp_path / "warped_label.nii.gz"))) == {0, 1, 2, 3, 4, 5}
    assert "dice" not in json.loads((tmp_path / "report.json").read_text())["measures"]
    assert not (tmp_path / "report.html").exists()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def interrupting(calls: list[int], number: int) -> type[StageBars]:
    """Bars that send a signal to this process in the iterations of these numbers."""

    class Bars(StageBars):
        count = 0

        def __call__(self, *place: object) -> None:
            super().__call__(*place)  # type: ignore[arg-type]
            self.count += 1
            if self.count in calls:
                os.kill(os.getpid(), number)

    return Bars


ENDLESS = ["stages[0].iterations=[10,100000]", "stages[0].tolerance=-1e9"]


@pytest.fixture
def terminal_signals() -> Iterator[None]:
    """Python's usual handlers; where the tests run in the background, shells ignore Ctrl-C."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("terminal_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_keeps_what_is_there(
    number: int,
    pair: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("usreg.registration.command.StageBars", interrupting([13], number))
    assert register.main([*options(pair, tmp_path), "--no-pictures", *ENDLESS]) == 130
    assert "stopped before its end" in capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "stopped"
    assert [level["iterations"] for level in report["stages"][0]["levels"]] == [10, 3]
    assert report["measures"]["tre"]["after"] < report["measures"]["tre"]["before"]
    assert (tmp_path / "warped.nii.gz").is_file()
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.usefixtures("terminal_signals")
def test_a_second_request_ends_at_once(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("usreg.training.interrupts.SAME_PRESS", 0.0)
    bars = interrupting([2], signal.SIGINT)
    monkeypatch.setattr("usreg.registration.command.StageBars", bars)
    monkeypatch.setattr(
        "usreg.registration.command.make_results", lambda *_: os.kill(os.getpid(), signal.SIGINT) or pytest.fail("late")
    )
    assert register.main([*options(pair, tmp_path), *ENDLESS]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_a_file(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands in for the disk: warped.nii.gz fits, the field does not."""
    out = tmp_path / "out"
    arguments = [*options(pair, out, "fixed", "moving"), "--no-pictures", "stages[0].iterations=[2,2]"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        assert register.main([*arguments, "stages[1].iterations=[2,2,2]"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(
        r"error: cannot write .*/out/field.nii.gz: File too large; free some space", capsys.readouterr().err
    )
    assert sorted(path.name for path in out.iterdir()) == ["jacobian.nii.gz", "warped.nii.gz"]
    assert volume(out / "warped.nii.gz").std() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "--fixed", "a.nii.gz"], "--demo makes its own pair; leave out --fixed"),
        (["--moving", "a.nii.gz"], "--fixed FILE and --moving FILE are needed, or --demo"),
        (["--fixed", "a.nii", "--moving", "b.nii", "--fixed-landmarks", "c.csv"], "--moving-landmarks go together"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert register.main(arguments) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_landmarks_must_pair(pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.csv").write_text("1,2,3\n4,5,6\n")
    arguments = options(pair, tmp_path / "out", "fixed", "moving", "moving_landmarks")
    assert register.main([*arguments, f"--fixed-landmarks={tmp_path / 'few.csv'}"]) == 2
    assert "has 2 landmarks and" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_bars_show_loss_and_place_on_a_terminal_only() -> None:
    _, stages = load_stages(None, SHORT)
    for terminal in (True, False):
        output = io.StringIO()
        with StageBars(Console(file=output, force_terminal=terminal, width=120), stages) as bars:
            bars(0, 0, 5, -0.25)
            bars(1, 2, 10, -0.75)
            bars.finish()
        assert ("affine" in output.getvalue()) is terminal
        if terminal:
            assert "loss -0.75000" in output.getvalue()
            assert "level 3 of 3, iteration 10 of 10" in output.getvalue()


def test_the_demo_pair_is_what_its_landmarks_say() -> None:
    """Each landmark lies at an organ's pole: half of its neighbourhood has the organ's label, in both images."""
    pair = make_pair(0.6)
    for label, points in ((pair.fixed_label, pair.fixed_points), (pair.moving_label, pair.moving_points)):
        for number, point in enumerate(points):
            at = np.round(label.grid.to_voxels([point])[0]).astype(int)
            around = label.voxels[0][tuple(slice(i - 2, i + 3) for i in at)]
            assert (around == 1 + number // 4).any()
            assert (around != 1 + number // 4).any()


def test_labels_of_a_slice_are_measured_in_the_plane() -> None:
    grid = Grid((9, 9, 1), np.diag([2.0, 3.0, 5.0, 1.0]))
    fixed = torch.zeros(9, 9, 1, dtype=torch.int32)
    fixed[2:6, 2:6] = 4
    moved = fixed.roll(2, 0)
    measures = label_measures(fixed, moved, fixed, grid)
    assert measures["dice"]["before"] == pytest.approx(0.5)
    assert measures["hd95"]["before"] == pytest.approx(4.0)
    assert measures["asd"]["labels"]["4"] == {"before": pytest.approx(measures["asd"]["before"]), "after": 0.0}


def test_a_label_that_left_the_image_has_dice_0_and_no_distance() -> None:
    fixed = torch.zeros(6, 6, 6, dtype=torch.int32)
    fixed[2:4, 2:4, 2:4] = 1
    measures = label_measures(fixed, fixed, torch.zeros_like(fixed), Grid((6, 6, 6), np.eye(4)))
    assert measures["dice"]["after"] == 0
    assert measures["hd95"]["after"] is None
    assert measures["hd95"]["before"] == 0


def test_inverse_consistency_is_in_mm() -> None:
    grid = Grid((12, 12, 12), np.diag([2.0, 2.0, 2.0, 1.0]))
    shift = torch.zeros(3, 12, 12, 12)
    shift[0] = 2.0
    back = -shift
    back[1] = 0.5
    mean, largest = inverse_consistency(DisplacementField(grid, shift), DisplacementField(grid, back))
    assert mean == pytest.approx(0.5, abs=1e-5)
    assert largest == pytest.approx(0.5, abs=1e-5)

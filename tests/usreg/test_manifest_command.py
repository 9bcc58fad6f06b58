"""``python -m usreg.manifest``: pairing files by their names, and the report on each case."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from usreg.errors import DataError
from usreg.io import read_manifest
from usreg.manifest import main
from usreg.manifests import check_manifest, make_manifest
from usreg.manifests.patterns import find
from usreg.metrics.label_volumes import mean_dice, structures
from usreg.spatial import Grid

SHAPE = (12, 10, 8)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def volume(path: Path, shift: float = 0.0, seed: int = 0, affine: np.ndarray | None = None) -> str:
    """A random image, whose voxels are 2 mm large, that begins at ``shift`` mm along x."""
    if affine is None:
        affine = np.diag([2.0, 2, 2, 1])
        affine[0, 3] = shift
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).random(SHAPE, np.float32), affine), path)
    return path.name


def label(path: Path, start: int = 2, value: int = 1, shift: float = 0.0) -> str:
    """A block of 4 x 4 x 4 voxels that begins at voxel ``start`` along x."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[start : start + 4, 2:6, 2:6] = value
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path.name


@pytest.mark.parametrize(
    ("pattern", "names", "keys"),
    [
        ("CT/*_img.nii.gz", ["CT/01_img.nii.gz", "CT/02_img.nii.gz", "CT/02_seg.nii.gz"], ["01", "02"]),
        ("sub-*/anat/sub-*_T1w.nii", ["sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii"], ["01", "02"]),
        ("sub-*/*_us.nii", ["sub-01/a_us.nii", "sub-01/b_us.nii"], ["01_a", "01_b"]),
        ("case[0-9]?.nii", ["case01.nii", "caseA1.nii"], ["0_1"]),
        ("**/*.nii", ["a.nii", "x/y/b.nii"], ["a", "x/y_b"]),
        ("a.nii", ["a.nii", "b.nii"], [""]),
        ("dicom/*/", ["dicom/7/1.dcm"], ["7"]),
    ],
)
def test_the_part_that_varies(tmp_path, monkeypatch, pattern, names, keys):
    touch(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    assert list(find(pattern)) == keys
    assert list(find(str(tmp_path / pattern))) == keys


def test_patterns_that_match_nothing_or_too_much(tmp_path):
    touch(tmp_path, "a/1.nii", "1.nii", "1/1.nii")
    for pattern in ("*.mha", "b.nii"):
        with pytest.raises(DataError, match=r"matches no file|no such file"):
            find(str(tmp_path / pattern))
    with pytest.raises(DataError, match="for '1'; give a narrower pattern"):
        find(str(tmp_path / "**" / "*.nii"))


def test_make_pairs_and_reports_what_has_no_partner(tmp_path, capsys):
    touch(tmp_path, *[f"CT/{n}_img.nii.gz" for n in (1, 2, 10)], *[f"US/us_{n}.mha" for n in (1, 2, 11)])
    touch(tmp_path, "CT/1_seg.nii.gz", "US/seg_1.mha", "US/seg_2.mha")
    arguments = ["--moving", f"{tmp_path}/CT/*_img.nii.gz", "--fixed", f"{tmp_path}/US/us_*.mha"]
    arguments += ["--moving-label", f"{tmp_path}/CT/*_seg.nii.gz", "--fixed-label", f"{tmp_path}/US/seg_*.mha"]
    out = tmp_path / "m.json"
    assert main(["make", *arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert json.loads(out.read_text()) == {
        "train": [
            {
                "case": "1",
                "moving": "CT/1_img.nii.gz",
                "fixed": "US/us_1.mha",
                "moving_label": "CT/1_seg.nii.gz",
                "fixed_label": "US/seg_1.mha",
            },
            {"case": "2", "moving": "CT/2_img.nii.gz", "fixed": "US/us_2.mha"},
        ]
    }
    for text in ("2 case(s): 2 in 'train'", "10_img.nii.gz", "us_11.mha", "case '2': has no moving_label", "seg_2.mha"):
        assert text in shown
    assert main(["make", *arguments, "--out", str(out)]) == 2
    assert "exists; give another name, or --force" in capsys.readouterr().err
    assert main(["make", *arguments, "--out", str(out), "--force"]) == 0
    assert [case.name for case in read_manifest(out, "train")] == ["1", "2"]


def test_one_file_for_all_cases(tmp_path):
    touch(tmp_path, "a/1.nii", "a/2.nii", "a/3.nii", "atlas_label.nii", "l/1.nii", "l/2.nii")
    patterns = {"moving": "a/*.nii", "fixed": "a/3.nii", "moving_label": "l/*.nii", "fixed_label": "atlas_label.nii"}
    made = make_manifest({key: str(tmp_path / value) for key, value in patterns.items()}, tmp_path / "m.json")
    assert [(case["case"], case["fixed"]) for case in made.lists["train"]] == [("1", "a/3.nii"), ("2", "a/3.nii")]
    assert [case["fixed_label"] for case in made.lists["train"]] == ["atlas_label.nii"] * 2
    assert "is both moving and fixed; left out" in made.notes[0]
    assert made.without_partner == {}


def test_the_draw_follows_the_seed(tmp_path):
    touch(tmp_path, *[f"{side}/{n}.nii" for side in "mf" for n in range(20)])
    patterns = {"moving": f"{tmp_path}/m/*.nii", "fixed": f"{tmp_path}/f/*.nii"}

    def names(seed: int, **shares: float) -> dict[str, list[str]]:
        made = make_manifest(patterns, tmp_path / "m.json", seed=seed, overwrite=True, **shares)
        return {split: [case["case"] for case in cases] for split, cases in made.lists.items()}

    first = names(42, val=0.1, test=0.25)
    assert {split: len(cases) for split, cases in first.items()} == {"train": 13, "val": 2, "test": 5}
    assert sorted(int(name) for members in first.values() for name in members) == list(range(20))
    assert first == names(42, val=0.1, test=0.25)
    assert first != names(43, val=0.1, test=0.25)
    assert len(names(1, val=0.001)["val"]) == 1
    assert [*names(1)] == ["train"]
    for shares in ({"val": 1.0}, {"val": -0.1}, {"val": 0.6, "test": 0.6}):
        with pytest.raises(ValueError, match="shares from 0 to 1"):
            names(1, **shares)


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ({"moving": "m/*.nii", "fixed": "f/*_us.nii"}, "no case has both images.*moving: 'a'; fixed: 'b'"),
        ({"moving": "m/*.nii", "fixed": "m/*.nii", "fixed_label": "m/*.nii"}, "'fixed_label' needs its pair"),
    ],
)
def test_make_says_why_it_cannot(tmp_path, patterns, text):
    touch(tmp_path, "m/a.nii", "f/b_us.nii")
    with pytest.raises(DataError, match=text):
        make_manifest({key: str(tmp_path / value) for key, value in patterns.items()}, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def manifest(folder: Path, **lists: list[dict]) -> Path:
    (folder / "m.json").write_text(json.dumps(lists))
    return folder / "m.json"


def good_case(folder: Path, number: int, shift: float = 0.0) -> dict:
    """A moving image ``shift`` mm to the right of where the fixed one is, its label at the same voxels."""
    return {
        "case": f"patient {number}",
        "moving": volume(folder / f"m{number}.nii", shift, 10 + number),
        "fixed": volume(folder / f"f{number}.nii", 0.0, 20 + number),
        "moving_label": label(folder / f"ml{number}.nii", shift=shift),
        "fixed_label": label(folder / f"fl{number}.nii"),
        "moving_landmarks": [[1, 2, 3], [4, 5, 6]],
        "fixed_landmarks": [[1, 2, 3], [4, 5, 6]],
    }


def test_check_measures_each_case(tmp_path, capsys):
    path = manifest(tmp_path, train=[good_case(tmp_path, 1)], val=[good_case(tmp_path, 2, shift=4.0)])
    same, shifted = check_manifest(path, landmarks_space="voxel")
    assert (same.distance, same.overlap, same.dice, same.stretched_dice, same.tre) == (0, 1, 1, 1, 0)
    assert (shifted.distance, shifted.overlap) == (4.0, pytest.approx(10 / 12, abs=0.05))
    assert (shifted.dice, shifted.stretched_dice, shifted.tre) == (0.5, 1, 4.0)  # 2 of 4 voxels; headers ignored; mm
    assert shifted.labels == {"moving_label": 1, "fixed_label": 1}
    assert not same.problems + same.doubts + shifted.problems + shifted.doubts
    assert main(["check", str(path), "--landmarks-space", "voxel"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("patient 2"))
    for cell in ("val", "12 x 10 x 8, 2 mm, RAS", "4.0 mm", "1/1", "0.500", "1.000", "4.00 mm"):
        assert cell in row


def test_landmarks_in_millimetres(tmp_path):
    case = {**good_case(tmp_path, 1), "moving_landmarks": [[-4, -4, 6]], "fixed_landmarks": [[-4, -4, 3]]}
    (report,) = check_manifest(manifest(tmp_path, train=[case]), landmarks_space="lps")
    assert report.tre == 3.0


def faulty(folder: Path, what: str) -> dict:
    case = good_case(folder, 9)
    if what == "missing":
        case["fixed"] = "nowhere.nii"
    elif what == "cut short":
        (folder / "ml9.nii").write_bytes((folder / "ml9.nii").read_bytes()[:-50])
    elif what == "misspelt":
        case["moving_labels"] = case.pop("moving_label")
        del case["fixed_label"]
    elif what == "constant":
        nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([2.0, 2, 2, 1])), folder / "f9.nii")
    elif what == "nan":
        nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.eye(4)), folder / "m9.nii")
    elif what == "elsewhere":
        case["moving"] = volume(folder / "m9.nii", shift=500.0)
        case["moving_label"] = label(folder / "ml9.nii", shift=500.0)
    elif what == "structure":
        case["moving_label"] = label(folder / "ml9.nii", value=2)
        case["fixed_label"] = label(folder / "fl9.nii", value=3)
    elif what == "empty":
        case["fixed_label"] = label(folder / "fl9.nii", value=0)
    elif what == "directions":
        for name in ("m9", "f9", "ml9", "fl9"):
            image = nib.load(folder / f"{name}.nii")
            image = nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine)  # no view of the file
            image.set_sform(image.affine, 0)
            image.set_qform(image.affine, 0)
            nib.save(image, folder / f"{name}.nii")
    elif what == "landmarks":
        case["moving_landmarks"] = "none.csv"
    elif what == "outside":
        case["fixed_landmarks"] = [[1, 2, 3], [40, 5, 6]]
    elif what == "moved":
        case["moving_label"] = label(folder / "ml9.nii", shift=4.0)
    elif what == "modality":
        case["modality"] = "CT-US"
    return case


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("missing", r"train\[1\]\.fixed: .*nowhere.nii: no such file"),
        ("cut short", r"train\[1\]\.moving_label: .*cut short or corrupt"),
        ("misspelt", r"train\[1\]: 'moving_labels' is not a key of a case. Did you mean"),
        ("constant", r"train\[1\]\.fixed: .*all voxels have the value 1"),
        ("nan", r"train\[1\]\.moving: .*voxels are NaN"),
        ("landmarks", r"train\[1\]\.moving_landmarks: .*none.csv: no such file"),
    ],
)
def test_what_is_wrong_makes_the_status_1(tmp_path, capsys, what, text):
    path = manifest(tmp_path, train=[good_case(tmp_path, 1), faulty(tmp_path, what), good_case(tmp_path, 2)])
    assert main(["check", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "3 case(s): 1 wrong" in shown
    reports = check_manifest(path)
    assert [bool(report.problems) for report in reports] == [False, True, False]
    assert len([problem for problem in reports[1].problems if re.search(text, problem)]) == 1


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("elsewhere", "0 % of the fixed image is in the moving one"),
        ("structure", "only one of the two labels has the structure"),
        ("empty", "fl9.nii: is empty"),
        ("directions", "does not say which way its axes run"),
        ("outside", "train[1].fixed_landmarks: 1 of 2 landmarks are outside their image; the first is landmark 1"),
        ("moved", "its header puts it up to 2.0 voxels away from its image"),
        ("modality", "train[1]: modality 'CT-US' counts as CT for both images"),
    ],
)
def test_doubts_are_listed(tmp_path, capsys, caplog, what, text):
    path = manifest(tmp_path, train=[good_case(tmp_path, 1), faulty(tmp_path, what)])
    assert main(["check", str(path), "--landmarks-space", "voxel"]) == 0
    shown = capsys.readouterr().out
    assert "patient 1 " in shown
    assert "patient 9 ?" in shown
    assert text in shown
    assert "2 case(s): 0 wrong, 1 doubtful" in shown
    assert not caplog.messages


def test_a_pair_in_two_lists_is_wrong(tmp_path):
    case = good_case(tmp_path, 1)
    first, again, other = check_manifest(manifest(tmp_path, train=[case, case], val=[case]), landmarks_space="voxel")
    assert not first.problems
    assert (again.problems, again.doubts) == ([], ["train[1]: is the same pair as train[0]"])
    assert other.problems == ["val[0]: is the same pair as train[0]; keep it in one list"]


def test_a_manifest_that_cannot_be_read(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.json")]) == 2
    assert main(["check", str(manifest(tmp_path, cases=[]))]) == 2
    error = capsys.readouterr().err
    assert "no such file" in error
    assert "has no cases, only ['cases']" in error


def test_dice_of_channels_and_of_values():
    grid = Grid((4, 4, 4), np.eye(4))
    values = torch.zeros(1, 4, 4, 4)
    values[0, 0], values[0, 1] = 3, 7
    other = torch.zeros(1, 4, 4, 4)
    other[0, :2], other[0, 2] = 3, 7
    assert structures(values) == [3, 7]
    assert mean_dice(values, grid, other, grid) == pytest.approx((2 / 3 + 0) / 2)
    mask = (other == 3).float()
    assert structures(mask * 255) == structures(mask) == [0]
    assert mean_dice(mask * 255, grid, mask, grid) == 1
    channels = torch.stack([values[0] == 3, values[0] == 7, values[0] == 1]).float()
    others = torch.stack([other[0] == 3, other[0] == 7, other[0] == 3]).float()
    assert structures(channels) == [0, 1]
    assert mean_dice(channels, grid, others, grid) == pytest.approx((2 / 3 + 0) / 2)
    assert np.isnan(mean_dice(torch.zeros(1, 4, 4, 4), grid, other, grid))

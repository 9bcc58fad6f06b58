"""The file of a manifest: formats, encodings, names of lists, variables, misspelt keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from usreg.errors import DataError
from usreg.io import read_manifest
from usreg.io.manifest import NoCasesError

PAIR = {"moving": "m.nii.gz", "fixed": "f.nii.gz"}
OTHER = {"moving": "n.nii.gz", "fixed": "f.nii.gz"}
LISTS = {"train": [PAIR], "val": [OTHER]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["m.json", "m.csv", "m.yaml"])
def test_formats_and_encodings(tmp_path, name, encoding):
    pair = {**PAIR, "subject_id": "Müller"}
    text = json.dumps({"train": [pair]}, ensure_ascii=False)  # which is YAML, too
    if name == "m.csv":
        text = "moving,fixed,subject_id\r\nm.nii.gz,f.nii.gz,Müller\r\n"
    (tmp_path / name).write_text(text, encoding=encoding, newline="")
    (case,) = read_manifest(tmp_path / name, "train")
    assert case.files == {"moving": tmp_path / "m.nii.gz", "fixed": tmp_path / "f.nii.gz"}
    assert case.name == "Müller"


def test_utf16_of_the_other_byte_order(tmp_path):
    (tmp_path / "m.json").write_bytes(b"\xfe\xff" + json.dumps(LISTS).encode("utf-16-be"))
    assert len(read_manifest(tmp_path / "m.json", "val")) == 1


def test_text_of_no_unicode_is_refused(tmp_path):
    (tmp_path / "m.json").write_bytes(b'{"train": "\xff"}')
    with pytest.raises(DataError, match="is not text in UTF-8"):
        read_manifest(tmp_path / "m.json", "train")


def test_yaml(tmp_path):
    (tmp_path / "m.yml").write_text("train:\n- moving: m.nii.gz\n  fixed: f.nii.gz\n  fixed_landmarks: [[1, 2, 3]]\n"
                                    "  moving_landmarks: [[1, 2, 3]]\n  age: 61\n")  # fmt: skip
    (case,) = read_manifest(tmp_path / "m.yml", "train")
    assert case.points["fixed_landmarks"] == [[1, 2, 3]]
    assert case.metadata == {"age": "61"}
    (tmp_path / "m.yml").write_text("train: [\n")
    with pytest.raises(DataError, match="is not a YAML file"):
        read_manifest(tmp_path / "m.yml", "train")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_splits_points_and_empty_cells(tmp_path, delimiter):
    rows = [
        ["moving", "fixed", "split", "moving_landmarks", "fixed_landmarks", "site"],
        ["m.nii", "f.nii", "training", "p.csv", '"[[1, 2, 3]]"', "A"],
        ["n.nii", "f.nii", "val", "", "", ""],
        ["o.nii", "f.nii", "test", "", "", "B"],
        ["", "", "", "", "", ""],
    ]
    (tmp_path / "m.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    (train,) = read_manifest(tmp_path / "m.csv", "train")
    assert train.points == {"fixed_landmarks": [[1, 2, 3]]}
    assert train.metadata == {"site": "A"}
    for split in ("val", "test"):
        (case,) = read_manifest(tmp_path / "m.csv", split)
        assert not case.has("fixed_landmarks")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", "must name the columns, among them moving and fixed"),
        ("", "must name the columns"),
        ("moving,fixed\na,b,c\n", "row 2 has 3 cells and the header 2"),
        ("moving,fixed\na,\n", "'fixed' is missing"),
    ],
)
def test_faulty_csv(tmp_path, text, error):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=error):
        read_manifest(tmp_path / "m.csv", "train")


def test_csv_that_is_named_json(tmp_path):
    (tmp_path / "m.json").write_text("moving,fixed\na.nii,b.nii\n")
    with pytest.raises(DataError, match=r"is not a JSON file .*name a manifest in CSV \.csv"):
        read_manifest(tmp_path / "m.json", "train")


@pytest.mark.parametrize(("given", "split"), [("training", "train"), ("validation", "val"), ("testing", "test")])
def test_other_names_of_the_lists(tmp_path, given, split):
    (tmp_path / "m.json").write_text(json.dumps({given: [PAIR]}))
    assert [case.where for case in read_manifest(tmp_path / "m.json", split)] == [f"{split}[0]"]


@pytest.mark.parametrize("content", [{"train": [PAIR]}, {"train": [PAIR], "val": []}])
def test_no_cases_are_told_from_a_misspelt_list(tmp_path, content):
    path = tmp_path / "m.json"
    path.write_text(json.dumps(content))
    with pytest.raises(NoCasesError):
        read_manifest(path, "val")
    path.write_text(json.dumps({**content, "vall": [OTHER]} | {"val": 3}))
    with pytest.raises(DataError, match="Did you mean 'vall'") as caught:
        read_manifest(path, "val")
    assert not isinstance(caught.value, NoCasesError)


def test_variables_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("USREG_TEST_DATA", str(tmp_path / "elsewhere"))
    pair = {"moving": "$USREG_TEST_DATA/m.nii", "fixed": "${USREG_TEST_DATA}/f.nii"}
    (tmp_path / "m.json").write_text(json.dumps({"train": [pair]}))
    (case,) = read_manifest(tmp_path / "m.json", "train")
    assert case.files == {key: tmp_path / "elsewhere" / Path(path).name for key, path in pair.items()}
    (tmp_path / "$REAL.nii").touch()
    (tmp_path / "m.json").write_text(json.dumps({"train": [{**PAIR, "moving": "$REAL.nii"}]}))
    assert read_manifest(tmp_path / "m.json", "train")[0].files["moving"] == tmp_path / "$REAL.nii"


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("moving_labels", "l.nii.gz", "moving_label"),
        ("fixed_seg", "l.mha", "fixed_label"),
        ("moving_segmentation", "l.nrrd", "moving_label"),
        ("fixed_landmark", "p.csv", "fixed_landmarks"),
        ("fixed_points", [[1, 2, 3]], "fixed_landmarks"),
        ("moving-mask", "l.nii", "moving_mask"),
        ("label_moving", "l.nii", "moving_label"),
        ("Moving_Label", "l.nii", "moving_label"),
        ("moving_lable", "l.nii", "moving_label"),
        ("fixed_masks", "l.nii", "fixed_mask"),
    ],
)
def test_misspelt_keys_are_no_metadata(tmp_path, key, value, meant):
    (tmp_path / "m.json").write_text(json.dumps({"train": [{**PAIR, key: value}]}))
    with pytest.raises(DataError, match=rf"train\[0\]: '{key}' is not a key of a case. Did you mean '{meant}'"):
        read_manifest(tmp_path / "m.json", "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("moving_modality", "CT"),
        ("moving_label_name", "kidney"),
        ("fixed_points", 16),
        ("moving_spacing", [1, 1, 1]),
        ("moving_id", "a.nii"),
        ("report", "r.txt"),
        ("moving_mask_source", "drawn by hand"),
    ],
)
def test_metadata_stays_metadata(tmp_path, key, value):
    (tmp_path / "m.json").write_text(json.dumps({"train": [{**PAIR, key: value}]}))
    assert key in read_manifest(tmp_path / "m.json", "train")[0].metadata

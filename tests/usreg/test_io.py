from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from usreg.errors import DataError
from usreg.io import read_header, read_landmarks, read_manifest, read_volume

AFFINE = np.diag([0.5, 1.0, 2.0, 1.0])
POINTS = [[1.0, 2.0, 3.0], [4.5, 5.0, 6.0]]


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def random_voxels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def test_volume_keeps_axes_and_affine(tmp_path):
    voxels = random_voxels(3, 4, 5)
    volume = read_volume(save(tmp_path / "a.nii.gz", voxels))
    np.testing.assert_array_equal(volume[0].numpy(), voxels)
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE)


def test_fourth_axis_is_channels(tmp_path):
    voxels = random_voxels(3, 4, 5, 2)
    path = save(tmp_path / "a.nii", voxels)
    assert read_header(path).shape == (3, 4, 5)
    assert read_header(path).channels == 2
    np.testing.assert_array_equal(read_volume(path).numpy(), np.moveaxis(voxels, -1, 0))


def test_scaled_integers_are_read_in_real_units(tmp_path):
    image = nib.Nifti1Image(np.full((2, 2, 2), 3, np.int16), AFFINE)
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "ct.nii.gz")
    assert (read_volume(tmp_path / "ct.nii.gz") == nib.load(tmp_path / "ct.nii.gz").get_fdata()[0, 0, 0]).all()


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no such file; a volume is needed: NIfTI"):
        read_header(tmp_path / "none.nii.gz")
    with pytest.raises(DataError, match="is a folder without DICOM files"):
        read_header(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 600, -1])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_file_is_found(tmp_path, suffix, keep):
    path = save(tmp_path / f"a{suffix}", random_voxels(16, 16, 16))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"a{suffix}.*copy or convert the file again"):
        read_volume(path)


def test_overwritten_bytes_are_found(tmp_path):
    path = save(tmp_path / "a.nii.gz", random_voxels(16, 16, 16))
    content = bytearray(path.read_bytes())
    content[2000:2200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cut short or corrupt"):
        read_volume(path)


def test_file_of_another_kind(tmp_path):
    text = b"hello" * 200
    for name, content in (("a.nii", text), ("b.nii.gz", gzip.compress(text)), ("c.png", text), ("d.nii.gz", text)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            read_header(tmp_path / name)


def test_voxels_must_be_finite(tmp_path):
    voxels = random_voxels(2, 2, 2)
    voxels[0, 0] = np.nan
    with pytest.raises(DataError, match=r"2 of 8 voxels are NaN; .* set nan to fill or mask"):
        read_volume(save(tmp_path / "a.nii", voxels))
    assert int(read_volume(tmp_path / "a.nii", allow_nan=True).isnan().sum()) == 2
    voxels[1, 1, 1] = np.inf
    for allow_nan in (False, True):
        with pytest.raises(DataError, match="3 of 8 voxels are NaN or infinite"):
            read_volume(save(tmp_path / "a.nii", voxels), allow_nan=allow_nan)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2, 2, 2)])
def test_other_dimensions_are_refused(tmp_path, shape):
    with pytest.raises(DataError, match="its shape is"):
        read_header(save(tmp_path / "a.nii", random_voxels(*shape)))


def test_voxels_must_be_real_numbers(tmp_path):
    with pytest.raises(DataError, match="voxels are of type complex64"):
        read_header(save(tmp_path / "a.nii", random_voxels(2, 2, 2).astype(np.complex64)))


def test_affine_must_be_invertible(tmp_path):
    path = save(tmp_path / "a.nii", random_voxels(2, 2, 2))
    content = bytearray(path.read_bytes())
    content[312:328] = bytes(16)  # the header's srow_z, the third row of the affine
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be inverted"):
        read_header(path)


def write_landmarks(folder: Path, kind: str) -> Path:
    path = folder / f"points{kind}"
    if kind == ".npy":
        np.save(path, np.array(POINTS))
    elif kind == ".npz":
        np.savez(path, any_name=np.array(POINTS))
    elif kind == ".txt":
        path.write_text("# x y z\n1 2 3\n4.5, 5, 6  # comma or space\n\n")
    else:
        path.write_text("\ufeffname,X,Y,Z\napex,1,2,3\nbase,4.5,5,6\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [".npy", ".npz", ".txt", ".csv"])
def test_landmark_files(tmp_path, kind):
    np.testing.assert_array_equal(read_landmarks(write_landmarks(tmp_path, kind)).points, POINTS)


@pytest.mark.parametrize("text", ["1,2,3\n4.5,5,6\n", "i,j,k\n1,2,3\n4.5,5,6\n"])
def test_csv_with_three_columns(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    np.testing.assert_array_equal(read_landmarks(tmp_path / "p.csv").points, POINTS)


def test_landmark_lists():
    np.testing.assert_array_equal(read_landmarks(POINTS).points, POINTS)


@pytest.mark.parametrize(
    "points", [[], [[1, 2]], [1, 2, 3], [[1, 2, "three"]], [[1, 2, float("nan")]], [[1, 2, 3], [1]]]
)
def test_landmarks_must_be_rows_of_three_numbers(points):
    with pytest.raises(DataError, match="rows of three numbers"):
        read_landmarks(points)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.npy", b"no array"),
        ("p.npz", b"no archive"),
        ("p.txt", b"1 2\n3 4 5\n"),
        ("p.csv", b"x,y,z\n1,2\n"),
        ("p.csv", b""),
        ("p.xlsx", b""),
    ],
)
def test_unreadable_landmark_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_landmarks(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_landmarks(tmp_path / "none.csv")


def test_landmark_files_cannot_run_code(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as numbers"):
        read_landmarks(tmp_path / "p.npy")


def write_manifest(folder: Path, content: object) -> Path:
    path = folder / "manifest.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


PAIR = {"moving": "m.nii.gz", "fixed": "/data/f.nii.gz"}


def test_manifest_paths_and_metadata(tmp_path):
    entry = {**PAIR, "modality": "MR-US", "subject_id": "007", "age": 61, "moving_mask": None}
    (case,) = read_manifest(write_manifest(tmp_path, {"train": [entry]}), "train")
    assert case.files == {"moving": tmp_path / "m.nii.gz", "fixed": Path("/data/f.nii.gz")}
    assert (case.name, case.where, case.modality) == ("007", "train[0]", "MR-US")
    assert case.metadata == {"modality": "MR-US", "subject_id": "007", "age": "61"}
    assert not case.has("moving_mask")


def test_case_without_a_name_is_called_by_its_place(tmp_path):
    cases = read_manifest(write_manifest(tmp_path, {"val": [PAIR, {**PAIR, "case": "B"}]}), "val")
    assert [case.name for case in cases] == ["val[0]", "B"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not a JSON file"),
        ([PAIR], "holds a list; a manifest is an object"),
        ({"trainig": [PAIR]}, r"has no list 'train', only \['trainig'\].*Did you mean 'trainig'"),
        ({"train": [PAIR], "training": []}, "has the list 'train' twice, also as 'training'"),
        ({"train": [{**PAIR, "moving_labels": "l.nii", "fixed_labels": "l.nii"}]}, "Did you mean 'moving_label'"),
        ({"train": [{**PAIR, "fixed": "$NO_SUCH_VARIABLE/f.nii"}]}, r"train\[0\].fixed: .*variable \$NO_SUCH_VARIABLE"),
        ({"train": PAIR}, "has no list 'train'"),
        ({"train": []}, "'train' is empty"),
        ({"train": ["m.nii.gz"]}, r"train\[0\]: is 'm.nii.gz'; a case is an object"),
        (
            {"train": [PAIR, {"moving": "m.nii.gz", "fixd": "f"}]},
            r"train\[1\]: 'fixed' is missing.*Did you mean 'fixd'",
        ),
        ({"train": [{**PAIR, "moving": 3}]}, r"train\[0\].moving: is 3; it must be a path"),
        ({"train": [{**PAIR, "moving_label": "l"}]}, "'moving_label' has no pair; add 'fixed_label'"),
        ({"train": [{**PAIR, "fixed_landmarks": [[1, 2, 3]]}]}, "'fixed_landmarks' has no pair"),
        ({"train": [PAIR], "val": [{**PAIR, "case": "again"}]}, r"train\[0\] and val\[0\] are the same pair"),
    ],
)
def test_faulty_manifests(tmp_path, content, text):
    path = write_manifest(tmp_path, content)
    with pytest.raises(DataError, match=text) as caught:
        read_manifest(path, "train")
    assert str(path) in str(caught.value)


def test_missing_manifest(tmp_path):
    with pytest.raises(DataError, match="no such file; json_file must be"):
        read_manifest(tmp_path / "none.json", "train")


def test_all_faulty_cases_are_listed(tmp_path):
    path = write_manifest(tmp_path, {"train": [PAIR, *[{"moving": "m.nii.gz"}] * 12]})
    with pytest.raises(DataError, match=r"12 case\(s\)(.|\n)*train\[1\](.|\n)*train\[10\](.|\n)*and 2 more cases"):
        read_manifest(path, "train")


def test_a_file_of_two_axes_is_one_slice(tmp_path):
    voxels = np.arange(30, dtype=np.float32).reshape(5, 6)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    for name in ("slice.nii", "slice.nii.gz"):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / name)
        assert nib.load(tmp_path / name).shape == (5, 6)
        assert read_header(tmp_path / name).shape == (5, 6, 1)
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume[0, :, :, 0], voxels)
        np.testing.assert_allclose(volume.affine, affine)

"""Headers that say nothing, two things, or something in another unit; single slices; NaN."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from usreg.datasets.custom import CustomDataset
from usreg.errors import DataError
from usreg.io import read_header, read_volume

SHAPE = (12, 10, 8)
SFORM = np.diag([1.0, 2.0, 3.0, 1.0])
QFORM = np.array([[0, -2.0, 0, 5], [1, 0, 0, 7], [0, 0, 3, 0], [0, 0, 0, 1]])  # turned by 90 degrees about z


def voxels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def save(
    path: Path, sform: int = 1, qform: int = 1, q: np.ndarray = SFORM, units: str = "mm", **values: object
) -> Path:
    image = nib.Nifti1Image(voxels(**values), SFORM)
    image.set_sform(SFORM, sform)
    image.set_qform(q, qform)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def dataset(folder: Path, **keys: object) -> CustomDataset:
    case = {key.removesuffix(".nii"): key for key in ("moving.nii", "fixed.nii")}
    for key in ("fixed_mask", "moving_label", "fixed_label"):
        if (folder / f"{key}.nii").exists():
            case[key] = f"{key}.nii"
    (folder / "m.json").write_text(json.dumps({"train": [case]}))
    return CustomDataset(str(folder / "m.json"), SHAPE[::-1], **keys)  # type: ignore[arg-type]


def test_a_clear_header_raises_no_doubt(tmp_path):
    for codes in ((1, 1), (2, 0), (0, 1)):
        header = read_header(save(tmp_path / "a.nii", *codes))
        assert (header.oriented, header.doubts) == (True, ())
        np.testing.assert_allclose(header.affine, SFORM, atol=1e-6)


def test_no_directions_are_a_doubt(tmp_path):
    header = read_header(save(tmp_path / "a.nii", 0, 0, QFORM))
    assert not header.oriented
    assert "sform_code and qform_code are 0" in header.doubts[0]
    for choice, affine in (("sform", SFORM), ("qform", QFORM)):  # who knows better says so
        header = read_header(tmp_path / "a.nii", choice)
        assert (header.oriented, header.doubts) == (True, ())
        np.testing.assert_allclose(header.affine, affine, atol=1e-5)
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii", choice).affine, affine, atol=1e-5)


def test_forms_that_disagree_are_a_doubt(tmp_path):
    path = save(tmp_path / "a.nii", q=QFORM)
    header = read_header(path)
    np.testing.assert_allclose(header.affine, SFORM)
    assert "its sform and its qform put its corners up to" in header.doubts[0]
    for choice, affine in (("sform", SFORM), ("qform", QFORM)):
        header = read_header(path, choice)
        assert header.doubts == ()
        np.testing.assert_allclose(header.affine, affine, atol=1e-5)


def test_rounding_is_no_doubt(tmp_path):
    turned = SFORM.copy()
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(0).random((3, 3)))[0] * [0.3, 0.3, 0.3]
    turned[:3, 3] = [100, -200, 300]
    image = nib.Nifti1Image(np.zeros((200, 200, 200), np.uint8), turned)
    image.set_sform(turned.round(5), 1)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii").doubts == ()


def test_a_choice_that_a_file_does_not_have_changes_nothing(tmp_path):
    np.testing.assert_allclose(read_header(save(tmp_path / "a.nii", 1, 0, QFORM), "qform").affine, SFORM)
    np.testing.assert_allclose(read_header(save(tmp_path / "b.nii", 0, 1, QFORM), "sform").affine, QFORM, atol=1e-5)


def test_voxel_sizes_that_disagree_are_a_doubt(tmp_path):
    image = nib.Nifti1Image(voxels(), SFORM)
    image.header["pixdim"][1:4] = [1, 2, 2.5]
    nib.save(image, tmp_path / "a.nii")
    assert "1 x 2 x 2.5 by pixdim and 1 x 2 x 3 by its affine" in read_header(tmp_path / "a.nii").doubts[0]


@pytest.mark.parametrize(("units", "factor"), [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_units_become_millimetres(tmp_path, units, factor):
    path = save(tmp_path / "a.nii", units=units)
    expected = SFORM * [[factor], [factor], [factor], [1]]
    np.testing.assert_allclose(read_header(path).affine, expected)
    np.testing.assert_allclose(read_volume(path).affine, expected)
    doubts = read_header(path).doubts
    assert doubts if units == "meter" else not doubts  # 1 x 2 x 3 metres are no voxels


def test_an_unknown_unit_is_refused(tmp_path):
    path = save(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[123] = 7  # xyzt_units
    path.write_bytes(content)
    with pytest.raises(DataError, match="its unit of length has the code 7"):
        read_header(path)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_small_voxels_are_read(tmp_path, size):
    nib.save(nib.Nifti1Image(voxels(), np.diag([size, size, size, 1])), tmp_path / "a.nii")
    assert np.diag(read_header(tmp_path / "a.nii").affine)[:3] == pytest.approx([size] * 3)


@pytest.mark.parametrize(
    ("name", "lines"),
    [("a.mha", (b"TransformMatrix", b"AnatomicalOrientation")), ("a.nrrd", (b"space:", b"space directions"))],
)
def test_formats_of_itk_without_directions(tmp_path, name, lines):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(voxels().T), str(tmp_path / name))
    assert read_header(tmp_path / name).oriented
    content = (tmp_path / name).read_bytes()
    kept = [line for line in content.split(b"\n") if not line.startswith(lines)]
    if name == "a.nrrd":
        kept = [b"spacings: 1 1 1" if line.startswith(b"space origin") else line for line in kept]
    (tmp_path / name).write_bytes(b"\n".join(kept))
    header = read_header(tmp_path / name)
    assert not header.oriented
    assert "does not say which way its axes run" in header.doubts[0]


def test_analyze_says_no_directions(tmp_path):
    nib.save(nib.AnalyzeImage(voxels(), np.diag([-1, 1, 1, 1])), tmp_path / "a.img")
    header = read_header(tmp_path / "a.img")
    assert not header.oriented
    assert "Analyze" in header.doubts[0]


def test_a_pair_must_agree_on_having_directions(tmp_path, caplog):
    save(tmp_path / "moving.nii", 0, 0)
    save(tmp_path / "fixed.nii", seed=1)
    with pytest.raises(DataError, match=r"train\[0\].moving: .*sform_code and qform_code are 0(.|\n)*would mirror"):
        dataset(tmp_path)
    same = dataset(tmp_path, header="sform")[0]
    assert same["moving_spacing"].tolist() == [3, 2, 1]
    save(tmp_path / "fixed.nii", 0, 0, seed=1)
    with caplog.at_level(logging.WARNING):
        dataset(tmp_path)
    assert "2 doubt(s) about headers" in caplog.text
    assert "train[0].fixed" in caplog.text


def test_the_chosen_form_counts_for_the_sample(tmp_path, caplog):
    save(tmp_path / "moving.nii", q=QFORM)
    save(tmp_path / "fixed.nii", q=QFORM, seed=1)
    assert dataset(tmp_path, header="qform")[0]["spacing"].tolist() == pytest.approx([3, 12 / 10, 20 / 12])
    assert "doubt" not in caplog.text
    assert dataset(tmp_path)[0]["spacing"].tolist() == [3, 2, 1]
    assert "put its corners up to" in caplog.text


@pytest.mark.parametrize("shape", [(12, 10, 1), (1, 10, 8), (12, 10, 1, 8)])
def test_a_single_slice_is_refused(tmp_path, shape):
    save(tmp_path / "moving.nii")
    save(tmp_path / "fixed.nii", shape=shape)
    text = (
        "has 8 channels" if len(shape) == 4 else r"train\[0\].fixed: .*a single slice, .* give image_size \[.*1.*\] for"
    )
    with pytest.raises(DataError, match=text):
        dataset(tmp_path)


@pytest.mark.parametrize("keys", [{"header": "form"}, {"nan": "ignore"}])
def test_valid_values_are_named(tmp_path, keys):
    save(tmp_path / "moving.nii")
    save(tmp_path / "fixed.nii", seed=1)
    with pytest.raises(ValueError, match=r"must be (sform or qform|error, fill or mask), not '(form|ignore)'"):
        dataset(tmp_path, **keys)


def with_nan(path: Path, seed: int, planes: int = 4) -> np.ndarray:
    values = voxels(seed) + 5
    values[:planes] = np.nan
    nib.save(nib.Nifti1Image(values, SFORM), path)
    return values


def test_nan_is_an_error_unless_it_has_a_meaning(tmp_path):
    with_nan(tmp_path / "moving.nii", 0)
    save(tmp_path / "fixed.nii", seed=1)
    with pytest.raises(DataError, match=r"train\[0\].moving: .*320 of 960 voxels are NaN.*set nan to fill or mask"):
        dataset(tmp_path)


def test_nan_is_filled_with_the_lowest_value(tmp_path):
    values = with_nan(tmp_path / "moving.nii", 0)
    save(tmp_path / "fixed.nii", seed=1)
    sample = dataset(tmp_path, nan="fill", normalize_intensity=False)[0]
    assert "moving_mask" not in sample
    expected = np.nan_to_num(values, nan=float(np.nanmin(values))).transpose(2, 1, 0)
    torch.testing.assert_close(sample["moving"][0], torch.from_numpy(expected.copy()))


def test_nan_is_left_out_by_the_mask(tmp_path):
    with_nan(tmp_path / "moving.nii", 0)
    save(tmp_path / "fixed.nii", seed=1)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :5] = 1
    nib.save(nib.Nifti1Image(mask, SFORM), tmp_path / "fixed_mask.nii")
    sample = dataset(tmp_path, nan="mask")[0]
    assert not sample["moving_mask"][0, :, :, :4].any()
    assert sample["moving_mask"][0, :, :, 4:].all()
    assert sample["fixed_mask"].mean() == 0.5
    with_nan(tmp_path / "fixed.nii", 1, planes=6)
    assert dataset(tmp_path, nan="mask")[0]["fixed_mask"].mean() == 0.25


def test_nan_in_a_label_is_background(tmp_path):
    for name in ("moving", "fixed"):
        save(tmp_path / f"{name}.nii", seed=len(name))
        label = np.zeros(SHAPE, np.float32)
        label[2:6], label[8:] = 1, np.nan
        nib.save(nib.Nifti1Image(label, SFORM), tmp_path / f"{name}_label.nii")
    label = dataset(tmp_path, nan="fill")[0]["fixed_label"]
    assert label.sum() == 4 * 80


def test_nothing_but_nan_is_refused(tmp_path):
    with_nan(tmp_path / "moving.nii", 0, planes=12)
    save(tmp_path / "fixed.nii", seed=1)
    with pytest.raises(DataError, match="all voxels are NaN"):
        dataset(tmp_path, nan="fill")

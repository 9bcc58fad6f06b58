"""Formats beside NIfTI, and files whose name or content is not what it should be."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from usreg.errors import DataError
from usreg.io import read_header, read_volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([0.5, -1.0, 2.0]), [10.0, -20.0, 30.0]
)
VOXELS = np.random.default_rng(0).random((6, 7, 8), np.float32)  # x, y, z
FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr", ".mnc")


def itk_image(voxels: np.ndarray = VOXELS, affine: np.ndarray = OBLIQUE, vector: bool = False) -> sitk.Image:
    """The image that ITK has of an array (x, y, z) or (x, y, z, c) whose affine leads to RAS."""
    image = sitk.GetImageFromArray(voxels.swapaxes(0, 2), isVector=vector)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def write(path: Path, image: sitk.Image | None = None, compress: bool = False) -> Path:
    sitk.WriteImage(itk_image() if image is None else image, str(path), compress)
    return path


@pytest.mark.parametrize("suffix", [*FORMATS, ".nii.gz"])
def test_voxels_and_world_are_those_of_nifti(tmp_path, suffix):
    """SimpleITK wrote the file, for MINC through its own world: voxels and affine come back, in RAS."""
    path = write(tmp_path / f"a{suffix}")
    volume = read_volume(path)
    affine = np.diag([-1.0, -1, 1, 1]) @ OBLIQUE if suffix == ".mnc" else OBLIQUE  # ITK wrote LPS numbers into MINC
    np.testing.assert_array_equal(volume[0].numpy(), VOXELS)
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-5)
    header = read_header(path)
    assert (header.shape, header.channels) == (VOXELS.shape, 1)
    np.testing.assert_array_equal(header.affine, volume.affine.numpy())


def test_minc_1_and_2_are_in_one_world():
    """One volume that MINC's own tools wrote in both formats. Its first voxel is at -20, -20, -10 mm, in RAS."""
    folder = Path(nib.__file__).parent / "tests" / "data"
    if not (folder / "minc2_1_scale.mnc").is_file():
        pytest.skip("this nibabel has no test data")
    one, two = (read_volume(folder / f"minc{number}_1_scale.mnc") for number in (1, 2))
    np.testing.assert_allclose(one.affine.numpy(), [[2, 0, 0, -20], [0, 2, 0, -20], [0, 0, 2, -10], [0, 0, 0, 1]])
    np.testing.assert_allclose(one.affine.numpy(), two.affine.numpy())
    np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-6)
    one, two = (read_volume(folder / f"minc{number}_4d.mnc") for number in (1, 2))
    assert one.shape == two.shape == (2, 20, 20, 10)
    np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-5)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_components_are_channels(tmp_path, suffix):
    voxels = np.random.default_rng(1).random((4, 5, 6, 2), np.float32)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0, 3), isVector=True)
    volume = read_volume(write(tmp_path / f"a{suffix}", image))
    np.testing.assert_array_equal(volume.numpy(), np.moveaxis(voxels, -1, 0))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_fourth_axis_is_channels(tmp_path, suffix):
    voxels = np.random.default_rng(1).random((4, 5, 6, 2), np.float32)
    image = sitk.GetImageFromArray(voxels.transpose(3, 2, 1, 0), isVector=False)
    image.SetSpacing([0.5, 1, 2, 1])
    volume = read_volume(write(tmp_path / f"a{suffix}", image))
    np.testing.assert_array_equal(volume.numpy(), np.moveaxis(voxels, -1, 0))
    np.testing.assert_allclose(volume.affine.numpy(), np.diag([-0.5, -1, 2, 1]))


def test_integers_and_compression(tmp_path):
    voxels = np.random.default_rng(1).integers(-1000, 1000, (6, 7, 8), np.int16)
    for suffix in (".mha", ".nrrd"):
        path = write(tmp_path / f"a{suffix}", itk_image(voxels), compress=True)
        np.testing.assert_array_equal(read_volume(path)[0].numpy(), voxels)


@pytest.mark.parametrize("keep", [60, 300, -200, -3])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mnc"])
def test_truncated_file_is_found(tmp_path, suffix, compress, keep, capfd):
    path = write(tmp_path / f"a{suffix}", compress=compress)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"a{suffix}.*copy or convert the file again") as caught:
        read_volume(path)
    assert "No such file" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_overwritten_bytes_are_found(tmp_path, suffix):
    """ITK reads most of such files without a word."""
    path = write(tmp_path / f"a{suffix}", compress=True)
    assert read_volume(path).shape == (1, *VOXELS.shape)
    data = next((file for file in tmp_path.iterdir() if file != path), path)
    content = bytearray(data.read_bytes())
    content[-600:-400] = bytes(200)
    data.write_bytes(content)
    with pytest.raises(DataError, match="cut short or corrupt"):
        read_volume(path)


@pytest.mark.parametrize(("suffix", "data"), [(".mhd", "a.raw"), (".nhdr", "a.raw")])
def test_missing_data_file_is_named(tmp_path, suffix, data):
    path = write(tmp_path / f"a{suffix}")
    for file in tmp_path.glob("*.raw*"):
        file.unlink()
    with pytest.raises(DataError, match=rf"its voxels are in {data}.*which is not there"):
        read_header(path)


def test_complex_voxels_are_refused(tmp_path):
    image = sitk.Cast(itk_image(), sitk.sitkComplexFloat32)
    with pytest.raises(DataError, match="complex"):
        read_header(write(tmp_path / "a.nrrd", image))


def test_analyze_and_pairs(tmp_path):
    for kind, name in ((nib.Spm99AnalyzeImage, "a"), (nib.Nifti1Pair, "p")):
        nib.save(kind(VOXELS, np.diag([-0.5, 1, 2, 1])), tmp_path / f"{name}.img")
        for suffix in (".img", ".hdr"):
            volume = read_volume(tmp_path / f"{name}{suffix}")
            np.testing.assert_allclose(volume[0].numpy(), VOXELS, rtol=1e-6)
    (tmp_path / "a.hdr").unlink()
    with pytest.raises(DataError, match=r"its header a\.hdr is missing"):
        read_header(tmp_path / "a.img")


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("name", "compressed"), [("a.nii", True), ("a.nii.gz", False)])
def test_wrongly_named_compression_is_read(tmp_path, name, compressed, image_class):
    content = image_class(VOXELS, OBLIQUE).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume[0].numpy(), VOXELS)
    np.testing.assert_allclose(volume.affine.numpy(), OBLIQUE, atol=1e-5)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut short|copy or convert the file again"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.nii", b"ObjectType = Image\nNDims = 3\n", "its content is MetaImage.*name it .mha or .mhd"),
        ("a.mha", b"NRRD0004\ntype: float\n", "its content is NRRD.*name it .nrrd"),
        ("a.nii.gz", b"\x89PNG\r\n", "it is a PNG picture"),
        ("a.npz", b"PK\x03\x04", "a zip archive"),
        ("a.npy", b"\x93NUMPY", "a NumPy array, which has no voxel size"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("a.nii", b"", "the file is empty"),
        ("a.mnc", b"\x89HDF\r\n\x1a\n" + bytes(1000), "cannot be read as MINC 2"),
        ("a.mnc", b"CDF\x01" + bytes(100), "a.mnc: cannot be read"),
        ("a.dcm", bytes(128) + b"DICM", "cannot be read as DICOM"),
        ("a.mha.gz", gzip.compress(b"ObjectType = Image\nNDims = 3\n", mtime=0), "gzip-compressed; decompress it"),
        ("a.xyz", b"anything", "neither its name nor its content is known"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, name, content, text, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_header(tmp_path / name)


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_simpleitk_the_extra_is_named(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a{suffix}")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r'SimpleITK, which is not installed.*pip install "usreg\[formats\]"'):
        read_header(path)
    with pytest.raises(DataError, match=r"DICOM is read by SimpleITK.*usreg\[formats\]"):
        read_header(tmp_path)

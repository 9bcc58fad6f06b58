"""DICOM: folders of slices, and files of many frames, as SimpleITK and pydicom write them."""

from __future__ import annotations

import locale
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from usreg.errors import DataError
from usreg.io import read_header, read_volume

VOXELS = np.random.default_rng(0).integers(0, 1000, (6, 7, 8)).astype(np.int16)  # x, y, z
COSINE, SINE = np.cos(0.3), np.sin(0.3)


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """ITK's writer of DICOM sets the locale C, in which later tests take the output of programs for ASCII."""
    before = locale.setlocale(locale.LC_CTYPE)
    yield
    locale.setlocale(locale.LC_CTYPE, before)


AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((COSINE, SINE, 0.0), (-SINE, COSINE, 0.0))
SPACING = (0.5, 0.75)  # mm along a row and along a column

Places = Sequence[Sequence[float]]


def stack(step: Sequence[float], order: Sequence[float] = range(8)) -> Places:
    """Places in mm, LPS, of slices that lie a step apart."""
    return [[start + number * length for start, length in zip((1, 2, 3), step, strict=True)] for number in order]


UP = stack((0, 0, 2.5))


def write_slices(
    folder: Path, places: Places = UP, plane: Any = AXIAL, series: str = "1", name: str = "", tags: Any = None
) -> None:
    """Slices of VOXELS, one file each, at places in mm, LPS."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, place in enumerate(places):
        image = sitk.GetImageFromArray(VOXELS[:, :, index : index + 1].swapaxes(0, 2))
        image.SetSpacing([*SPACING, 1.0])
        elements = {
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": f"1.2.3.{series}",
            "0008|0018": f"1.2.3.{series}.{index + 1}",
            "0020|0013": str(index),
            "0020|0032": "\\".join(f"{mm:.6g}" for mm in place),
            "0020|0037": "\\".join(f"{cosine:.12g}" for axis in plane for cosine in axis),
            **(tags or {}),
        }
        for tag, value in elements.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{name}{7 - index}.dcm"))  # named against their order
        writer.Execute(image)


def assert_in_place(path: Path, places: Places, plane: Any, values: np.ndarray = VOXELS) -> None:
    """Each voxel of each slice has its value at its place in the world, whatever the order of the slices."""
    volume = read_volume(path)
    row, column = (np.asarray(axis) for axis in plane)
    x, y, z = np.indices(values.shape)
    lps = np.asarray(places)[z] + x[..., None] * SPACING[0] * row + y[..., None] * SPACING[1] * column
    ras = np.concatenate([lps * (-1, -1, 1), np.ones((*values.shape, 1))], -1)
    found = ras @ np.linalg.inv(volume.affine.numpy()).T[:, :3]
    index = np.rint(found).astype(int)
    np.testing.assert_allclose(found, index, atol=1e-4)
    np.testing.assert_array_equal(volume[0].numpy()[tuple(np.moveaxis(index, -1, 0))], values)


@pytest.mark.parametrize(
    ("places", "plane"),
    [
        (UP, AXIAL),
        (UP[::-1], AXIAL),
        (stack((0, 0.625, 2.5)), AXIAL),  # a tilted gantry shears the volume
        (stack((0, 2.5, 0)), CORONAL),
        (stack((2.5, 0, 0)), SAGITTAL),
        (stack((0, 0, 2.5)), OBLIQUE),
    ],
)
def test_slices_of_a_folder_are_where_they_say(tmp_path, places, plane):
    write_slices(tmp_path / "d", places, plane)
    (tmp_path / "d" / "README.txt").write_text("not an image")
    assert_in_place(tmp_path / "d", places, plane)
    assert read_header(tmp_path / "d").oriented


def test_each_slice_has_its_scale(tmp_path):
    write_slices(tmp_path / "d")
    dataset = pydicom.dcmread(tmp_path / "d" / "4.dcm")
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    dataset.save_as(tmp_path / "d" / "4.dcm")
    values = VOXELS.copy()
    values[:, :, 3] = 2 * VOXELS[:, :, 3] - 1000
    assert_in_place(tmp_path / "d", UP, AXIAL, values)


@pytest.mark.parametrize(
    ("places", "text"),
    [
        (stack((0, 0, 1), [0, 1, 2, 4, 5]), "to 4.dcm it is 2 mm, between other slices 1 mm"),
        (stack((0, 0, 1), [0, 0, 0]), "state no places, or share them"),
    ],
)
def test_slices_must_be_evenly_apart(tmp_path, places, text):
    write_slices(tmp_path / "d", places)
    with pytest.raises(DataError, match=text):
        read_header(tmp_path / "d")


def test_a_folder_must_hold_one_series_and_names_several(tmp_path):
    write_slices(tmp_path / "d", UP[:3], tags={"0008|103e": "T1 axial", "0020|0011": "4"})
    write_slices(tmp_path / "d", UP[:2], series="2", name="other", tags={"0008|103e": "T2"})
    text = (
        r"holds 2 DICOM series \(CT T1 axial 4: 3 file\(s\) such as 7.dcm; CT T2: 2 file\(s\) such as other7.dcm\); "
        "put each into a folder of its own"
    )
    with pytest.raises(DataError, match=text):
        read_header(tmp_path / "d")


def test_slices_of_one_series_in_two_planes_are_refused(tmp_path):
    write_slices(tmp_path / "d", UP[:4])
    write_slices(tmp_path / "d", stack((0, 20, 0), [0, 1]), CORONAL, name="localizer")
    with pytest.raises(DataError, match=r"differs from .* in size, channels or direction"):
        read_header(tmp_path / "d")


def test_a_damaged_slice_is_named(tmp_path):
    """Also the last one, whose absence nothing else shows: ITK leaves out what it cannot read."""
    write_slices(tmp_path / "d")
    last = tmp_path / "d" / "0.dcm"
    last.write_bytes(last.read_bytes()[:300])
    with pytest.raises(DataError, match=r"0\.dcm and 0 more of its DICOM files cannot be read as a slice"):
        read_header(tmp_path / "d")


def test_a_folder_of_folders_names_them(tmp_path):
    write_slices(tmp_path / "inner")
    with pytest.raises(DataError, match=r"is a folder without DICOM files; it holds the folder\(s\) inner: name one"):
        read_header(tmp_path)


def as_sequence(**elements: Any) -> list[Dataset]:
    """A sequence of one item."""
    item = Dataset()
    item.update(elements)
    return [item]


def multiframe(sop_class: str) -> Dataset:
    """A file with all slices of VOXELS as frames, and nothing about where they are."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["a"])
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.Modality = "CT"
    dataset.Columns, dataset.Rows, dataset.NumberOfFrames = VOXELS.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(VOXELS.transpose(2, 1, 0)).tobytes()
    return dataset


def enhanced(path: Path, places: Places, plane: Any = AXIAL, slopes: Sequence[float] | None = None) -> Dataset:
    """An enhanced CT, whose frames state their places one by one; it is written, and returned for more changes."""
    dataset = multiframe("1.2.840.10008.5.1.4.1.1.2.1")
    dataset.FrameOfReferenceUID = "1.2.3.5"
    shared = Dataset()
    shared.PixelMeasuresSequence = as_sequence(PixelSpacing=list(SPACING[::-1]), SliceThickness=1.0)
    shared.PlaneOrientationSequence = as_sequence(ImageOrientationPatient=[*plane[0], *plane[1]])
    shared.PixelValueTransformationSequence = as_sequence(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for number, place in enumerate(places):
        frame = Dataset()
        frame.PlanePositionSequence = as_sequence(ImagePositionPatient=list(place))
        if slopes is not None:
            frame.PixelValueTransformationSequence = as_sequence(
                RescaleSlope=slopes[number], RescaleIntercept=number, RescaleType="HU"
            )
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    if slopes is not None:
        del shared.PixelValueTransformationSequence
    dataset.save_as(path, enforce_file_format=True)
    return dataset


@pytest.mark.parametrize(
    ("places", "plane"),
    [
        (UP, AXIAL),
        (UP[::-1], AXIAL),
        (stack((0, 0, 2.5), [3, 0, 1, 2, 7, 6, 5, 4]), AXIAL),
        (stack((0, 0.625, 2.5)), AXIAL),
        (stack((0, 2.5, 0)), CORONAL),
        (stack((0, 0, 2.5)), OBLIQUE),
    ],
)
def test_frames_of_a_file_are_where_they_say(tmp_path, places, plane):
    """ITK takes 1 mm for frames out of order, and leaves out the tilt of a gantry."""
    enhanced(tmp_path / "a.dcm", places, plane)
    assert_in_place(tmp_path / "a.dcm", places, plane)
    assert_in_place(tmp_path, places, plane)
    assert (read_header(tmp_path / "a.dcm").oriented, read_header(tmp_path / "a.dcm").doubts) == (True, ())


def test_each_frame_has_its_scale(tmp_path):
    """ITK takes that of the first frame for all."""
    slopes = [2, 2, 3, 4, 1, 1, 5, 6]
    enhanced(tmp_path / "a.dcm", UP[::-1], slopes=slopes)
    assert_in_place(tmp_path / "a.dcm", UP[::-1], AXIAL, VOXELS * np.asarray(slopes) + np.arange(8))


@pytest.mark.parametrize(
    ("places", "text"),
    [
        (stack((0, 0, 2), [0, 1, 2, 4, 5, 6, 7, 8]), "from frame 3 to frame 4 it is 4 mm, between other slices 2 mm"),
        (stack((0, 0, 2), [0] * 8), "its 8 DICOM slices state no places, or share them"),
        (stack((0, 0, 2), [0, 0, 1, 1, 2, 2, 3, 3]), "state no places, or share them; a time series needs a file"),
    ],
)
def test_frames_must_be_evenly_apart(tmp_path, places, text):
    enhanced(tmp_path / "a.dcm", places)
    with pytest.raises(DataError, match=text):
        read_header(tmp_path / "a.dcm")


def test_frames_must_be_of_one_stack_and_have_places(tmp_path):
    dataset = enhanced(tmp_path / "a.dcm", UP)
    frame = dataset.PerFrameFunctionalGroupsSequence[2]
    frame.PlaneOrientationSequence = as_sequence(ImageOrientationPatient=[*CORONAL[0], *CORONAL[1]])
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="its 8 frames differ in direction or in the size of their voxels"):
        read_header(tmp_path / "a.dcm")
    del frame.PlanePositionSequence
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match="ImagePositionPatient is missing for some of its 8 frames"):
        read_header(tmp_path / "a.dcm")


def test_frames_in_the_world_of_a_probe_are_a_doubt(tmp_path):
    """As in enhanced ultrasound volumes: places in mm, and no patient."""
    dataset = enhanced(tmp_path / "a.dcm", UP)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.2"
    dataset.Modality = "US"
    del dataset.FrameOfReferenceUID
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationVolumeSequence = as_sequence(ImageOrientationVolume=[*AXIAL[0], *AXIAL[1]])
    del shared.PlaneOrientationSequence
    for frame, place in zip(dataset.PerFrameFunctionalGroupsSequence, UP, strict=True):
        del frame.PlanePositionSequence
        frame.PlanePositionVolumeSequence = as_sequence(ImagePositionVolume=list(place))
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert_in_place(tmp_path / "a.dcm", UP, AXIAL)
    header = read_header(tmp_path / "a.dcm")
    assert not header.oriented
    assert "does not say which way its axes run" in header.doubts[0]


def test_frames_without_places_are_a_doubt(tmp_path):
    multiframe("1.2.840.10008.5.1.4.1.1.3.1").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    header = read_header(tmp_path / "a.dcm")
    assert not header.oriented
    assert "does not say how large its voxels are: 1 mm is taken" in header.doubts[1]


def test_a_grid_of_doses_must_be_even(tmp_path):
    dataset = multiframe("1.2.840.10008.5.1.4.1.1.481.2")
    dataset.PixelSpacing, dataset.ImageOrientationPatient = list(SPACING[::-1]), [*AXIAL[0], *AXIAL[1]]
    dataset.ImagePositionPatient, dataset.GridFrameOffsetVector = UP[0], [2.5 * number for number in range(8)]
    dataset.FrameIncrementPointer, dataset.PixelRepresentation, dataset.DoseGridScaling = 0x3004000C, 0, 1.0
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert_in_place(tmp_path / "a.dcm", UP, AXIAL)
    dataset.GridFrameOffsetVector[4:] = [11, 13.5, 16, 18.5]
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"from frame 4 to frame 5 it is 3\.5 mm"):
        read_header(tmp_path / "a.dcm")


def test_frames_that_simpleitk_wrote(tmp_path):
    image = sitk.GetImageFromArray(VOXELS.astype(np.uint16).transpose(2, 1, 0))
    image.SetSpacing([*SPACING, 2.5])
    image.SetOrigin([1, 2, 3])
    sitk.WriteImage(image, str(tmp_path / "a.dcm"))
    assert_in_place(tmp_path / "a.dcm", UP, AXIAL)


def test_frames_need_pydicom(tmp_path, monkeypatch):
    enhanced(tmp_path / "a.dcm", UP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r'pydicom, which is not installed.*pip install "usreg\[formats\]"'):
        read_header(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", ["dicomdirtests/98892001/CT5N", "J2K_pixelrep_mismatch.dcm", "rtdose.dcm"])
def test_files_of_scanners_lie_where_simpleitk_puts_them(name):
    """A series of a head, an oblique slice and a grid of doses, which pydicom brings with it."""
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    expected = sitk.ReadImage(files)
    found = read_volume(path)
    np.testing.assert_array_equal(found[0].numpy(), sitk.GetArrayFromImage(expected).transpose().astype(np.float32))
    for index in [(0, 0, 0), (4, 2, 0), (1, 3, expected.GetDepth() - 1)]:
        lps = np.array(expected.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose((found.affine.numpy() @ [*index, 1])[:3], lps * (-1, -1, 1), atol=1e-3)


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_file_without_an_image_says_what_it_is(tmp_path, in_folder):
    dataset = multiframe("1.2.840.10008.5.1.4.1.1.481.3")
    dataset.Modality = "RTSTRUCT"
    for element in ("Rows", "Columns", "NumberOfFrames", "PixelData"):
        delattr(dataset, element)
    dataset.save_as(tmp_path / "contours.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"without an image \(RTSTRUCT, RT Structure Set Storage\).*save that as NIfTI"):
        read_header(tmp_path if in_folder else tmp_path / "contours.dcm")

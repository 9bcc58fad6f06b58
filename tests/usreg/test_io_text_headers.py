"""Headers of NRRD and MetaImage written by hand: worlds, directions and units as programs other than ITK write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from usreg.errors import DataError
from usreg.io import read_header, read_volume

VOXELS = np.random.default_rng(0).random((4, 5, 6), np.float32)  # x, y, z
DIRECTIONS = np.array([[0, -1, 0], [2, 0, 0], [0, 0, 3]], float)  # columns: the steps along x, y, z
ORIGIN = np.array([10.0, 20, 30])


def vectors(matrix: np.ndarray) -> str:
    return " ".join("(" + ",".join(f"{number:g}" for number in column) + ")" for column in matrix.T)


def nrrd(path: Path, *lines: str, voxels: np.ndarray = VOXELS) -> Path:
    """A file with these lines in its header."""
    fixed = ("NRRD0005", "type: float", f"dimension: {voxels.ndim}", "encoding: raw", "endian: little")
    sizes = "sizes: " + " ".join(map(str, voxels.shape))
    path.write_bytes("\n".join([*fixed, sizes, *lines, "", ""]).encode() + voxels.tobytes(order="F"))
    return path


def metaimage(path: Path, *lines: str) -> Path:
    fixed = ("ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False")
    matrix = "TransformMatrix = " + " ".join(f"{n:g}" for n in (DIRECTIONS / (2, 1, 3)).T.ravel())
    place = ("Offset = 10 20 30", "ElementSpacing = 2 1 3")
    end = ("DimSize = 4 5 6", "ElementType = MET_FLOAT", "ElementDataFile = LOCAL", "")
    path.write_bytes("\n".join([*fixed, matrix, *place, *lines, *end]).encode() + VOXELS.tobytes(order="F"))
    return path


def affine(matrix: np.ndarray = DIRECTIONS, origin: np.ndarray = ORIGIN, to_ras: tuple = (1, 1, 1)) -> np.ndarray:
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = matrix, origin
    return np.diag([*to_ras, 1]) @ whole


WORLDS = [
    ("left-posterior-superior", (-1, -1, 1)),
    ("LPS", (-1, -1, 1)),
    ("right-anterior-superior", (1, 1, 1)),
    ("RAS", (1, 1, 1)),
    ("left-anterior-superior", (-1, 1, 1)),
    ("LAS", (-1, 1, 1)),
]


@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize(("world", "to_ras"), WORLDS)
def test_nrrd_in_any_world_and_of_either_hand(tmp_path, world, to_ras, handed):
    matrix = DIRECTIONS * (1, handed, 1)
    path = nrrd(
        tmp_path / "a.nrrd",
        f"space: {world}",
        f"space directions: {vectors(matrix)}",
        "space origin: (10,20,30)",
    )
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine.numpy(), affine(matrix, to_ras=to_ras), atol=1e-6)
    np.testing.assert_array_equal(volume[0].numpy(), VOXELS)
    assert (read_header(path).oriented, read_header(path).doubts) == (True, ())


@pytest.mark.parametrize(
    ("world", "to_ras"),
    [
        ("RAST", (1, 1, 1)),
        ("LAST", (-1, 1, 1)),
        ("LPST", (-1, -1, 1)),
        *((f"{world}-time", to_ras) for world, to_ras in WORLDS if "-" in world),
    ],
)
def test_nrrd_in_a_world_with_time(tmp_path, world, to_ras):
    """ITK takes each of them for LPS, which mirrors the volume."""
    voxels = np.stack([VOXELS, VOXELS + 1], axis=-1)
    whole = np.eye(4)
    whole[:3, :3] = DIRECTIONS
    path = nrrd(
        tmp_path / "a.nrrd",
        f"space: {world}",
        f"space directions: {vectors(whole)}",
        "space origin: (10,20,30,0)",
        voxels=voxels,
    )
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine.numpy(), affine(to_ras=to_ras), atol=1e-6)
    np.testing.assert_array_equal(volume.numpy(), np.moveaxis(voxels, -1, 0))
    assert read_header(path).oriented


@pytest.mark.parametrize("world", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_nrrd_in_a_world_without_a_patient_is_a_doubt(tmp_path, world):
    path = nrrd(tmp_path / "a.nrrd", f"space: {world}", f"space directions: {vectors(DIRECTIONS)}")
    assert not read_header(path).oriented
    assert "does not say which way its axes run" in read_header(path).doubts[0]


def test_nrrd_with_sheared_axes_and_channels_first(tmp_path):
    matrix = np.array([[1, 0.5, 0], [0, 1, 0.25], [0, 0, 3]])
    voxels = np.stack([VOXELS, VOXELS + 1])
    path = nrrd(
        tmp_path / "a.nrrd",
        "space: RAS",
        f"space directions: none {vectors(matrix)}",
        "kinds: vector domain domain domain",
        voxels=voxels,
    )
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine.numpy(), affine(matrix, np.zeros(3)), atol=1e-6)
    np.testing.assert_array_equal(volume.numpy(), voxels)


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("cm", 10), ("um", 1e-3), ("Millimeters", 1), ("metre", None)])
def test_units_become_millimetres(tmp_path, unit, mm):
    lines = ("space: RAS", f"space directions: {vectors(DIRECTIONS)}", "space origin: (10,20,30)")
    for path, to_ras in (
        (nrrd(tmp_path / "a.nrrd", *lines, f'space units: "{unit}" "{unit}" "{unit}"'), (1, 1, 1)),
        (metaimage(tmp_path / "a.mha", f"DistanceUnits = {unit}"), (-1, -1, 1)),
    ):
        header = read_header(path)
        expected = affine(DIRECTIONS * (mm or 1), ORIGIN * (mm or 1), to_ras)
        np.testing.assert_allclose(header.affine, expected, atol=1e-6)
        assert [doubt for doubt in header.doubts if "is not known: mm is taken" in doubt] == list(
            header.doubts if mm is None else ()
        )
        assert bool(header.doubts) == (mm is None)


def test_axes_of_different_units_are_refused(tmp_path):
    lines = ("space: RAS", f"space directions: {vectors(DIRECTIONS)}")
    path = nrrd(tmp_path / "a.nrrd", *lines, 'space units: "mm" "mm" "cm"')
    with pytest.raises(DataError, match="its axes have different units of length, mm, mm, cm"):
        read_header(path)

"""Landmark files: the points, and the space that each kind of file states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from usreg.errors import DataError
from usreg.io import read_landmarks
from usreg.io.landmark_details import read_details
from usreg.io.landmark_writing import write_landmarks
from usreg.spatial import Grid

POINTS = [[1.0, 2.0, 3.0], [4.5, 5.0, 6.0]]
ROWS = "1,2,3\n4.5,5,6\n"
IMAGE = Grid((40, 50, 60), np.array([[0.5, 0, 0, -3], [0, 0, 2, 4], [0, 1, 0, 5], [0, 0, 0, 1.0]]))
TAG = "MNI Tag Point File\nVolumes = {};\n% Case 1\n\nPoints =\n{};"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def markups(**keys: object) -> str:
    points = [{"id": "1", "label": "F-1", "position": POINTS[0]}, {"position": POINTS[1], "positionStatus": "defined"}]
    return json.dumps({"markups": [{"type": "Fiducial", "controlPoints": points, **keys}]})


def fcsv(system: str) -> str:
    rows = "".join(f"{n},{x},{y},{z},0,0,0,1,1,1,0,F,,\n" for n, (x, y, z) in enumerate(POINTS))
    columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
    return f"# Markups fiducial file version = 4.11\n{system}{columns}\n{rows}"


@pytest.mark.parametrize(
    ("name", "text", "space"),
    [
        ("p.csv", ROWS, None),
        ("p.csv", "x,y,z\n" + ROWS, None),
        ("p.csv", "x_mm,y_mm,z_mm\n" + ROWS, "mm"),
        ("p.csv", "x (mm);y (mm);z (mm)\n1;2;3\n4,5;5;6\n", "mm"),
        ("p.csv", "R,A,S\n" + ROWS, "ras"),
        ("p.csv", "l,p,s\n" + ROWS, "lps"),
        ("p.csv", "x_ras,y_ras,z_ras\n" + ROWS, "ras"),
        ("p.csv", "# RAS\nx_mm,y_mm,z_mm\n" + ROWS, "ras"),
        ("p.csv", "i,j,k\n" + ROWS, "voxel"),
        ("p.csv", "x [voxel],y [voxel],z [voxel]\n" + ROWS, "voxel"),
        ("p.csv", "z,y,name,x\n3,2,apex,1\n6,5,base,4.5\n", None),
        ("p.csv", "x,y,z,t,label,comment\n1,2,3,0,1,a\n4.5,5,6,0,2,b\n", "lps"),
        ("p.csv", "x,y,z,t\n1,2,3,0\n4.5,5,6,0\n", "lps"),
        ("p.txt", "1 2 3\n4.5 5 6\n", None),
        ("p.txt", "# x y z, LPS in mm\n1 2 3\n4.5 5 6\n", "lps"),
        ("p.txt", "\ufeffx y z\n1 2 3\n4.5 5 6\n", None),
        ("p.txt", "x (mm) y (mm) z (mm)\n1 2 3\n4.5 5 6\n", "mm"),
        ("p.txt", "point\n2\n1 2 3\n4.5 5 6\n", "lps"),
        ("p.pts", "index\n2\n1 2 3\n4.5 5 6\n", "voxel"),
        ("p.fcsv", fcsv("# CoordinateSystem = LPS\n"), "lps"),
        ("p.fcsv", fcsv("# CoordinateSystem = 0\n"), "ras"),
        ("p.fcsv", fcsv(""), None),
        ("p.mrk.json", markups(coordinateSystem="LPS", coordinateUnits="mm"), "lps"),
        ("p.mrk.json", markups(coordinateSystem="RAS", coordinateUnits=["mm", "Length"]), "ras"),
        ("p.mrk.json", markups(), None),
        ("p.tag", TAG.format(1, '\n 1 2 3 ""\n 4.5 5 6 1 1 1 "base 1"'), "ras"),
    ],
)
def test_points_and_the_space_that_a_file_states(tmp_path, name, text, space):
    landmarks = read_landmarks(write(tmp_path, name, text))
    np.testing.assert_array_equal(landmarks.points, POINTS)
    assert landmarks.space == space


def test_tag_file_of_two_volumes(tmp_path):
    path = write(tmp_path, "p.tag", TAG.format(2, '\n 1 2 3 10 20 30 "a"\n 4.5 5 6 40 50 60 "b"'))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "p.tag#1").points, POINTS)
    np.testing.assert_array_equal(read_landmarks(tmp_path / "p.tag#2").points, [[10, 20, 30], [40, 50, 60]])
    with pytest.raises(DataError, match=r"points of two volumes; name one of them as p.tag#1 or p.tag#2"):
        read_landmarks(path)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.csv", "a,b,c\n" + ROWS, "its header, a, b, c, names no columns of points"),
        ("p.csv", "apex,1,2,3\nbase,4,5,6\n", "names no columns"),
        ("p.csv", "x_cm,y_cm,z_cm\n" + ROWS, "names no columns"),
        ("p.csv", "x_mm,y_mm,z\n" + ROWS, "names no columns"),
        ("p.csv", "x,y,z,i,j,k\n1,2,3,4,5,6\n", "several sets"),
        ("p.csv", "R_lps,A_lps,S_lps\n" + ROWS, "contradicts itself: lps and ras"),
        ("p.csv", "# LPS\nR,A,S\n" + ROWS, "says ras, and its comment lps"),
        ("p.csv", "x,y,z\n1,2,3\n4,5\n", "row 3 is shorter"),
        ("p.txt", "# in cm\n1 2 3\n", "names the unit cm"),
        ("p.txt", "# RAS or LPS\n1 2 3\n", "contradicts itself"),
        ("p.txt", "point\n1\n1 2 3\n4 5 6\n", "must be the number of its points, 2, not 1"),
        ("p.txt", "point\n2\n1 2\n4 5\n", "rows of three numbers"),
        ("p.fcsv", fcsv("# CoordinateSystem = XYZ\n"), "its coordinate system is 'XYZ'"),
        ("p.mrk.json", "[]", "no markups file"),
        ("p.mrk.json", "{", "cannot be read"),
        ("p.mrk.json", json.dumps({"markups": []}), "holds 0 lists of points"),
        ("p.mrk.json", markups(coordinateUnits="m"), "coordinateUnits are 'm'"),
        ("p.mrk.json", markups().replace('"defined"', '"undefined"'), "point 1 has no position"),
        ("p.tag", "Points =\n 1 2 3;", "first line must be"),
        ("p.tag", "MNI Tag Point File\nPoints =\n 1 2 3;", "header is not understood"),
        ("p.tag#2", TAG.format(1, " 1 2 3"), "#2 names none"),
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path, name, text, problem):
    write(tmp_path, name.partition("#")[0], text)
    with pytest.raises(DataError, match=problem) as caught:
        read_landmarks(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("space", ["lps", "ras", "voxel"])
def test_points_go_to_the_world_through_their_image(space):
    """SimpleITK says where a voxel is in LPS."""
    image = sitk.Image(*IMAGE.size, sitk.sitkUInt8)
    image.SetSpacing(IMAGE.spacing.tolist())
    image.SetDirection((np.diag([-1, -1, 1]) @ IMAGE.affine[:3, :3] / IMAGE.spacing).flatten().tolist())
    image.SetOrigin((IMAGE.affine[:3, 3] * [-1, -1, 1]).tolist())
    place = np.array([image.TransformContinuousIndexToPhysicalPoint(point) for point in POINTS])
    given = {"lps": place, "ras": place * [-1, -1, 1], "voxel": POINTS}[space]
    world = read_landmarks(given).to_world(IMAGE, space)
    np.testing.assert_allclose(world, IMAGE.to_world(POINTS), atol=1e-9)


def test_a_file_that_states_its_space_is_believed(tmp_path):
    stated = read_landmarks(write(tmp_path, "p.csv", "R,A,S\n" + ROWS))
    millimetres = read_landmarks(write(tmp_path, "q.csv", "x_mm,y_mm,z_mm\n" + ROWS))
    assert [stated.settled_space(space) for space in (None, "ras")] == ["ras", "ras"]
    assert [millimetres.settled_space(space) for space in (None, "lps", "ras")] == ["lps", "lps", "ras"]
    assert read_landmarks(POINTS).settled_space(None) == "lps"
    with pytest.raises(DataError, match=r"p.csv: the file says that its points are in mm, RAS, and .* 'lps'"):
        stated.to_world(IMAGE, "lps")
    with pytest.raises(DataError, match=r"q.csv: the file says that its points are in mm, and .* 'voxel'"):
        millimetres.to_world(IMAGE, "voxel")


DETAILS = {"label": ["left, front", 'a "tip"'], "desc": ["", "sure"], "weight": ["0.5", "2"]}


@pytest.mark.parametrize(
    ("suffix", "kept"),
    [
        (".csv", DETAILS),
        (".fcsv", {name: DETAILS[name] for name in ("label", "desc")}),
        (".mrk.json", {name: DETAILS[name] for name in ("label", "desc")}),
        (".tag", {"label": ["left, front", "a 'tip'"]}),
        (".txt", {}),
        (".npy", {}),
    ],
)
def test_names_and_columns_stay_where_the_format_holds_them(
    suffix: str, kept: dict[str, list[str]], tmp_path: Path
) -> None:
    points = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]])
    path = tmp_path / f"points{suffix}"
    write_landmarks(path, points, "ras", details=DETAILS)
    found = read_details(path)
    assert {name: found[name] for name in kept} == kept
    assert found.keys() - kept.keys() <= {"id", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "associatedNodeID"}
    again = tmp_path / f"again{suffix}"
    write_landmarks(again, points, "ras", details=found)
    assert again.read_bytes() == path.read_bytes()
    grid = Grid((1, 1, 1), np.eye(4))
    np.testing.assert_allclose(read_landmarks(again).to_world(grid, None if suffix != ".npy" else "ras"), points)


def test_columns_of_ants_stay_and_names_are_found_under_other_titles(tmp_path: Path) -> None:
    source, target = tmp_path / "source.csv", tmp_path / "target.csv"
    source.write_text("x,y,z,t,Name,comment\n1,2,3,0,one,\n4,5,6,0,two,far\n")
    details = read_details(source)
    assert details == {"t": ["0", "0"], "label": ["one", "two"], "comment": ["", "far"]}
    write_landmarks(target, np.array([[-1.0, -2.0, 3.0], [-4.0, -5.0, 6.0]]), "lps", details=details)
    assert target.read_text() == "x,y,z,t,label,comment\n1,2,3,0,one,\n4,5,6,0,two,far\n"
    assert read_landmarks(target).space == "lps"
    source.write_text("1,2,3\n4,5,6\n")
    assert read_details(source) == {}

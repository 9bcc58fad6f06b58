"""Pictures of a pair: what is where in the patient is where radiologists expect it, in the right proportions."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
import torch

from usreg.spatial import DisplacementField, Grid
from usreg.viz.pair_pictures import (
    PairVolumes,
    draw_before_after,
    draw_checkerboards,
    draw_deformation,
    draw_losses,
)
from usreg.viz.planes import Viewer

AFFINES = {
    "RAS": np.diag([2.0, 3.0, 4.0, 1.0]),
    "LPS": np.diag([-2.0, -3.0, 4.0, 1.0]),
    "PSR": np.array([[0.0, 0, 2, 0], [-3, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_slices_have_the_patients_right_on_the_left(affine: np.ndarray) -> None:
    """A mark right, anterior and superior of the middle is at the top left; sagittal slices look to the left."""
    grid = Grid((9, 11, 13), affine)
    mm = (2.0, 3.0, 4.0)
    view = Viewer(grid)
    for plane in view.planes:
        across = "zyx".index({"axial": "z", "coronal": "y", "sagittal": "x"}[plane.name])
        step = np.array(mm)
        step[2 - across] = 0
        volume = np.zeros(grid.size)
        volume[tuple(np.round(grid.to_voxels([grid.centre + step])[0]).astype(int))] = 1
        cut = view.slice(volume, plane)
        row, column = (int(i[0]) for i in np.nonzero(cut))
        assert (row, column) == ((cut.shape[0] - 1) // 2 - 1, (cut.shape[1] - 1) // 2 - 1)
        height, width = {"axial": (3, 2), "coronal": (4, 2), "sagittal": (4, 3)}[plane.name]
        assert view.aspect(plane) == pytest.approx(height / width)
    assert [view.title(plane).split()[0] for plane in view.planes] == ["axial", "coronal", "sagittal"]


def test_titles_say_where_a_slice_is() -> None:
    grid = Grid((9, 11, 13), np.diag([-2.0, 3.0, 4.0, 1.0]))
    view = Viewer(grid, (1, 2, 3))
    assert [view.title(plane).split("\n")[1] for plane in view.planes] == ["z = 12 mm", "y = 6 mm", "x = -2 mm"]


@pytest.fixture(params=[(14, 12, 10), (14, 12, 1)], ids=["volume", "slice"])
def volumes(request: pytest.FixtureRequest) -> PairVolumes:
    size = request.param
    generator = torch.Generator().manual_seed(0)
    fixed, moving = (torch.rand(size, generator=generator).numpy() for _ in range(2))
    label = np.zeros(size, np.int32)
    label[4:8, 3:9] = 2
    label[0:2] = 7  # at the edge of the image
    field = DisplacementField(Grid(size, np.diag([-1.0, 1.5, 2.0, 1.0])), torch.randn(3, *size, generator=generator))
    jacobian = torch.randn(size, generator=generator).numpy() + 1
    return PairVolumes(field.grid, fixed, moving, fixed, label, label[::-1], label, field, jacobian)


def pixels(png: bytes) -> np.ndarray:
    import io

    return matplotlib.image.imread(io.BytesIO(png))


def test_pictures_of_a_pair(volumes: PairVolumes) -> None:
    heights = []
    for png in (draw_before_after(volumes), draw_checkerboards(volumes), draw_deformation(volumes)):
        picture = pixels(png)
        heights.append(picture.shape[0])
        assert np.unique(picture.reshape(-1, 4), axis=0).shape[0] > 50
    assert len(volumes.viewer().planes) == (1 if volumes.grid.size[2] == 1 else 3)


def test_pictures_without_labels_and_field(volumes: PairVolumes) -> None:
    bare = PairVolumes(volumes.grid, volumes.fixed, volumes.before, np.zeros_like(volumes.warped))
    assert pixels(draw_before_after(bare)).std() > 0
    assert pixels(draw_checkerboards(bare)).std() > 0


def test_losses() -> None:
    assert pixels(draw_losses([("affine", [[3.0, 2.0], []]), ("greedy", [[1.0], [0.5, 0.2]])])).std() > 0


def test_slices_go_through_the_labels(volumes: PairVolumes) -> None:
    label = np.zeros(volumes.grid.size, np.int32)
    label[1:4, 8:11] = 1
    view = PairVolumes(volumes.grid, volumes.fixed, volumes.before, volumes.warped, label).viewer()
    at = view.grid.to_world([view.at])
    np.testing.assert_allclose(volumes.grid.to_voxels(at)[0][:2], (2, 9), atol=1e-6)

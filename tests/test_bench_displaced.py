"""The starts of the registrations from displaced positions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import displaced, similarity_pictures
from bench.displaced import BLOCK, LARGEST, PAGE, ROWS, SMALLEST, STAGE, block, displacements, tre
from bench.lc2 import LC2Loss
from bench.report import fill
from usreg.registration.stages.settings import load_stages
from usreg_kernels import gaussian_smooth


def test_displacements_are_rigid_seeded_and_as_large_as_said() -> None:
    points = np.random.default_rng(1).normal(scale=12.0, size=(15, 3)) + np.array([40.0, 10.0, -3.0])
    starts = displacements(5, 0, points)
    distances = [tre(start, points, points) for start in starts]
    np.testing.assert_allclose(distances, np.linspace(SMALLEST, LARGEST, 5), rtol=1e-9)
    for start, again, other in zip(starts, displacements(5, 0, points), displacements(5, 1, points), strict=True):
        turn = start.matrix[:3, :3]
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) > 0
        np.testing.assert_array_equal(start.matrix, again.matrix)
        assert not np.allclose(start.matrix, other.matrix)


def test_every_row_makes_a_stage() -> None:
    for row, (loss, *settings) in ROWS.items():
        config, (stage,) = load_stages(None, [STAGE.format(loss=loss), *settings])
        assert row.lower().startswith(stage.loss["name"])
        assert (config.fixed_empty == 0) == ("mask" in row)
        assert stage.mask_margin == ("margin" in row)


def test_the_table_has_a_row_per_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    points = np.random.default_rng(1).normal(scale=12.0, size=(15, 3))
    monkeypatch.setattr(displaced, "landmarks", lambda folder: (points, points))
    halfway = {"lncc": lambda starts: starts, "mind": lambda starts: [starts[0]] * len(starts)}
    monkeypatch.setattr(displaced, "with_usreg", lambda folder, starts, row: halfway[row](starts))
    out = tmp_path / "results.json"
    displaced.main(["nowhere", "--count", "4", "--rows", "lncc", "--out", str(out)])
    capsys.readouterr()
    displaced.main(["nowhere", "--count", "4", "--rows", "mind", "--out", str(out)])
    headers, *lines = capsys.readouterr().out.splitlines()
    assert headers == "headers: 0.00 mm; starts: 5.00 mm"
    assert lines[2] == "| mind | 2.00 | 2.00 | 2.00 | 3 of 4 | 4 of 4 | 2.00 |"
    assert lines[3] == "| lncc | 5.00 | 5.00 | 8.00 | 0 of 4 | 1 of 4 | 2.00 |"
    with pytest.raises(SystemExit, match="is of other starts: 4 of seed 0"):
        displaced.main(["nowhere", "--count", "5", "--rows", "mind", "--out", str(out)])


def test_published_registrations_are_those_of_committed_results() -> None:
    text = PAGE.read_text()
    (source,) = re.findall(r"\(\[all registrations\]\(([^)]+)\)\)", text)
    assert fill(text, {BLOCK: block((PAGE.parent / source).resolve())}) == text


def test_lc2_is_1_where_the_image_and_its_edges_explain_the_ultrasound() -> None:
    image = gaussian_smooth(torch.rand(1, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0)), 1.5)
    image = (image - image.min()) / (image.max() - image.min())
    edges = sum(step.square() for step in torch.gradient(image, dim=(2, 3, 4))).sqrt()
    loss = LC2Loss()
    assert loss(image, 0.2 - 0.5 * image + 3 * edges) < -0.97
    assert loss(image, image.flip(2)) > -0.7


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    path = similarity_pictures.draw(tmp_path / "picture.png")
    assert 10_000 < path.stat().st_size < 200_000

"""The starts of the registrations from displaced positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import displaced
from bench.displaced import LARGEST, LOSSES, SMALLEST, STAGE, displacements, tre
from usreg.registration.stages import load_stages


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


def test_every_loss_makes_a_stage() -> None:
    for name, loss in LOSSES.items():
        (stage,) = load_stages(None, [STAGE.format(loss=loss)])[1]
        assert stage.loss["name"] == name


def test_the_table_has_a_row_per_loss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    points = np.random.default_rng(1).normal(scale=12.0, size=(15, 3))
    monkeypatch.setattr(displaced, "landmarks", lambda folder: (points, points))
    halfway = {"lncc": lambda starts: starts, "mutual_information": lambda starts: [starts[0]] * len(starts)}
    monkeypatch.setattr(displaced, "with_usreg", lambda folder, starts, loss: halfway[loss](starts))
    displaced.main([str(Path("nowhere")), "--count", "4"])
    headers, *lines = capsys.readouterr().out.splitlines()
    assert headers == "headers: 0.00 mm; starts: 5.00 mm"
    assert lines[2] == "| lncc | 5.00 | 5.00 | 8.00 | 0 of 4 | 1 of 4 |"
    assert lines[3] == "| mutual_information | 2.00 | 2.00 | 2.00 | 3 of 4 | 4 of 4 |"

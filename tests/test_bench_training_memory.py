"""The table of memory and seconds of a training step: its numbers, its limits, and what is published of them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import training_memory
from bench.report import fill
from bench.training_memory import BLOCK, PAGE, Entry, Key, Limits, block, load, measure, measure_all, measured, table

SMALL, MIDDLE, LARGE = training_memory.SIZES
LIMITS = Limits(20e9, 60.0)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the size of another process is read from /proc")


def entry(model: str = "unetreg3d", size: tuple[int, int, int] = SMALL, way: str = "float32", **other: object) -> Entry:
    """One of this machine, complete unless ``other`` says something else."""
    here = training_memory._entry_here((model, size, way), "cpu", 1_500_000_000, 2.5)
    return replace(here, **other)  # type: ignore[arg-type]


def test_the_published_table_is_that_of_the_committed_results() -> None:
    page = PAGE.read_text()
    assert fill(page, {BLOCK: block("cpu")}) == page
    assert "| `localnet3d` | 96 x 96 x 96 |" in page


def test_a_row_per_model_and_size_and_a_column_per_way() -> None:
    entries = [
        entry("voxelmorph3d half_res"),
        entry("voxelmorph3d half_res", way="both", bytes=None, seconds=None, reason="over 20 GB"),
        entry("globalnet3d", bytes=250_000_000, seconds=0.123),
        entry("globalnet3d", LARGE, bytes=2_000_000_000, seconds=None, reason="over 60 s"),
        entry("globalnet3d", LARGE, way="both", seconds=None),
    ]
    assert table(entries).splitlines() == [
        "| model | size | float32 | both |",
        "|---|---|---:|---:|",
        "| `globalnet3d` | 96 x 96 x 96 | 0.25 GB, 0.12 s |  |",
        "| `globalnet3d` | 160 x 192 x 224 | 2.00 GB, over 60 s | 1.50 GB |",
        "| `voxelmorph3d` with `half_res` | 96 x 96 x 96 | 1.50 GB, 2.5 s | over 20 GB |",
    ]


def test_a_step_of_a_small_image_is_measured() -> None:
    told: list[Entry] = []
    found = measure("unetreg3d", (32, 32, 32), "both", "cpu", told.append)
    assert (found.model, found.way, found.reason) == ("unetreg3d", "both", "")
    assert found.bytes is None or found.bytes > 32**3 * 4
    assert found.seconds is not None
    assert found.seconds > 0
    assert [one.seconds is None for one in told[:3]] == [True, True, False]
    assert told[0].bytes is None
    assert told[-1] == found


@ON_LINUX
@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(1e5, 60.0), "over 0 GB"), (Limits(20e9, 0.0), "over 0 s")],
    ids=["memory", "time"],
)
def test_a_row_beyond_a_limit_is_ended(limits: Limits, reason: str) -> None:
    found = measured(("unetreg3d", (48, 48, 48), "float32"), "cpu", limits)
    assert (found.reason, found.seconds) == (reason, None)


class Measured:
    """In place of :func:`measured`: entries without measuring, and the rows that were asked for."""

    def __init__(self, **numbers: object) -> None:
        self.numbers = numbers
        self.rows: list[Key] = []

    def __call__(self, key: Key, device: str, limits: Limits) -> Entry:
        self.rows.append(key)
        return entry(*key, **self.numbers)


def test_rows_of_this_machine_are_kept_and_others_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_memory, "measured", fake := Measured())
    file = tmp_path / "results.jsonl"
    training_memory.save(
        file,
        [
            entry(bytes=1),
            entry("localnet3d", where="another processor"),
            entry("transmorph3d", seconds=None),  # of a time when seconds were not measured
            entry("globalnet3d", LARGE, seconds=None, reason="over 60 s"),
        ],
    )
    wanted: list[Key] = [(name, SMALL, "float32") for name in ("transmorph3d", "localnet3d", "unetreg3d")]
    assert measure_all([*wanted, ("globalnet3d", LARGE, "float32")], file, "cpu", LIMITS) == []
    assert fake.rows == wanted[:2]
    assert [(one.model, one.bytes) for one in load(file)] == [
        ("globalnet3d", 1_500_000_000),
        ("localnet3d", 1_500_000_000),
        ("unetreg3d", 1),
        ("transmorph3d", 1_500_000_000),
    ]


def test_what_does_not_fit_is_not_tried_at_larger_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_memory, "measured", fake := Measured(bytes=None, seconds=None, reason="over 20 GB"))
    file = tmp_path / "results.jsonl"
    wanted: list[Key] = [("transmorph3d", size, "float32") for size in (MIDDLE, LARGE)]
    assert measure_all(wanted, file, "cpu", LIMITS) == []
    assert fake.rows == wanted[:1]
    assert [one.reason for one in load(file)] == ["over 20 GB"] * 2


def test_rows_that_no_time_is_left_for_are_not_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_memory, "measured", fake := Measured(bytes=None, seconds=None, reason="over 1 s"))
    file = tmp_path / "results.jsonl"
    wanted: list[Key] = [("transmorph3d", SMALL, "float32")]
    assert measure_all(wanted, file, "cpu", LIMITS, minutes=0.0) == wanted
    assert fake.rows == []
    assert measure_all(wanted, file, "cpu", LIMITS, minutes=0.5) == wanted  # the end of the whole came first
    assert fake.rows == wanted
    assert load(file) == []

"""The table of the memory of a training step: its numbers, and what is published of them."""

from __future__ import annotations

from bench.report import fill
from bench.training_memory import BLOCK, PAGE, Entry, block, measure, table


def test_the_published_table_is_that_of_the_committed_results() -> None:
    page = PAGE.read_text()
    assert fill(page, {BLOCK: block("cpu")}) == page
    assert "| `localnet3d` | 96 x 96 x 96 |" in page


def test_a_row_per_model_and_size_and_a_column_per_way() -> None:
    size = (96, 96, 96)
    entries = [
        Entry("voxelmorph3d half_res", size, "float32", 1_500_000_000, "a CPU"),
        Entry("voxelmorph3d half_res", size, "both", None, ""),
        Entry("globalnet3d", size, "float32", 250_000_000, "a CPU"),
    ]
    assert table(entries).splitlines() == [
        "| model | size | float32 | both |",
        "|---|---|---:|---:|",
        "| `globalnet3d` | 96 x 96 x 96 | 0.25 |  |",
        "| `voxelmorph3d` with `half_res` | 96 x 96 x 96 | 1.50 | does not fit |",
    ]


def test_a_step_of_a_small_image_is_measured() -> None:
    entry = measure("unetreg3d", (32, 32, 32), "both", "cpu")
    assert (entry.model, entry.way) == ("unetreg3d", "both")
    assert entry.bytes is None or entry.bytes > 32**3 * 4

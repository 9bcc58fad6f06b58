"""metrics.csv, and the names of run folders."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from usreg.errors import DataError, UsageError
from usreg.training.checkpoints import Resume
from usreg.training.console import duration
from usreg.training.metrics_file import MetricsFile
from usreg.training.run_folder import continues_in_place, make_run_folder, project_folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_may_appear_late_and_absent_values_are_empty(tmp_path):
    table = MetricsFile(tmp_path / "metrics.csv")
    table.add({"epoch": 1, "train_loss": 0.5})
    table.add({"epoch": 2, "train_loss": None, "epe": 0.25})
    assert read(table.path) == [
        {"epoch": "1", "train_loss": "0.5", "epe": ""},
        {"epoch": "2", "train_loss": "", "epe": "0.25"},
    ]


def test_a_resumed_run_keeps_the_complete_epochs(tmp_path):
    table = MetricsFile(tmp_path / "metrics.csv")
    for epoch in (1, 2, 3):
        table.add({"epoch": epoch})
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.take_over(table.path, before_epoch=2)
    resumed.add({"epoch": 3, "train_loss": 0.5})
    assert [row["epoch"] for row in read(table.path)] == ["1", "2", "3"]
    assert read(table.path)[2]["train_loss"] == "0.5"
    resumed.take_over(tmp_path / "absent.csv", before_epoch=2)


def test_another_table_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="epoch"):
        MetricsFile(tmp_path / "new.csv").take_over(tmp_path / "metrics.csv", before_epoch=1)


def test_a_taken_folder_gets_a_number(tmp_path):
    wanted = tmp_path / "a" / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert make_run_folder(str(wanted), None) == wanted
    assert make_run_folder(str(empty), None) == empty
    assert make_run_folder(str(wanted), None) == tmp_path / "a" / "run-2"


def test_programs_that_start_together_get_folders_of_their_own(tmp_path):
    """Threads stand for programs: the file system decides between them in the same way."""
    for number in range(20):
        (tmp_path / f"{number}").mkdir(exist_ok=True)  # of some the folder exists, and is empty
        wanted = [str(tmp_path / f"{number if number % 2 else number + 100}")] * 4
        with ThreadPoolExecutor(4) as pool:
            folders = list(pool.map(lambda name: make_run_folder(name, None), wanted))
        assert len(set(folders)) == 4


def test_unwritable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"training\.save_dir"):
        make_run_folder(str(tmp_path / "file" / "run"), None)


@pytest.mark.parametrize(
    ("project", "name"), [(None, "default"), ("a b/../c", "a_b_.._c"), ("..", "default"), ("prostate-2", "prostate-2")]
)
def test_project_folder(project, name):
    assert project_folder(project) == Path("runs") / name


@pytest.mark.parametrize(
    ("path", "save_dir", "in_place"),
    [
        ("run/last.pt", None, True),
        ("run/last.pt", "run", True),
        ("run/last.pt", "elsewhere", False),
        ("run/best_epe.pt", None, False),
    ],
)
def test_only_the_last_checkpoint_is_continued_in_place(path, save_dir, in_place):
    assert continues_in_place(Resume(Path(path), {}), save_dir) is in_place


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (123, "2:03"), (3605, "1:00:05")])
def test_duration(seconds, text):
    assert duration(seconds) == text

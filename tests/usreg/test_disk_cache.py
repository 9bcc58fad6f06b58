"""``cache_dir`` of ``custom_dataset``: the same samples from disk, and never those of other files or options."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from usreg.datasets import build_dataset, collate, custom, disk_cache
from usreg.datasets.custom import CustomDataset
from usreg.datasets.disk_cache import DiskCache, Prepared
from usreg.errors import ConfigError
from usreg.io.manifest import Case

SIZE = (6, 7, 8)


def save(path: Path, voxels: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.5, 2.0, 1.0])), path)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    cases = []
    for number in range(2):
        case: dict[str, Any] = {"subject_id": f"s{number}", "site": "A"}
        for side in ("moving", "fixed"):
            case[side] = f"{side}{number}.nii"
            save(tmp_path / case[side], rng.random((9, 8, 7), np.float32))
            case[f"{side}_label"] = f"{side}_label{number}.nii"
            save(tmp_path / case[f"{side}_label"], rng.integers(0, 3, (9, 8, 7)).astype(np.uint8))
            case[f"{side}_landmarks"] = [[1.0, 2.0, 3.0 + number]]
        cases.append(case)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"train": cases}))
    return path


def dataset(manifest: Path, cached: bool = True, **keys: Any) -> CustomDataset:
    if cached:
        keys["cache_dir"] = str(manifest.parent / "cache")
    section = {"name": "custom_dataset", "json_file": str(manifest), "image_size": SIZE, "landmarks_space": "voxel"}
    return build_dataset(section | keys, split="train", image_size=SIZE)  # type: ignore[return-value]


def assert_equal(one: CustomDataset, other: CustomDataset) -> None:
    assert len(one) == len(other)
    for number in range(len(one)):
        first, second = one[number], other[number]
        assert first.keys() == second.keys()
        for key, value in first.items():
            same = torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
            assert same, key


def entries(manifest: Path) -> list[Path]:
    return sorted((manifest.parent / "cache").iterdir())


def test_serves_a_second_run_without_reading(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataset(manifest, cached=False)
    assert_equal(dataset(manifest), plain)
    assert len(entries(manifest)) == 2
    monkeypatch.setattr(CustomDataset, "_load", lambda *_: pytest.fail("a file was read"))
    assert_equal(dataset(manifest), plain)


@pytest.mark.parametrize(
    "keys",
    [
        {"image_size": (8, 7, 6)},
        {"orientation": "LPS"},
        {"spacing": (1.0, 1.0, 1.0)},
        {"align_shared_grid": True},
        {"align_shared_grid": True, "align_margin_mm": 0.0, "align_reference": "fixed_label"},
        {"normalize_intensity": False},
        {"quantile_range": (0.1, 0.9)},
        {"default_is_ct": True, "ct_window": (0.0, 1.0)},
        {"landmarks_space": "ras"},
        {"labels": [2]},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_another_option_is_another_entry(manifest: Path, keys: dict[str, Any]) -> None:
    first = dataset(manifest)
    changed = dataset(manifest, **keys)
    assert_equal(changed, dataset(manifest, cached=False, **keys))
    assert_equal(dataset(manifest), first)
    assert len(entries(manifest)) == 4


@pytest.mark.parametrize("name", ["moving0.nii", "fixed_label1.nii"])
def test_a_changed_file_is_read_again_even_if_its_time_is_kept(manifest: Path, name: str) -> None:
    dataset(manifest)
    path = manifest.parent / name
    before = path.stat()
    voxels = np.asarray(nibabel.load(path).dataobj)[::-1].copy()
    save(path, voxels)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert_equal(dataset(manifest), dataset(manifest, cached=False))
    assert len(entries(manifest)) == 3


def test_a_case_that_changes_in_the_manifest_is_another_one(manifest: Path) -> None:
    dataset(manifest, ct_window=(0.0, 0.8))
    content = json.loads(manifest.read_text())
    content["train"][0]["moving_landmarks"] = [[4.0, 4.0, 4.0]]
    content["train"][1]["fixed_modality"] = "CT"
    manifest.write_text(json.dumps(content))
    assert_equal(dataset(manifest, ct_window=(0.0, 0.8)), dataset(manifest, cached=False, ct_window=(0.0, 0.8)))
    assert len(entries(manifest)) == 4


def test_other_code_is_another_entry(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(manifest)
    monkeypatch.setattr(disk_cache, "_code", lambda: "another version")
    dataset(manifest)
    assert len(entries(manifest)) == 4


def test_a_file_that_changes_while_it_is_read_is_not_kept(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = CustomDataset._load

    def slow(self: CustomDataset, case: Case) -> Prepared:
        found = load(self, case)
        if case.name == "s0":
            os.utime(case.files["moving"])
        return found

    monkeypatch.setattr(CustomDataset, "_load", slow)
    dataset(manifest)
    assert len(entries(manifest)) == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_entry_is_made_again(manifest: Path, damage: str) -> None:
    dataset(manifest)
    path = entries(manifest)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-9], "bit": content, "empty": b""}[damage])
    assert_equal(dataset(manifest), dataset(manifest, cached=False))
    assert disk_cache._read(path) is not None


def test_warnings_about_voxels_are_said_by_every_run(manifest: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        dataset(manifest, labels=[1, 7], image_size=(2, 2, 2))
        dataset(manifest, labels=[7])
        assert sum("holds none of the labels [7]" in record.getMessage() for record in caplog.records) == 4


def test_workers_share_it(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "_CACHE_BYTES", 0)
    plain = dataset(manifest, cached=False)
    cached = dataset(manifest)
    for path in entries(manifest):
        path.unlink()
    loader = DataLoader(cached, sampler=[0, 1, 0, 1, 1, 0], num_workers=2, collate_fn=collate)
    for number, batch in zip([0, 1, 0, 1, 1, 0], loader, strict=True):
        assert torch.equal(batch["moving"][0], plain[number]["moving"])
    assert len(entries(manifest)) == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test kills a forked process, and Windows has no fork")
def test_killed_processes_leave_no_half_of_an_entry(tmp_path: Path) -> None:
    case = Case("train[0]", "a", {}, {}, None, {})
    whole = Prepared({"moving": torch.rand(1, 32, 32, 32)}, ["a remark"])
    rng = random.Random(0)
    for _ in range(20):
        cache = DiskCache(tmp_path, "options")
        child = os.fork()
        if not child:
            while True:
                cache._write(cache._path(case), whole)
        time.sleep(rng.uniform(0.002, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = cache.get_or(case, lambda _: whole)
        assert torch.equal(found.sample["moving"], whole.sample["moving"])
        assert found.remarks == whole.remarks
    for left in tmp_path.glob(".new-*"):
        os.utime(left, (0, 0))
    DiskCache(tmp_path, "options")
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_a_full_disk_is_said_once_and_training_goes_on(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert_equal(dataset(manifest), dataset(manifest, cached=False))
    said = [record.getMessage() for record in caplog.records if "cache_dir" in record.getMessage()]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert not entries(manifest)


def test_a_folder_that_cannot_be_is_an_error(manifest: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache_dir .*manifest.json cannot be made: File exists"):
        dataset(manifest, cached=False, cache_dir=str(manifest))


def test_all_files_behind_a_path_count(tmp_path: Path) -> None:
    names = ["a.mhd", "a.raw", "b.mha", "c.hdr", "c.img", "d.tag", "d.nii.gz", "folder"]
    for name in names[:-1]:
        (tmp_path / name).touch()
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "b.mha").write_text("NDims = 3\nElementDataFile = LOCAL\n")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "slice").touch()

    def behind(name: str) -> set[str]:
        return {file.name for file in disk_cache._files(tmp_path / name)}

    assert behind("a.mhd") >= {"a.mhd", "a.raw"}
    assert behind("b.mha") == {"b.mha"}
    assert behind("c.hdr") == {"c.hdr", "c.img"}
    assert behind("d.tag#1") == {"d.tag"}
    assert behind("d.nii.gz") == {"d.nii.gz"}
    assert behind("folder") == {"slice"}

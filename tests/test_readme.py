"""What README and docs show must run: Python blocks as they stand, commands with the shortest possible training."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = ["training.max_steps=1", "train_dataset.num_samples=4", "val_dataset.num_samples=1", "training.num_workers=0"]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _python_blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, block in enumerate(_blocks(page, "python"), start=1):
            yield f"{page.name}-{number}", block


def _commands() -> list[str]:
    lines = [line for block in _blocks(PAGES[0], "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in _python_blocks()])
def test_python_blocks_run(block: str, tmp_path: Path) -> None:
    file = tmp_path / "block.py"
    file.write_text(block)
    subprocess.run([sys.executable, file], cwd=tmp_path, check=True)


def test_the_plugin_of_the_readme_trains_with_its_command(tmp_path: Path) -> None:
    (plugin,) = (block for block in _blocks(PAGES[0], "python") if block.startswith("# my_loss.py"))
    (tmp_path / "my_loss.py").write_text(plugin)
    (command,) = (line for line in _commands() if "plugins=" in line)
    _train(command, tmp_path)


def test_the_default_training_runs(tmp_path: Path) -> None:
    _train("python -m usreg.train", tmp_path)


def test_the_commands_for_manifests_run(tmp_path: Path) -> None:
    import nibabel
    import numpy as np

    for name in ("mr/1", "mr/2", "us/1", "us/2"):
        path = tmp_path / "data" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((4, 4, 4), np.float32), np.eye(4)), path)
    commands = [shlex.split(line)[1:] for line in _commands() if "usreg.manifest" in line]
    assert [words[2] for words in commands] == ["make", "check"]
    for words in commands:
        subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)


def test_the_registration_runs(tmp_path: Path) -> None:
    import nibabel
    import numpy as np
    from scipy.ndimage import gaussian_filter

    volume = gaussian_filter(np.random.default_rng(0).random((20, 22, 24)), 2).astype(np.float32)
    (tmp_path / "data").mkdir()
    for name, shift in (("fixed", 0.0), ("moving", 1.0)):
        affine = np.eye(4)
        affine[0, 3] = shift
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "data" / f"{name}.nii.gz")
    (command,) = (line for line in _commands() if "usreg.register --fixed" in line)
    short = ["stages[0].iterations=[5,5]", "stages[1].iterations=[5,5,5]"]
    subprocess.run([sys.executable, *shlex.split(command)[1:], *short], cwd=tmp_path, check=True)
    found = {path.name for path in (tmp_path / "registered").iterdir()}
    assert {"warped.nii.gz", "affine.mat", "field.nii.gz", "report.json"} <= found
    label = nibabel.Nifti1Image((volume > np.median(volume)).astype(np.uint8), np.eye(4))
    nibabel.save(label, tmp_path / "data" / "moving_label.nii.gz")
    (command,) = (line for line in _commands() if "usreg.apply" in line)
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=tmp_path, check=True)
    assert nibabel.load(tmp_path / "data" / "warped_label.nii.gz").get_data_dtype() == np.uint8


@pytest.mark.slow
def test_the_way_from_training_to_results_runs(tmp_path: Path) -> None:
    (train,) = (line for line in _commands() if "save_dir=runs/first" in line)
    (evaluate,) = (line for line in _commands() if "usreg.evaluate" in line)
    small = ["image_size=[16,16,16]", "model.channels=[4,8]", "model.strides=[2]"]
    for command, more in ((train, [*SHORT, *small]), (evaluate, [])):
        subprocess.run([sys.executable, *shlex.split(command)[1:], *more], cwd=tmp_path, check=True)
    found = {path.name for path in (tmp_path / "runs" / "first" / "evaluation").iterdir()}
    assert found == {"cases.csv", "summary.csv", "first"}


def test_the_demo_registers(tmp_path: Path) -> None:
    (command,) = (line for line in _commands() if "usreg.register --demo" in line)
    short = ["stages[0].iterations=[15,5]", "stages[1].iterations=[15,10,3]"]
    subprocess.run([sys.executable, *shlex.split(command)[1:], *short], cwd=tmp_path, check=True)
    found = {path.name for path in (tmp_path / "registered").iterdir()}
    assert {"report.html", "report.json", "warped.nii.gz", "warped_landmarks.csv", "pair"} <= found


def _train(command: str, folder: Path) -> None:
    arguments = shlex.split(command)[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments, *SHORT], cwd=folder, env=environment, check=True)
    (run,) = (folder / "runs").glob("*/*")
    assert {"last.pt", "config.yaml", "metrics.csv", "curves.png"} <= {file.name for file in run.iterdir()}


def test_every_command_of_the_readme_is_known() -> None:
    """The commands that the tests above do not run are these, and what they name exists."""
    makefile = (ROOT / "Makefile").read_text()
    for command in _commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:])
        elif words[:2] == ["python", "-m"]:
            commands = ("train", "evaluate", "register", "apply", "manifest")
            assert words[2] in ("usreg_kernels", *(f"usreg.{command}" for command in commands))
            if "--config" in words:
                assert (ROOT / words[words.index("--config") + 1]).is_file()
        else:
            assert words[:2] == ["pip", "install"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link

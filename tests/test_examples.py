"""The scripts of examples/ run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_register_pair(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "register_pair.py", tmp_path / "out", "--scale", "0.4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {words[0]: words[1:] for words in map(str.split, done.stdout.splitlines()) if words}
    assert float(rows["dice"][1]) > float(rows["dice"][0]) + 0.2
    assert float(rows["tre"][1]) < 0.5 * float(rows["tre"][0])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"before_after.png", "deformation.png"}


def test_every_example_is_tested() -> None:
    assert [path.name for path in EXAMPLES.glob("*.py")] == ["register_pair.py"]

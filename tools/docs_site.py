"""What the documentation's site takes from outside of ``docs/``; mkdocs calls these functions (``hooks``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository's root, and their names on the site."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, and the benchmark's results, which pages link to."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_from_root(text)))
    for results in (ROOT / "bench" / "results").glob("2*.json"):
        files.append(File.generated(config, f"results/{results.name}", abs_src_path=str(results)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave ``docs/`` to where these files lie on the site."""
    for name, target in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}")
    return markdown.replace("](../bench/results/", "](results/")


def _from_root(text: str) -> str:
    """The links of a page of the root, as seen from ``docs/``."""
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(r"\]\(docs/", "](", text)

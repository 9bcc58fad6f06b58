"""report.html: one file with pictures in it, for a browser without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
p, figcaption { color: #555; max-width: 50em; }
table { border-collapse: collapse; } th, td { padding: .25em .9em; text-align: left; border-bottom: 1px solid #ddd; }
th.number, td.number { text-align: right; } th, td:first-child { white-space: nowrap; }
figure { margin: 1em 0; } img { max-width: 100%; }
code, pre { background: #f5f5f5; padding: .1em .3em; } pre { padding: .8em; white-space: pre-wrap; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        title: heading above it.
        caption: a sentence on how to read it.
        png: the file's content.
    """

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Table:
    """A table of the page: cells of text.

    Attributes:
        title: heading above it.
        header: of the columns.
        rows: each as long as the header.
        words: the columns that hold words; numbers are aligned to the right.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)


def make_page(title: str, facts: Mapping[str, str], parts: Sequence[Table | Picture], command: str) -> str:
    """An HTML page that needs no other file.

    Args:
        title: of the page.
        facts: short lines below the title, by their names.
        parts: tables and pictures in their order.
        command: with which the page was made.
    """
    lines = [f"<b>{escape(name)}</b>: {escape(text)}" for name, text in facts.items()]
    body = "\n".join(_table(part) if isinstance(part, Table) else _picture(part) for part in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{"<br>".join(lines)}</p>
{body}
<h2>Command</h2>
<pre>{escape(command)}</pre>
</body>
</html>
"""


def _table(table: Table) -> str:
    tags = ["td" if column in table.words else 'td class="number"' for column in range(len(table.header))]
    lines = [_row([tag.replace("td", "th") for tag in tags], table.header)]
    lines += [_row(tags, row) for row in table.rows]
    return f"<h2>{escape(table.title)}</h2>\n<table>\n" + "\n".join(lines) + "\n</table>"


def _row(tags: Sequence[str], cells: Sequence[str]) -> str:
    filled = (f"<{tag}>{escape(cell)}</{tag[:2]}>" for tag, cell in zip(tags, cells, strict=True))
    return "<tr>" + "".join(filled) + "</tr>"


def _picture(picture: Picture) -> str:
    content = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<h2>{escape(picture.title)}</h2>\n<figure>\n<img alt="{escape(picture.title)}" '
        f'src="data:image/png;base64,{content}">\n<figcaption>{escape(picture.caption)}</figcaption>\n</figure>'
    )

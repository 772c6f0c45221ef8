"""Put measured files into the blocks of a page."""

from __future__ import annotations

import re
from pathlib import Path

from vtoken.output.files import write_text

TEXT = r"(?P<head><!-- (?P<path>benchmarks/[\w/]+\.txt) -->\n)```text\n.*?\n```"
MARKDOWN = r"(?P<head><!-- (?P<path>benchmarks/[\w/]+\.md) -->\n).*?\n<!-- end -->"


def paste(page: Path) -> None:
    """Text goes into the fence after ``<!-- benchmarks/NAME.txt -->``, Markdown between ``<!-- benchmarks/NAME.md -->``
    and ``<!-- end -->``."""

    def read(found: re.Match[str]) -> str:
        path = page.parent / found["path"]
        return path.read_text(encoding="utf-8").rstrip() if path.is_file() else "not measured yet"

    told = page.read_text(encoding="utf-8")
    told = re.sub(TEXT, lambda m: f"{m['head']}```text\n{read(m)}\n```", told, flags=re.DOTALL)
    write_text(page, re.sub(MARKDOWN, lambda m: f"{m['head']}{read(m)}\n<!-- end -->", told, flags=re.DOTALL))

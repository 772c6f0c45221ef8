"""Put measured files and generated tables into the blocks of README and docs.

python -m benchmarks.pages            # write them anew
python -m benchmarks.pages --check    # exit 1 where a block is not what the command would write
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import costs
from vtoken.cli import table
from vtoken.output.files import write_text

ROOT = Path(__file__).resolve().parent.parent
TEXT = r"(?P<head><!-- (?P<path>benchmarks/[\w/]+\.txt) -->\n)```text\n.*?\n```"
MARKDOWN = r"(?P<head><!-- (?P<path>benchmarks/[\w/]+\.md) -->\n)(?:.*?\n)??<!-- end -->"
MADE = r"(?P<head><!-- made: (?P<name>[\w ]+) -->\n)(?:.*?\n)??<!-- end -->"
RATES = (4.0, 8.0, 16.0)
PLANS = {"none": "all tokens", "grt": "`grt`", "evs@grt": "EVS", "uniform@grt": "uniform"}


def rates() -> str:
    """Accuracy, rows, encoder and time by rate and plan, from the run that README's plot shows."""
    path = ROOT / "docs" / "benchmarks" / "accuracy" / "hold_fps" / "summary.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    points = {(r["fps"], r["plan"]): r for r in found}
    lines = ["| fps | plan | accuracy | of all tokens | rows | encoder | time |", "|---:|---|---:|---:|---:|---:|---:|"]
    for fps in RATES:
        full = points[fps, "none"]
        for plan, name in PLANS.items():
            lines.append(_rate(points[fps, plan], full, name))
    return "\n".join(lines)


def _rate(r: dict[str, Any], full: dict[str, Any], name: str) -> str:
    kept = "100 %"
    if (ratio := r["ratio"]) is not None:
        kept = f"{100 * ratio['value']:.1f} % [{100 * ratio['low']:.1f}, {100 * ratio['high']:.1f}]"
    shares = (r["tokens"] / full["tokens"], r["encoded"] / full["encoded"], _time(r) / _time(full))
    rest = " | ".join(f"{100 * share:.0f} %" for share in shares)
    return f"| {r['fps']:g} | {name} | {100 * r['score']['value']:.1f} % | {kept} | {rest} |"


def _time(r: dict[str, Any]) -> float:
    return sum(r["milliseconds"].values())


BLOCKS: dict[str, Callable[[], str]] = {"methods": table.markdown, "rates": rates, "reading costs": costs.markdown}


def pasted(page: Path) -> str:
    """The page with its blocks made anew.

    Text goes into the fence after ``<!-- benchmarks/NAME.txt -->``, Markdown between ``<!-- benchmarks/NAME.md -->``
    and ``<!-- end -->``, a table of ``BLOCKS`` between ``<!-- made: NAME -->`` and ``<!-- end -->``.
    """

    def read(found: re.Match[str]) -> str:
        path = page.parent / found["path"]
        return path.read_text(encoding="utf-8").rstrip() if path.is_file() else "not measured yet"

    told = page.read_text(encoding="utf-8")
    told = re.sub(TEXT, lambda m: f"{m['head']}```text\n{read(m)}\n```", told, flags=re.DOTALL)
    told = re.sub(MARKDOWN, lambda m: f"{m['head']}{read(m)}\n<!-- end -->", told, flags=re.DOTALL)
    made = {name: block().strip() for name, block in BLOCKS.items() if f"<!-- made: {name} -->" in told}
    return re.sub(MADE, lambda m: f"{m['head']}{made[m['name']]}\n<!-- end -->", told, flags=re.DOTALL)


def paste(page: Path) -> None:
    """Write the page with its blocks made anew."""
    write_text(page, pasted(page))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    stale = [page for page in pages if pasted(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'is not what would be written' if check else 'written'}")
        if not check:
            paste(page)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()

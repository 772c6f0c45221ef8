"""The evidence for ThinkJEPA on the hand set: three seeds of every model, and the thinker with fewer tokens.

    python -m benchmarks.thinkjepa --out out/thinkjepa --jobs 2

Runs `benchmarks.study`, which goes on where it was cut off, and copies table, figures and numbers to
docs/benchmarks/thinkjepa (another folder with --name), where docs/thinkjepa.md shows them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks import study
from benchmarks.pages import paste
from vtoken.cli.main import guarded

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = ("study.json", "study.md", "rollout.png", "ablations.png")


def main(argv: list[str] | None = None) -> None:
    parser = study.parser("benchmarks.thinkjepa")
    parser.add_argument("--name", default="thinkjepa", help="folder in docs/benchmarks (default thinkjepa)")
    arguments = parser.parse_args(argv)
    study.run(arguments)
    target = DOCS / "benchmarks" / arguments.name
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (arguments.out / name).is_file():
            shutil.copy(arguments.out / name, target / name)
    paste(DOCS / "thinkjepa.md")


if __name__ == "__main__":
    sys.exit(guarded(main))

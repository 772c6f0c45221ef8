"""The evidence for ThinkJEPA on the hand set: three seeds of every model, and the thinker with fewer tokens.

    python benchmarks/thinkjepa.py --out out/thinkjepa --jobs 2

The same as `python -m benchmarks.study`, which has the options and goes on where it was cut off. Table, figures
and numbers are copied to docs/benchmarks/thinkjepa (another folder with --name) and shown in docs/thinkjepa.md.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.pages import paste
from benchmarks.study import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = ("study.json", "study.md", "rollout.png", "ablations.png")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("out/thinkjepa"))
    parser.add_argument("--name", default="thinkjepa")
    known, rest = parser.parse_known_args()
    main(["--out", str(known.out), *rest])
    target = DOCS / "benchmarks" / known.name
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (known.out / name).is_file():
            shutil.copy(known.out / name, target / name)
    paste(DOCS / "thinkjepa.md")

"""Ask the same questions about every video of a folder; one line of JSON for each answer.

python examples/batch_of_videos.py FOLDER answers.jsonl [MODEL]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import vtoken

QUESTIONS = ["How many times does the lamp flash?", "Does the moving shape turn back?"]


def main(folder: str, out: str, name: str = "reference") -> None:
    """A file that is no video gets a line with its error, and the others go on."""
    model, processor = vtoken.load(name)
    with open(out, "w", encoding="utf-8") as lines:
        for path in sorted(Path(folder).iterdir()):
            row = {"video": path.name}
            try:
                answers = vtoken.ask_many(model, processor, str(path), QUESTIONS, plan="grt", fps=8)
                row |= {"answers": [a.text for a in answers], "tokens": [a.report.tokens for a in answers]}
            except vtoken.VtokenError as error:
                row |= {"error": str(error)}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

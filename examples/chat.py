"""A conversation about one video, which is read, encoded and prefilled once.

python examples/chat.py VIDEO QUESTION [QUESTION ...]      (MODEL=hub-id-or-folder in the environment)
"""

from __future__ import annotations

import os
import sys

import vtoken


def main(video: str, *questions: str) -> None:
    """Ask one question after the other; later ones see the earlier ones and their answers."""
    model, processor = vtoken.load(os.environ.get("MODEL", "reference"))
    chat = vtoken.Chat(model, processor, video, plan="grt", fps=8)
    for question in questions:
        answer = chat.ask(question, max_new_tokens=32)
        spent = sum(answer.report.milliseconds.values())
        print(f"{question}\n  {answer}  ({answer.report.tokens} visual tokens, {spent:,.0f} ms)")


if __name__ == "__main__":
    main(*sys.argv[1:])

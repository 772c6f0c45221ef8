"""Wrap a model, ask about a video, and read what it cost.

python examples/wrap_and_generate.py VIDEO QUESTION [MODEL]
"""

from __future__ import annotations

import sys

import vtoken


def main(video: str, question: str, name: str = "reference") -> None:
    """Answer under two plans, and with all tokens."""
    model, processor = vtoken.load(name)
    for plan, budget in (("none", {}), ("grt", {}), ("grt | divprune", {"keep": 0.25})):
        with vtoken.wrapped(model, plan, **budget):
            answer = vtoken.ask(model, processor, video, question, fps=8)
            print(f"{answer}\n{model.vtoken.report}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Watch a camera (or an address, or a file at its own pace), tell when something begins, and ask in the end.

python examples/camera.py SOURCE "a statement to watch for" "a question for the end"
SOURCE is a number of a camera, an address such as rtsp://..., or a file. MODEL=hub-id-or-folder in the environment.
"""

from __future__ import annotations

import os
import sys

import vtoken


def main(source: str, statement: str, question: str) -> None:
    """Print events as they come; Ctrl+C ends the watching, not the program."""
    model, processor = vtoken.load(os.environ.get("MODEL", "reference"))
    where = int(source) if source.isdigit() else source
    with vtoken.stream(model, processor, where, plan="grt", tokens=2048, fps=4, realtime=True) as stream:
        stream.watch(statement, every=1.0)
        try:
            for event in stream:
                print(event, flush=True)
        except KeyboardInterrupt:
            print()
        print(question, stream.ask(question, max_new_tokens=32))
        print(stream.report)


if __name__ == "__main__":
    main(*sys.argv[1:])

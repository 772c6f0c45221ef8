"""Render a clip of one scene: the lecture of the benchmarks, or any scene of ``vtoken.reference.synthetic.render``.

python -m benchmarks.clips lecture.mp4                     # slides, 60 s of 1280x720 at 25 frames a second
python -m benchmarks.clips pan.mp4 --scene pan --seconds 10 --size 640x360
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from vtoken.errors import InputError, VtokenError
from vtoken.output.files import replacing
from vtoken.reference.synthetic import SCENES, render
from vtoken.video.write import write_video


def size_of(text: str) -> tuple[int, int]:
    """ "1280x720" as (height, width)."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise InputError(f"--size={text!r} must be WIDTHxHEIGHT, for example 1280x720")
    return int(found[2]), int(found[1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--scene", default="slides", choices=sorted(SCENES))
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--fps", type=float, default=25.0)
    arguments.add_argument("--size", default="1280x720", metavar="WIDTHxHEIGHT")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    try:
        clip = render(given.scene, given.seconds, given.fps, size_of(given.size), given.seed)
        with replacing(given.file) as draft:
            write_video(draft, clip)
    except VtokenError as error:
        sys.exit(f"benchmarks.clips: {error}")
    print(f"{given.file}: {len(clip)} frames of {clip.size[1]}x{clip.size[0]} at {clip.fps:g} a second")


if __name__ == "__main__":
    main()

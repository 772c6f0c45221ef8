"""Drawn clips do what their truth says, every time alike, and come back from a file."""

from __future__ import annotations

import numpy as np
import pytest

from vtoken.data.frames import Grid
from vtoken.errors import InputError
from vtoken.reference.synthetic import SCENES, render
from vtoken.video import open_video
from vtoken.video.write import write_video

SIZE = (96, 144)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("fps", [5, 12.5])
def test_nothing_changes_outside_the_boxes_and_something_within(name, fps):
    clip = render(name, 18, fps, SIZE, seed=2)
    frames = list(clip.frames())
    assert len(frames) == len(clip) == len(clip.truth.changed)
    for i in range(1, len(frames)):
        different = (frames[i] != frames[i - 1]).any(-1)
        assert different.any() == bool(clip.truth.changed[i]), i
        for left, top, right, bottom in clip.truth.changed[i]:
            different[top:bottom, left:right] = False
        assert not different.any(), i


@pytest.mark.parametrize("name", SCENES)
def test_same_arguments_same_pixels(name):
    first, second, other = (render(name, 2, 10, SIZE, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first.frames(), second.frames(), strict=True))
    assert np.array_equal(first.draw(7), list(second.frames())[7])
    assert not np.array_equal(first.draw(7), other.draw(7))


def test_objects_are_where_their_boxes_say():
    clip = render("objects", 3, 10, SIZE, seed=1)
    background = np.median(np.stack(list(clip.frames())), axis=0)
    for i in range(0, len(clip), 7):
        moved = np.abs(clip.draw(i).astype(float) - background).max(-1) > 40
        inside = np.zeros_like(moved)
        for left, top, right, bottom in clip.truth.boxes[i]:
            assert 0 <= left < right <= SIZE[1] and 0 <= top < bottom <= SIZE[0]
            inside[top:bottom, left:right] = True
        assert moved[inside].mean() > 0.4


def test_pan_moves_by_its_shift():
    clip = render("pan", 2, 10, SIZE)
    for i in range(1, len(clip)):
        dx, dy = clip.truth.shift[i]
        a, b = clip.draw(i - 1), clip.draw(i)
        y, x = (slice(max(0, s), n + min(0, s)) for s, n in ((dy, SIZE[0]), (dx, SIZE[1])))
        py, px = (slice(max(0, -s), n + min(0, -s)) for s, n in ((dy, SIZE[0]), (dx, SIZE[1])))
        assert np.array_equal(b[y, x], a[py, px]) and (dx, dy) != (0, 0)


def test_fade_cut_and_noise():
    fade = render("fade", 6, 10, SIZE)
    assert min(fade.truth.level) < 0.1 and fade.truth.level[0] == fade.truth.level[-1] == 1
    dark = int(np.argmin(fade.truth.level))
    assert fade.draw(dark).mean() < 0.15 * fade.draw(0).mean()
    cut = render("cut", 7, 10, SIZE)
    assert cut.truth.cuts == [2.0, 4.0, 6.0]
    noise = render("noise", 1, 10, SIZE)
    spread = (noise.draw(3).astype(float) - noise.draw(4)).std() / np.sqrt(2)
    assert spread == pytest.approx(noise.truth.sigma, rel=0.1)


def test_slides_have_builds_a_cursor_a_chart_and_cuts():
    clip = render("slides", 26, 5, SIZE)
    assert clip.truth.cuts == [8.0, 16.0, 24.0]
    still = sum(not boxes for boxes in clip.truth.changed)
    assert still > 0.3 * len(clip)  # the cursor rests half of the time
    assert any(0 < len(boxes) < 3 and (boxes[0][2] - boxes[0][0]) > SIZE[1] // 2 for boxes in clip.truth.changed)


def test_cells_of_a_grid():
    clip = render("objects", 1, 10, SIZE)
    clip.truth.changed[3] = [(0, 0, 1, 1), (143, 95, 144, 96)]
    mask = clip.truth.cells(3, SIZE, Grid(192, 288, 32))
    assert mask.shape == (6, 9) and mask[0, 0] and mask[5, 8] and mask.sum() == 2
    assert clip.truth.cells(0, SIZE, Grid(192, 288, 32)).all()


@pytest.mark.parametrize("name", SCENES)
def test_through_a_file(tmp_path, name):
    clip = render(name, 1.5, 10, SIZE)
    reader = open_video(write_video(tmp_path / f"{name}.mp4", clip, crf=12))
    drawn = clip.frames()
    for frames in reader:
        for i in range(len(frames)):
            assert np.abs(frames.rgb(i).astype(np.int16) - next(drawn)).mean() < 6
    assert next(drawn, None) is None
    assert reader.native_fps == pytest.approx(10) and reader.duration == pytest.approx(1.5)
    assert [len(frames) for frames in clip.chunks(8)] == [8, 7]


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="scene 'movie' is unknown; known are slides"):
        render("movie")
    with pytest.raises(InputError, match="fps=0"):
        render("cut", fps=0)
    with pytest.raises(InputError, match="size"):
        render("cut", size=(4, 400))
    clip = render("cut", 0.3, 10, SIZE)
    with pytest.raises(InputError, match="3 rising seconds"):
        write_video(tmp_path / "a.mp4", clip, times=[0, 1, 1])
    with pytest.raises(InputError, match="rotation=45"):
        write_video(tmp_path / "a.mp4", clip, rotation=45)

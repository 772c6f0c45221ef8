"""DenseQA: the same seed gives the same clip, and every answer is what an independent reader of the pictures sees."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from vtoken.errors import InputError
from vtoken.reference import data
from vtoken.reference.questions import DENSE, TASKS, ask_all, ask_image, knows
from vtoken.reference.render import Painter
from vtoken.reference.world import COLOURS, FRAMES, SPAN, SYMBOLS, Panel, script

CHECKSUM = "5db0652337cddebbfe3cd94dae3ce6d3c621e793326c9a1617017fc5729853ad"


def test_same_seed_same_clip() -> None:
    one, two = data.clip(3, "train"), data.clip(3, "train")
    assert np.array_equal(one.pixels, two.pixels)
    assert data.questions(one) == data.questions(two)
    # frames do not depend on the order in which they are drawn
    assert np.array_equal(data.clip(3, "train").frame(40), one.pixels[40])


def test_other_seed_and_other_split_differ() -> None:
    pixels = data.clip(3, "train").pixels
    assert not np.array_equal(pixels, data.clip(4, "train").pixels)
    assert not np.array_equal(pixels, data.clip(3, "test").pixels)


def test_checksum_of_the_test_set() -> None:
    assert data.checksum("test", 8) == CHECKSUM
    assert data.checksum("test", 7) != CHECKSUM
    assert data.checksum("validation", 8) != CHECKSUM


def test_splits_are_disjoint() -> None:
    ranges = [{data._absolute(s, split) for s in (0, 1, SPAN - 1)} for split in ("train", "validation", "test")]
    assert len(set.union(*ranges)) == 9
    for split, seed in (("dev", 0), ("test", -1), ("test", SPAN), ("test", 1.5)):
        with pytest.raises(InputError, match=r"split=|seed="):
            data.clip(seed, split)  # type: ignore[arg-type]


def test_frames_by_time() -> None:
    clip = data.clip(0, "validation")
    for fps, count in ((1, 4), (2, 8), (4, 16), (8, 32), (16, 64), (30, 64)):
        images, times = data.frames(clip, fps)
        assert images.shape == (count, 112, 112, 3)
        assert np.allclose(times, np.arange(count) / min(fps, 16))
        assert np.array_equal(images[-1], clip.frame(round(times[-1] * 16)))
    with pytest.raises(InputError, match="fps"):
        data.frames(clip, 0)


def test_all_tasks_are_asked_and_answers_are_among_the_choices() -> None:
    asked = [q for seed in range(60) for q in data.questions(data.clip(seed, "validation"))]
    assert {q.task for q in asked} == set(TASKS)
    assert set(DENSE) == set(TASKS) - {"scene"}
    for q in asked:
        assert q.task == "transcribe" or q.answer in q.choices
        assert (q.time is None) == (q.task != "read")
    # no answer is so common that guessing pays
    for task in ("read", "order", "count", "motion", "scene"):
        answers = [q.answer for q in asked if q.task == task]
        assert max(answers.count(a) for a in set(answers)) / len(answers) < 0.4


def _shown(painter: Painter, panel: Panel, frame: int) -> str:
    """The symbol at a panel's place, by comparing pixels with every symbol drawn there."""
    picture = painter.frame(frame).astype(int)
    x, y = panel.at(frame)
    a, b = round(y - panel.size / 2), round(x - panel.size / 2)
    errors = []
    for symbol in SYMBOLS:
        other = replace(panel, symbols=(symbol,), starts=(0,))
        panels = tuple(other if p is panel else p for p in painter.script.panels)
        guess = Painter(replace(painter.script, panels=panels)).frame(frame).astype(int)
        part = np.s_[max(0, a) : a + panel.size, max(0, b) : b + panel.size]
        errors.append(np.abs(guess[part] - picture[part]).sum())
    return SYMBOLS[int(np.argmin(errors))]


@pytest.mark.parametrize("seed", range(4))
def test_read_and_transcribe_against_the_pictures(seed: int) -> None:
    clip = data.clip(seed, "validation")
    for q in data.questions(clip):
        if q.task not in ("read", "transcribe"):
            continue
        colour = re.search(r"the (\w+) panel", q.text)
        assert colour is not None
        panel = next(p for p in clip.script.panels if p.colour == colour[1])
        if q.time is not None:
            assert _shown(clip.painter, panel, min(round(q.time * 16), 63)) == q.answer
        else:
            seen = [_shown(clip.painter, panel, f) for f in range(1, FRAMES, 3)]
            runs = [s for i, s in enumerate(seen) if i == 0 or seen[i - 1] != s]
            assert " ".join(runs) == q.answer


def test_count_and_motion_against_the_pictures() -> None:
    flashes = moves = 0
    for seed in range(12):
        clip = data.clip(seed, "train")
        answers = {q.text: q.answer for q in data.questions(clip)}
        if clip.script.lamp is not None:
            x, y = round(clip.script.lamp.x), round(clip.script.lamp.y)
            lit = np.array([clip.frame(f)[y - 2 : y + 3, x - 2 : x + 3].max() > 110 for f in range(FRAMES)])
            rises = int((np.diff(lit.astype(int)) == 1).sum() + lit[0])
            assert answers["How many times does the lamp flash?"] == str(rises)
            flashes += 1
        if clip.script.mover is not None:
            empty = Painter(replace(clip.script, mover=None))
            centres = []
            for f in range(FRAMES):
                changed = np.argwhere(np.abs(clip.frame(f).astype(int) - empty.frame(f)).sum(2) > 60)
                if len(changed):
                    centres.append((changed.min(0) + changed.max(0)) / 2)
            path = np.array(centres)
            axis = int(np.ptp(path, 0).argmax())
            steps = np.diff(path[:, axis])
            names = (("up", "down"), ("left", "right"))[axis]
            assert answers["Which way does the moving shape go at first?"] == names[int(steps[:4].sum() > 0)]
            assert answers["Which way does the moving shape go at last?"] == names[int(steps[-4:].sum() > 0)]
            moves += 1
    assert flashes > 2
    assert moves > 2


def test_scene_against_the_pictures() -> None:
    found = 0
    for seed in range(12):
        clip = data.clip(seed, "train")
        for q in data.questions(clip):
            if q.task != "scene" or not q.text.startswith("What colour is the ") or "scene" in q.text:
                continue
            thing = next(t for t in clip.script.things if t.shape == q.text.split()[-1].rstrip("?"))
            frame = next(f for f in range(FRAMES) if thing in clip.script.visible(f))
            pixel = clip.frame(frame)[round(thing.y), round(thing.x)].astype(int)
            nearest = min(COLOURS, key=lambda c: int(np.abs(pixel - COLOURS[c]).sum()))
            assert nearest == q.answer
            found += 1
    assert found > 3


def test_the_world_knows_its_own_questions_and_no_others() -> None:
    for seed in range(60):
        made = script(seed)
        rng = np.random.default_rng(seed)
        for question in [*ask_all(made, rng), *ask_image(made, 0)]:
            assert knows(question.text) and knows(question.text.rstrip("?").upper()), question.text
    for text in ("What is on the slide?", "How many times does the dog bark?", "Which symbol does the panel show?", ""):
        assert not knows(text)


def test_what_is_asked_is_on_screen_around_the_time() -> None:
    """A read question allows for its time in tenths and for pairs of frames."""
    for seed in range(40):
        clip = script(seed)
        for panel in clip.panels:
            assert min(np.diff([*panel.starts, FRAMES])) >= 5


def test_written_and_read_back(tmp_path: object) -> None:
    folder = data.write_dataset(f"{tmp_path}/set", "test", 2)
    samples = data.read_dataset(folder)
    assert [s.seed for s in samples] == [0, 1]
    for sample in samples:
        clip = data.clip(sample.seed, sample.split)
        assert sample.questions == data.questions(clip)
        with sample.reader(fps=8) as reader:
            chunks = list(reader)
        assert sum(len(c) for c in chunks) == 32
        assert np.allclose(np.concatenate([c.pts for c in chunks]), np.arange(32) / 8)
        read = np.stack([chunks[0].rgb(i) for i in range(len(chunks[0]))])
        error = np.abs(read.astype(int) - data.frames(clip, 8)[0][: len(read)])
        assert error.mean() < 6  # chroma at half resolution
    assert not [f for f in folder.iterdir() if f.name.endswith(".part")]


def test_a_damaged_folder_is_refused(tmp_path: object) -> None:
    with pytest.raises(InputError, match="no questions"):
        data.read_dataset(f"{tmp_path}")
    folder = data.write_dataset(f"{tmp_path}/set", "test", 1)
    index = folder / "questions.jsonl"
    row = json.loads(index.read_text())
    index.write_text(json.dumps(row | {"video": "gone.mp4"}) + "\n")
    with pytest.raises(InputError, match=r"gone\.mp4 is missing"):
        data.read_dataset(folder)
    index.write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        data.read_dataset(folder)
    with pytest.raises(InputError, match="clips=0"):
        data.write_dataset(folder, "test", 0)

"""The hand set: its goals are told apart by the marker alone, its points are hands, its pictures are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtoken.errors import InputError
from vtoken.reference.model import vocabulary
from vtoken.thinkjepa import hands
from vtoken.thinkjepa.hands import camera, layout, skeleton
from vtoken.thinkjepa.hands.motion import LIFT, quintic

SEEDS = st.integers(0, layout.SPAN - 1)
RIGHT = slice(26, 52)


def _goals(seed: int, split: str = "train") -> list[hands.Episode]:
    return [hands.episode(seed, split, goal) for goal in range(3)]


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(layout.SPLITS))
def test_the_past_window_is_the_same_for_every_goal(seed: int, split: str) -> None:
    one, *others = _goals(seed, split)
    past = range(hands.PAST, hands.NOW)
    for other in others:
        assert np.array_equal(one.drawn(past), other.drawn(past))
        assert np.array_equal(one.points[: hands.NOW], other.points[: hands.NOW])
        assert np.array_equal(one.extrinsics, other.extrinsics)
        assert (one.group, one.scene.flash, one.scene.colours) == (other.group, other.scene.flash, other.scene.colours)


def test_before_the_future_goals_differ_where_the_marker_is_lit_alone() -> None:
    for seed in range(3):
        one, other, _ = _goals(seed)
        first, last, _ = one.scene.flash
        assert 0 <= first < last <= hands.PAST - layout.FLASH
        differs = (one.frames[: hands.NOW] != other.frames[: hands.NOW]).any(-1)
        assert differs.any((1, 2)).nonzero()[0].tolist() == list(range(first, last))
        for i in range(first, last):
            rows, columns = differs[i].nonzero()
            lamps = camera.project(one.scene.lamps[:2], one.extrinsics[i], one.intrinsics)
            near = np.hypot(columns + 0.5 - lamps[:, :1], rows + 0.5 - lamps[:, 1:]).min(0)
            assert near.max() < 8


def test_a_sparse_frame_always_shows_the_marker() -> None:
    for seed in range(40):
        one = hands.episode(seed)
        first, last, _ = one.scene.flash
        assert any(first <= i < last for i in range(0, hands.NOW, hands.STRIDE))
    frames, seconds = one.sparse()
    assert np.array_equal(frames, one.frames[: hands.NOW : hands.STRIDE])
    assert seconds.tolist() == [k / 2 for k in range(12)]


def test_the_marker_is_in_view_and_no_hand_hides_it() -> None:
    hidden = 0
    for seed in range(30):
        one, other = hands.episode(seed, goal=0), hands.episode(seed, goal=2)
        for episode in (one, other):
            spots = camera.project(episode.scene.lamps, episode.extrinsics[0], episode.intrinsics)
            assert (spots > 5).all() and (spots < layout.SIZE - 5).all()
        lit = [i for i in range(0, hands.NOW, hands.STRIDE) if one.scene.flash[0] <= i < one.scene.flash[1]]
        gap = (one.drawn(lit).astype(int) - other.drawn(lit)).any(-1).sum((1, 2)).max()
        hidden += gap < 100  # two lamps of 95 pixels each
    assert hidden <= 1


def test_paths_fork_and_the_goals_grow_apart() -> None:
    gaps = []
    for seed in range(20):
        points = np.stack([e.points for e in _goals(seed)])
        gaps.append(np.linalg.norm(points - points.mean(0), axis=-1).mean((0, 2)))
    gap = np.mean(gaps, 0)
    assert gap[hands.NOW - 1] < 1e-6 < 1e-4 < gap[hands.NOW]
    assert 0.03 < gap[hands.NOW + 7] < gap[hands.NOW + 15] < gap[-1]
    assert gap[-1] > 0.2


def test_goals_are_drawn_evenly_and_seeds_differ() -> None:
    drawn = [hands.episode(seed) for seed in range(90)]
    assert min(np.bincount([e.goal for e in drawn], minlength=3)) > 18
    assert len({e.points.tobytes() for e in drawn}) == 90
    assert hands.episode(0, "test").points.tobytes() != hands.episode(0).points.tobytes()
    assert not np.array_equal(hands.episode(0, "validation").frames[0], hands.episode(0).frames[0])


def test_the_same_seed_gives_the_same_episode() -> None:
    one, again = hands.episode(7, "test"), hands.episode(7, "test")
    assert np.array_equal(one.points, again.points)
    assert np.array_equal(one.frames[::16], again.drawn(range(0, 112, 16)))


def test_groups_are_tables_of_one_split() -> None:
    groups = [hands.episode(seed).group for seed in range(17)]
    assert len(set(groups)) == 3
    assert len({hands.episode(seed).scene.background for seed in range(8)}) == 1
    assert hands.episode(0, "test").group not in groups


def test_points_are_hands() -> None:
    one = hands.episode(3)
    assert one.points.shape == (112, 52, 3)
    assert one.points.dtype == np.float32
    assert len(hands.POINTS) == len(set(hands.POINTS)) == 52
    for side in (0, 1):
        hand = one.points[:, side * 26 : side * 26 + 26].astype(float)
        for finger in ("IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger", "Thumb"):
            chain = [layout.HAND.index(f"{finger}{j}") for j in layout.FINGERS[finger]]
            bones = np.linalg.norm(np.diff(hand[:, chain], axis=1), axis=-1)
            assert np.allclose(bones, bones[0], atol=1e-5)  # bones keep their length
            assert (bones > 0.01).all() and (bones < 0.08).all()
        arm = np.linalg.norm(hand[:, layout.WRIST] - hand[:, layout.ELBOW], axis=1)
        assert np.allclose(arm, skeleton.FOREARM, atol=1e-5)


def test_hands_mirror_each_other_and_close() -> None:
    wrist, grip = np.array([[0.1, 0.05, 0.2]] * 2), np.array([0.0, 1.0])
    right = skeleton.points(wrist, grip, True)
    left = skeleton.points(wrist * (-1, 1, 1), grip, False)
    assert np.allclose(right * (-1, 1, 1), left)
    tips = [layout.HAND.index(f"{f}Tip") for f in layout.FINGERS]
    reach = np.linalg.norm(right[:, tips] - wrist[:, None], axis=-1)
    assert (reach[1] < reach[0]).all()
    thumb, index = layout.HAND.index("ThumbTip"), layout.HAND.index("IndexFingerTip")
    apart = np.linalg.norm(right[:, thumb] - right[:, index], axis=-1)
    assert apart[1] < 0.6 * apart[0]


def test_the_hand_carries_its_object_to_the_right_tray() -> None:
    for seed in range(6):
        for one in _goals(seed):
            paths, moved = one.scene.paths, np.ptp(one.scene.paths, axis=0).max(1)
            assert (moved > 0.05).tolist() == [k == one.goal for k in range(3)]
            assert np.allclose(paths[-1, one.goal], one.scene.trays[one.goal])
            fingers = one.points[:, RIGHT][:, [layout.HAND.index("ThumbTip"), layout.HAND.index("IndexFingerTip")]]
            moving = np.flatnonzero(np.linalg.norm(np.diff(paths[:, one.goal], axis=0), axis=1) > 1e-3)
            gap = np.linalg.norm(fingers.mean(1) - paths[:, one.goal], axis=1)
            assert gap[moving[1:-1]].max() < 0.09
            assert paths[:, one.goal, 1].max() > 0.5 * LIFT


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=12, max_size=12), st.floats(2, 30))
def test_the_path_of_least_jerk_keeps_its_ends(numbers: list[float], frames: float) -> None:
    start, end = np.array(numbers[:9]).reshape(3, 3), np.array(numbers[9:])
    path = quintic(start, end, frames, np.array([0.0, frames]))
    assert np.allclose(path[0], start, atol=1e-9)
    assert np.allclose(path[1], [end, np.zeros(3), np.zeros(3)], atol=1e-9)
    at = np.linspace(0, frames, 2001)
    dense = quintic(start, end, frames, at)
    assert np.allclose(np.gradient(dense[:, 0], at, axis=0)[1:-1], dense[1:-1, 1], atol=1e-3)
    assert np.allclose(np.gradient(dense[:, 1], at, axis=0)[1:-1], dense[1:-1, 2], atol=1e-2)


def test_the_motion_is_smooth_over_the_fork() -> None:
    for seed in range(10):
        for one in _goals(seed):
            wrist = one.points[:, 26 + layout.WRIST].astype(float)
            jumps = np.linalg.norm(np.diff(wrist, n=3, axis=0), axis=1)
            assert jumps[hands.NOW - 6 : hands.NOW + 6].max() < 0.02


def test_poses_are_turns_and_points_project_into_the_picture() -> None:
    one = hands.episode(11)
    turn = one.extrinsics[:, :3, :3].astype(float)
    assert np.allclose(turn @ turn.transpose(0, 2, 1), np.eye(3), atol=1e-6)
    assert np.allclose(np.linalg.det(turn), 1, atol=1e-6)
    assert np.abs(np.diff(one.extrinsics, axis=0)).max() < 0.02
    assert np.ptp(one.extrinsics, axis=0).max() > 0.005
    world = one.points[50].astype(float)
    seen = world @ turn[50].T + one.extrinsics[50, :3, 3]
    assert (seen[:, 2] > 0.2).all()
    flat = camera.project(world, one.extrinsics[50], one.intrinsics)
    fingers = [i for i, n in enumerate(hands.POINTS) if not n.endswith("Forearm")]
    assert (flat[fingers] > 0).mean() > 0.95 and (flat[fingers] < layout.SIZE).mean() > 0.95


def test_a_known_point_lands_on_its_pixel() -> None:
    pose = np.eye(4)
    pose[2, 3] = 0.5
    flat = camera.project(np.array([0.1, -0.05, 0.5]), pose, camera.intrinsics())
    assert flat.tolist() == pytest.approx([56 + layout.FOCAL * 0.1, 56 - layout.FOCAL * 0.05])


def test_questions_are_answered_by_the_scene_in_known_words() -> None:
    known = set(vocabulary())
    for seed in range(20):
        one = hands.episode(seed)
        asked = hands.questions(one)
        assert asked == hands.questions(hands.episode(seed))
        assert asked[0].text == hands.GOAL
        assert asked[0].answer == hands.PLACES[one.goal]
        assert [q.answer for q in asked[1:3]] == [one.scene.flash[2], one.scene.colours[one.goal]]
        for q in asked:
            assert q.answer in q.choices
            assert set(q.text.replace("?", " ?").split()) | {q.answer} <= known
        row = [camera.project(p, one.extrinsics[0], one.intrinsics)[0] for p in one.scene.paths[0]]
        assert row == sorted(row)


def test_small_clips_are_made_frame_by_frame() -> None:
    frames = hands.episode(0).drawn([3, 4, 5])
    clip = hands.vjepa_clip(frames)
    assert clip.shape == (3, 3, 64, 64)
    assert clip.dtype == np.float32
    assert np.array_equal(clip[1:2], hands.vjepa_clip(frames[1:2]))
    grey = hands.vjepa_clip(np.full((1, 20, 30, 3), 128, np.uint8))
    assert np.allclose(grey[0, :, 0, 0], (128 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8), np.uint8), np.zeros((1, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_small_clips_refuse_what_is_no_video(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        hands.vjepa_clip(bad)


@pytest.mark.parametrize("arguments", [(-1,), (True,), (0.5,), (1 << 40,), (0, "dev"), (0, "train", 3)])
def test_wrong_arguments_are_named(arguments: tuple) -> None:
    with pytest.raises(InputError, match="seed=|split=|goal="):
        hands.episode(*arguments)

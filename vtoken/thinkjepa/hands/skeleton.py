"""An articulated hand: where its 26 points are for a wrist position and a grip."""

from __future__ import annotations

import numpy as np

from vtoken.thinkjepa.hands.layout import FINGERS, HAND

ELBOWS = ((-0.24, 0.16, 0.50), (0.24, 0.16, 0.50))  # metres, left and right: what the forearms point away from
FOREARM = 0.25
REACH = 0.13  # from the wrist to what the fingers hold, along the hand
# by finger: sideways and forward place of its first joint and its knuckle, and the lengths of its phalanges, metres
_BASES = {
    "IndexFinger": ((-0.014, 0.026), (-0.026, 0.090), (0.042, 0.026, 0.021)),
    "MiddleFinger": ((-0.004, 0.026), (-0.004, 0.094), (0.046, 0.029, 0.022)),
    "RingFinger": ((0.007, 0.025), (0.016, 0.088), (0.042, 0.027, 0.021)),
    "LittleFinger": ((0.017, 0.023), (0.034, 0.078), (0.033, 0.020, 0.018)),
}
_BENDS = np.array([0.55, 1.05, 0.7])  # radians at the three joints of a closed finger
_THUMB = ((-0.026, 0.028), (0.038, 0.032, 0.026))


def points(wrist: np.ndarray, grip: np.ndarray, right: bool) -> np.ndarray:
    """Points of one hand, palm down, that follows its forearm.

    Args:
        wrist: float [T, 3], metres, y up.
        grip: float [T], 0 open to 1 closed.
        right: which hand.

    Returns:
        float64 [T, 26, 3] in the order of ``layout.HAND``.
    """
    local = _local(grip)
    if not right:
        local[..., 0] *= -1
    along = wrist - np.array(ELBOWS[int(right)])
    along = along / np.linalg.norm(along, axis=1, keepdims=True)
    ahead = along * (1, 0.35, 1)  # the wrist bends: a hand is more level than its forearm
    ahead = ahead / np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.cross(ahead, (0.0, 1.0, 0.0))
    side = side / np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, ahead)
    axes = np.stack([side, up, ahead], 1)
    out = np.empty((len(wrist), len(HAND), 3))
    out[:, :-2] = wrist[:, None] + np.einsum("tjk,tkc->tjc", local, axes)
    out[:, -2] = wrist
    out[:, -1] = wrist - FOREARM * along
    return out


def _local(grip: np.ndarray) -> np.ndarray:
    """Finger joints of a right hand, float64 [T, 24, 3]: sideways (to the little finger), up, ahead."""
    out = []
    for finger in FINGERS:
        if finger == "Thumb":
            out += _thumb(grip)
            continue
        first, knuckle, lengths = _BASES[finger]
        place = np.broadcast_to(np.array([knuckle[0], 0.0, knuckle[1]]), (len(grip), 3))
        out += [np.broadcast_to(np.array([first[0], 0.0, first[1]]), (len(grip), 3)), place]
        angle = np.full(len(grip), 0.1)
        for length, bend in zip(lengths, _BENDS, strict=True):
            angle = angle + bend * grip
            place = place + length * np.stack([0 * angle, -np.sin(angle), np.cos(angle)], 1)
            out.append(place)
    return np.stack(out, 1)


def _thumb(grip: np.ndarray) -> list[np.ndarray]:
    base, lengths = _THUMB
    place = np.broadcast_to(np.array([base[0], -0.004, base[1]]), (len(grip), 3))
    out = [place]
    for i, length in enumerate(lengths):
        sideways = 0.95 - (0.35 + 0.3 * i) * grip  # radians away from the hand's axis
        down = (0.25 + 0.15 * i) * grip
        step = np.stack([-np.sin(sideways) * np.cos(down), -np.sin(down), np.cos(sideways) * np.cos(down)], 1)
        place = place + length * step
        out.append(place)
    return out

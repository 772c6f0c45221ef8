"""Numbers and names of the hand set: its clock, its windows and the 52 points of EgoDex's layout."""

from __future__ import annotations

FPS = 8.0
FRAMES = 112  # 14 seconds
PAST, NOW = 40, 48  # the dense past is [PAST, NOW), the future begins at NOW
STRIDE = 4  # sparse frames are every fourth frame before NOW
FLASH = 6  # frames that the marker is lit
EARLY = (2, 18)  # first frames at which it may start, last one exclusive
SIZE = 112  # pixels a side
FOCAL = 88.0  # pixels
PLACES = ("left", "middle", "right")  # of the objects, by index
SPLITS = ("train", "validation", "test")
SPAN = 1 << 32  # seeds of a split
SESSION = 8  # episodes that share a table, as EgoDex's folders do

_LONG = ("Metacarpal", "Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
FINGERS = {
    "Thumb": _LONG[1:],
    "IndexFinger": _LONG,
    "MiddleFinger": _LONG,
    "RingFinger": _LONG,
    "LittleFinger": _LONG,
}
SIDES = ("left", "right")
HAND = tuple(f"{finger}{joint}" for finger, joints in FINGERS.items() for joint in joints) + ("Hand", "Forearm")
POINTS = tuple(f"{side}{name}" for side in SIDES for name in HAND)  # 52, the left hand first
WRIST, ELBOW = HAND.index("Hand"), HAND.index("Forearm")  # rows of one hand's 26 points

"""Synthetic manipulation with two hands: the goal is seen in the long context alone, the points are known."""

from vtoken.thinkjepa.hands.episode import Episode, episode
from vtoken.thinkjepa.hands.inputs import vjepa_clip
from vtoken.thinkjepa.hands.layout import FPS, FRAMES, NOW, PAST, PLACES, POINTS, STRIDE
from vtoken.thinkjepa.hands.questions import GOAL, questions
from vtoken.thinkjepa.hands.scene import Scene

__all__ = ["FPS", "FRAMES", "GOAL", "NOW", "PAST", "PLACES", "POINTS", "STRIDE", "Episode", "Scene"]
__all__ += ["episode", "questions", "vjepa_clip"]

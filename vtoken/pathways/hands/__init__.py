"""Synthetic manipulation with two hands: the goal is seen in the long context alone, the points are known."""

from vtoken.pathways.hands.episode import Episode, Scene, episode
from vtoken.pathways.hands.inputs import vjepa_clip
from vtoken.pathways.hands.layout import FPS, FRAMES, NOW, PAST, PLACES, POINTS, STRIDE
from vtoken.pathways.hands.questions import GOAL, questions

__all__ = ["FPS", "FRAMES", "GOAL", "NOW", "PAST", "PLACES", "POINTS", "STRIDE", "Episode", "Scene"]
__all__ += ["episode", "questions", "vjepa_clip"]

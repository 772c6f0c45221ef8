"""Questions about the long context of an episode, in the words that the reference model has."""

from __future__ import annotations

import numpy as np

from vtoken.reference.questions import Question
from vtoken.reference.world import COLOURS
from vtoken.thinkjepa.hands.episode import Episode
from vtoken.thinkjepa.hands.layout import PLACES

GOAL = "Where does the lamp flash?"  # what the thinker is asked


def questions(of: Episode) -> list[Question]:
    """All questions: where the goal is, the marker's colour, the goal's colour, then an object by shape.

    The tasks are "goal", "marker", "colour" and "object".
    """
    scene, names = of.scene, tuple(COLOURS)
    k = int(np.random.default_rng((of.seed, 5)).integers(3))
    shape = scene.shapes[k]
    return [
        Question("goal", GOAL, PLACES[of.goal], None, PLACES, False),
        Question("marker", "What colour does the lamp flash?", scene.flash[2], None, names, False),
        Question("colour", "What colour is the shape at the lamp?", scene.colours[of.goal], None, names, False),
        Question("object", f"Where is the {shape}?", PLACES[k], None, PLACES, True),
        Question("object", f"What colour is the {shape}?", scene.colours[k], None, names, True),
    ]

"""Questions about the long context of an episode, in the words that the reference model has."""

from __future__ import annotations

import numpy as np

from vtoken.pathways.hands.episode import Episode
from vtoken.pathways.hands.layout import PLACES
from vtoken.reference.questions import Question
from vtoken.reference.world import COLOURS, SHAPES

GOAL = "Where does the lamp flash?"  # what the thinker is asked


def questions(of: Episode) -> list[Question]:
    """All questions: the goal three ways, then objects by place, colour and shape.

    The tasks are "goal", "goal colour", "goal shape" and "object".
    """
    scene, names = of.scene, tuple(COLOURS)
    out = [
        Question("goal", GOAL, PLACES[of.goal], None, PLACES, False),
        Question("goal colour", "What colour is the shape at the lamp?", scene.colours[of.goal], None, names, False),
        Question("goal shape", "Which shape is at the lamp?", scene.shapes[of.goal], None, SHAPES, False),
    ]
    r = np.random.default_rng((of.seed, 5))
    k = int(r.integers(3))
    shape, colour = scene.shapes[k], scene.colours[k]
    out.append(Question("object", f"Where is the {shape}?", PLACES[k], None, PLACES, True))
    out.append(Question("object", f"What colour is the {shape}?", colour, None, names, True))
    out.append(Question("object", f"Which still shape is {colour}?", shape, None, SHAPES, True))
    return out

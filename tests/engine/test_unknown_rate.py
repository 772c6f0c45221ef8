"""A wrapped model that is not told the frame rate of a processor's videos says so, with the remedy."""

from __future__ import annotations

import pytest

import vtoken
from tests.families.tiny import FAMILIES, model_of


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
def test_a_rate_that_is_not_known_is_a_note(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, [[("text", 3), ("video", 4), ("text", 3)]])
    notes = {}
    for fps in (None, 4.0):
        vtoken.wrap(model, "mad", fps=fps)
        try:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
            notes[fps] = [n for n in model.vtoken.report.notes if "fps=" in n]
        finally:
            vtoken.unwrap(model)
    assert notes[4.0] == [] and len(notes[None]) == 1 and "wrap(..., fps=)" in notes[None][0]

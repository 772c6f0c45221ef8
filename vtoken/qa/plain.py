"""A question without a video: text alone, or text about pictures, answered by the stock model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtoken import families
from vtoken.data.report import Report
from vtoken.families.compat import core, input_device
from vtoken.qa.answer import Answer, until_end
from vtoken.qa.api import settings_of
from vtoken.qa.media import Image
from vtoken.qa.packed import stops
from vtoken.qa.prompt import Chat, prompts
from vtoken.qa.read import Progress
from vtoken.qa.tokenize import tokenizer_of

NOTE = "there is no video, so no plan ran"


def ask_plain(
    model: Any,
    processor: Any,
    images: Sequence[Image],
    question: str,
    *,
    system: str | None = None,
    history: Sequence[dict[str, str]] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Answer:
    """Answer a question about pictures, or about nothing but its text; no plan runs.

    Args:
        model: not wrapped, or wrapped with the plan "none".
        images: shown in this order before the text of the first turn; may be empty.
        system, history: as in ``vtoken.ask``.
        progress: called with "encode" before the model runs; an exception ends the call.
        **options: arguments of ``model.generate``; the defaults are those of ``vtoken.ask``.

    Raises:
        InputError: the processor belongs to another family.
        UnsupportedError: pictures of a checkpoint without an image processor.
    """
    inner = core(model)
    family = families.of(inner)
    pixels = family.images(inner, processor, [image.load() for image in images])
    shown = pixels.items if pixels else []
    (prompt,) = prompts(family, inner, processor, shown, [question], Chat(system, history))
    device = input_device(model)
    inputs = prompt | (pixels.inputs if pixels else {})
    inputs = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    settings = settings_of(inner, options)
    report = Report(prompt=prompt["input_ids"].shape[1], notes=[NOTE])
    # the ids of a picture count its structural rows too
    report.cells = report.encoded = report.tokens = sum(len(item.ids) for item in shown)
    if progress is not None:
        progress("encode", 0.0)
    with report.stage("generate", device), torch.no_grad():
        found = inner.generate(**inputs, **settings)
    report.measure_memory(device)
    ids = until_end(found[0, report.prompt :], stops(inner, settings)).cpu()
    text = tokenizer_of(processor).decode(ids, skip_special_tokens=True)
    return Answer(text.strip(), report, [], ids, [])

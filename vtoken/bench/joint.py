"""Plans, quantised weights and quantised caches in one configuration: what each costs alone and what all cost together.

The loss of a cell is the accuracy of the whole model (all tokens, float weights, dynamic cache) less its own. Beside it
stands the sum of the losses that its plan, weights and cache have alone: where the loss is larger, they make each other
worse.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vtoken.bench import accuracy_data, metrics
from vtoken.errors import InputError, MissingExtraError, UnsupportedError, require
from vtoken.output.console import FittedTable, terminal
from vtoken.output.files import folder, write_text
from vtoken.output.progress import progress
from vtoken.qa.api import ask_many
from vtoken.qa.load import load

PLANS = ("none", "grt", "grt:hold=off", "divprune:keep=0.5", "fastv:layer=1,keep=0.5", "uniform:keep=0.5")
WEIGHTS = ("float", "torchao-int8-language", "torchao-int8", "bnb-int8", "bnb-nf4", "quanto-int8")
CACHES = ("dynamic", "fp8", "quanto4", "hqq8")
SETTINGS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    # groups of 16: the length of a pruned prompt is any number, and a group must divide heads x length x width
    "fp8": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
    "quanto4": {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 16},
    },
    "hqq8": {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "hqq", "nbits": 8, "q_group_size": 16, "residual_length": 16},
    },
}


@dataclass(frozen=True)
class Cell:
    """One configuration: its accuracy, or why it does not run.

    Attributes:
        accuracy: share of the answers that are right; None where it does not run.
        tokens: mean visual tokens of a prompt.
        seconds: of all answers, reading and encoding included.
        loss, alone: see the module.
    """

    plan: str
    weights: str
    cache: str
    accuracy: float | None = None
    tokens: float = 0.0
    seconds: float = 0.0
    why: str = ""
    loss: float | None = None
    alone: float | None = None


def quantised(name: str, weights: str, device: str = "auto") -> tuple[Any, Any]:
    """A checkpoint with weights of a kind, and its processor.

    Raises:
        InputError: an unknown kind, or a checkpoint that cannot be loaded.
        MissingExtraError: the library of that kind is not installed.
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights {weights!r} are unknown; known are {', '.join(WEIGHTS)}")
    import transformers

    if weights == "float":
        return load(name, device)
    library, _, kind = weights.partition("-")
    if library == "torchao":
        api = require("torchao.quantization", "quant", f"weights {weights}")
        model, processor = load(name, device)
        # the language model alone leaves the encoder, and with it gates and scores, as they were
        api.quantize_(model.model.language_model if kind.endswith("language") else model, api.Int8WeightOnlyConfig())
        return model, processor
    require("bitsandbytes" if library == "bnb" else "optimum.quanto", "quant", f"weights {weights}")
    config: Any = {
        "bnb-int8": lambda: transformers.BitsAndBytesConfig(load_in_8bit=True),
        "bnb-nf4": lambda: transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        "quanto-int8": lambda: transformers.QuantoConfig("int8"),
    }[weights]()
    return load(name, device, quantization_config=config)


def measure(
    data: accuracy_data.Data,
    model: str,
    plans: Sequence[str],
    weights: Sequence[str],
    caches: Sequence[str],
    fps: float,
    done: Sequence[Cell] = (),
    save: Callable[[list[Cell]], None] = lambda cells: None,
) -> list[Cell]:
    """Every configuration on every question; those that need each other's losses have them filled in.

    Args:
        done: configurations that are not run again.
        save: called with all that is there after each one.
    """
    known = {(c.plan, c.weights, c.cache): c for c in done if not c.why}
    found: list[Cell] = []
    with progress(len(plans) * len(weights) * len(caches), "configurations") as advance:
        for kind in weights:
            left = [pair for pair in product(plans, caches) if (pair[0], kind, pair[1]) not in known]
            found += [known[plan, kind, cache] for plan, cache in product(plans, caches) if (plan, cache) not in left]
            advance(len(plans) * len(caches) - len(left), kind)
            if not left:
                continue
            try:
                loaded: Any = quantised(model, kind)
                why = ""
            except (MissingExtraError, InputError) as error:
                loaded, why = None, _line(error)
            for plan, cache in left:
                told = f"{plan} / {kind} / {cache}"
                found.append(Cell(plan, kind, cache, why=why) if why else _cell(data, loaded, plan, kind, cache, fps))
                save(list(_with_losses(found)))
                advance(1, told)
    order = [(plan, kind, cache) for kind in weights for plan, cache in product(plans, caches)]
    return sorted(_with_losses(found), key=lambda c: order.index((c.plan, c.weights, c.cache)))


def _cell(data: accuracy_data.Data, loaded: Any, plan: str, weights: str, cache: str, fps: float) -> Cell:
    if cache not in SETTINGS:
        raise InputError(f"cache {cache!r} is unknown; known are {', '.join(SETTINGS)}")
    (model, processor), right, tokens, count, start = loaded, 0.0, 0, 0, time.perf_counter()
    try:
        for clip in data.clips:
            texts = [q.text for q in clip.questions]
            given = {"fps": fps, "native_fps": clip.native_fps, "max_new_tokens": data.new_tokens, **SETTINGS[cache]}
            answers = ask_many(model, processor, clip.source(), texts, plan=plan, batch=1, **given)
            for q, a in zip(clip.questions, answers, strict=True):
                right += metrics.METRICS[data.score](a.text, q.answer)
                tokens += a.report.tokens
                count += 1
    except (UnsupportedError, ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        return Cell(plan, weights, cache, why=_line(error))
    return Cell(plan, weights, cache, right / count, tokens / count, time.perf_counter() - start)


def _with_losses(found: list[Cell]) -> Iterator[Cell]:
    at = {(c.plan, c.weights, c.cache): c.accuracy for c in found}
    full = at.get(("none", "float", "dynamic"))

    def loss(plan: str, weights: str, cache: str) -> float | None:
        own = at.get((plan, weights, cache))
        return None if own is None or full is None else full - own

    for c in found:
        parts = loss(c.plan, "float", "dynamic"), loss("none", c.weights, "dynamic"), loss("none", "float", c.cache)
        alone = None if None in parts else sum(part for part in parts if part is not None)
        yield Cell(**asdict(c) | {"loss": loss(c.plan, c.weights, c.cache), "alone": alone})


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def run(
    model: str, plans: Sequence[str], weights: Sequence[str], caches: Sequence[str], clips: int, fps: float, out: str
) -> list[Cell]:
    """`vtoken bench joint`: print the table, write joint.jsonl and report.md; a stopped run goes on.

    Raises:
        InputError: an unknown kind, or a folder that cannot be written.
    """
    for given, known, what in ((weights, WEIGHTS, "--weights"), (caches, CACHES, "--caches")):
        if wrong := [one for one in given if one not in known]:
            raise InputError(f"{what} {wrong[0]!r} is unknown; known are {', '.join(known)}")
    target = folder(out)
    data = accuracy_data.rendered("test", clips)
    state, mark = target / "joint.jsonl", {"model": model, "clips": clips, "fps": fps}

    def save(cells: list[Cell]) -> None:
        write_text(state, "".join(json.dumps(asdict(cell) | mark) + "\n" for cell in cells))

    cells = measure(data, model, plans, weights, caches, fps, _written(state, mark), save)
    save(cells)
    write_text(target / "report.md", markdown(cells, data.name, clips, fps))
    table = FittedTable(("s", "losses alone"))
    for i, head in enumerate(HEADS):
        table.add_column(head, no_wrap=i > 2)
    for cell in cells:
        table.add_row(*_texts(cell))
    terminal().print(table)
    print(f"wrote joint.jsonl and report.md to {Path(target)}")
    return cells


def _written(state: Path, mark: dict[str, Any]) -> list[Cell]:
    """Configurations of an earlier run with the same model, clips and rate."""
    if not state.is_file():
        return []
    rows = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines()]
    same = [row for row in rows if {name: row.get(name) for name in mark} == mark]
    return [Cell(**{name: value for name, value in row.items() if name not in mark}) for row in same]


HEADS = ("plan", "weights", "cache", "accuracy", "loss", "losses alone", "visual tokens", "s")


def _texts(c: Cell) -> tuple[str, ...]:
    if c.accuracy is None:
        return c.plan, c.weights, c.cache, "-", "-", "-", "-", f"does not run: {c.why}"
    losses = ["-" if value is None else f"{100 * value:.1f}" for value in (c.loss, c.alone)]
    return c.plan, c.weights, c.cache, f"{100 * c.accuracy:.1f}", *losses, f"{c.tokens:.0f}", f"{c.seconds:.1f}"


def markdown(cells: Sequence[Cell], name: str, clips: int, fps: float) -> str:
    """The table in Markdown, with the hardware."""
    from vtoken.bench.machine import describe

    head = (
        f"# Plans, weights and caches together\n\n{name}, {clips} clips, {fps:g} frames a second; {describe('cpu')}\n"
    )
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    lines += ["| " + " | ".join(text.replace("|", "/") for text in _texts(cell)) + " |" for cell in cells]
    return "\n".join([head, *lines, ""])

"""VideoState: one video inside a language model's cache, which grows by chunks and is asked at any moment.

What a chunk adds depends neither on how the video was cut into chunks nor on other states of the same model: positions
are counted here and always passed, and nothing of the model's own state is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtoken.data.frames import GateMap
from vtoken.data.report import Report
from vtoken.encoders.carry import Carry
from vtoken.engine.call import Call
from vtoken.engine.encode import encode
from vtoken.engine.prepare import prepare
from vtoken.engine.state import cache as caches
from vtoken.engine.state.clock import Clock
from vtoken.engine.state.held import HeldSteps, Step
from vtoken.engine.state.plans import held_rule
from vtoken.engine.state.tail import as_argument, generate_behind, logits_behind
from vtoken.errors import InputError
from vtoken.families.compat import behind, core, input_device
from vtoken.families.family import Family
from vtoken.families.features import Clip, Features
from vtoken.families.layout import Layout, square
from vtoken.methods.plan import Plan


@dataclass(frozen=True)
class Columns:
    """Columns that came into a cache.

    Attributes:
        step: int64 [n], the time step of each; -1 for text before the video.
        cell: int64 [n], its cell; -1 for text.
        places: int64 [axes, n], positions.
    """

    step: Tensor
    cell: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.step)


class VideoState:
    """One video in a language model's cache.

    Attributes:
        plan: what runs on every chunk.
        report: tokens and milliseconds so far.
        clock: positions.
        shape: (h, w), cells of a step; (0, 0) before the first.
        seconds: start of every step since the video began.
        cache: the KV cache.

    Raises:
        UnsupportedError: a family or a plan that cannot run chunk by chunk; the message says what to do.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        plan: Plan,
        tokenizer: Any,
        head: Tensor,
        positions: str = "trained",
        report: Report | None = None,
    ) -> None:
        self.model, self.family, self.tokenizer = core(model), family, tokenizer
        self.report = report or Report()
        self.clock = Clock.of(self.model, positions)
        self.plan, rule = held_rule(plan, self.model, self.report)
        self.report.plan = str(self.plan)
        self.cache = caches.new_cache(self.model, rule is not None)
        self.steps, self.frames, self.shape = 0, 0, (0, 0)
        self.seconds: list[float] = []
        self._origin, self._fresh = 0.0, list[Columns]()
        self._carry = Carry()
        self._held = HeldSteps(self.model, family, rule, self.clock.axes) if rule is not None else None
        self._text(head)

    @torch.no_grad()
    def push(self, clip: Clip) -> None:
        """Read the next time steps.

        Args:
            clip: whole time steps behind those that were pushed; references and scenes of its gate count from the
                video's start, and times are the video's own.

        Raises:
            InputError: no steps, or another grid than before.
            UnsupportedError: a gate that sends repeated cells again.
        """
        if not self.steps:
            self._origin = float(clip.times[0])
        count = len(clip.gate.keep)
        chunk = replace(clip, gate=_relative(clip.gate, self.steps))
        steps = [self._step(chunk, t) for t in range(count)]
        ids = torch.cat([step.ids for step in steps]).to(input_device(self.model))
        call = Call(self.model, self.family, self.plan, report=self.report)
        call.clips, call.carry, call.positions = [chunk], self._carry, "stock"
        if self._held is None:
            self._drop(call, ids, steps)
        else:
            with self.report.stage("encode", ids.device):
                rows = self._encoded(call, ids, chunk)
            self._grow(self._held.push(call, rows, steps))
        self.steps += count
        self.frames += len(clip.pts)

    def ask(self, ids: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        """int64 [m]: what the model answers to the ids behind the video; the state stays as it was.

        Args:
            ids: int64 [n], n > 0: the prompt behind the video.
            options: further arguments of ``generate``.
        """
        with self.closed() as start, self.report.stage("generate", input_device(self.model)):
            return generate_behind(self.model, self.cache, start, ids, options or {})

    def logits(self, ids: Tensor) -> Tensor:
        """[V]: logits behind the ids, which follow the video; the state stays as it was."""
        with self.closed() as start:
            return logits_behind(self.model, self.cache, start, ids)

    @contextmanager
    def closed(self) -> Iterator[Tensor]:
        """The video as if it ended here: int64 [axes], the position of the text behind it. Then it is put back."""
        saved = caches.snapshot(self.cache)
        marks = {name: copy.copy(getattr(self, name)) for name in ("clock", "_fresh", "_held")}
        if marks["_held"] is not None:
            marks["_held"] = self._held.copied()  # type: ignore[union-attr]
        tokens = self.report.tokens
        try:
            with torch.no_grad():
                self._end()
            yield torch.full((self.clock.axes,), self.clock.next)
        finally:
            caches.restore(self.cache, saved)
            for name, value in marks.items():
                setattr(self, name, value)
            self.report.tokens = tokens

    @torch.no_grad()
    def keep(self, index: Tensor | list[Tensor]) -> None:
        """Take columns out of the cache.

        Args:
            index: int64 [n] ascending, the columns that stay in every layer; or a list, [H, n] a layer, where heads
                choose apart.
        """
        caches.take_columns(self.cache, index)

    def fresh(self) -> list[Columns]:
        """The columns that came since the last call, in the order in which they are stored."""
        out, self._fresh = self._fresh, []
        return out

    def lower(self, constant: int) -> None:
        """Count on from positions that are lower by a constant, where those of the cache were lowered alike."""
        self.clock.next -= constant
        self.clock.base = None if self.clock.base is None else self.clock.base - constant
        if self._held is not None:
            self._held.lower(constant)

    def free(self) -> None:
        """Let go of the cache; the state cannot be used any more."""
        self.cache, self._carry, self._held = caches.new_cache(self.model, False), Carry(), None

    @property
    def stored(self) -> int:
        """Columns in the cache."""
        return caches.stored(self.cache)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return caches.nbytes(self.cache)

    def _step(self, chunk: Clip, t: int) -> Step:
        """Ids and positions of one step; the clock moves on."""
        frames = chunk.grid.frames
        gate = GateMap(*(getattr(chunk.gate, f.name)[t : t + 1] for f in fields(GateMap)))
        own = replace(chunk, rows=chunk.rows[:0], gate=gate, pts=chunk.pts[t * frames : (t + 1) * frames])
        ids = torch.as_tensor(self.family.chunk(self.model, self.tokenizer, own))
        visual = self.family.placeholders(self.model, self.family.clip_modality, ids[None], {})[0]
        shape = gate.keep.shape[1:]
        cells = int(visual.sum())
        if cells != gate.keep[0].size:
            shape = square(cells)[1:]
        self.shape = shape[0], shape[1]
        self.seconds.append(float(own.times[0]) - self._origin)
        places = self.clock.chunk(visual, self.shape, self.seconds[-1:])
        return Step(self.steps + t, self.shape, ids, visual, places)

    def _encoded(self, call: Call, ids: Tensor, chunk: Clip) -> Any:
        """Rows of the chunk's kept cells; None where there are none."""
        if not chunk.gate.keep.any():
            self.report.cells += int(
                self.family.placeholders(self.model, self.family.clip_modality, ids[None], {}).sum()
            )
            return None
        (rows,) = encode(call, {"input_ids": ids[None]}, self.plan.gate is not None)
        self.report.cells += len(rows.features.layout.position)
        self.report.encoded += rows.features.encoded
        return rows

    def _drop(self, call: Call, ids: Tensor, steps: list[Step]) -> None:
        """Push the text and the tokens that the plan leaves."""
        places = torch.cat([step.places for step in steps], dim=1).to(ids.device)
        step = torch.cat([torch.full((len(s.ids),), s.number) for s in steps])
        cell = torch.cat([s.cell for s in steps])
        if call.clips is not None and not call.clips[0].gate.keep.any():
            self.report.cells += int((cell >= 0).sum())
            stays = cell < 0
            inputs = {"input_ids": ids[stays.to(ids.device)][None]}
            places, step, cell = places[:, stays.to(ids.device)], step[stays], cell[stays]
        else:
            given = {"input_ids": ids[None], "position_ids": as_argument(places, 0)}
            ready = prepare(call, given, generating=True)
            slots = ready.cut.slots[0].cpu()
            inputs = {n: ready.inputs[n] for n in ("input_ids", "mm_encoder_outputs")}
            places = ready.inputs["position_ids"]
            places = places if places.dim() == 2 else places[-3:, 0]
            step, cell = step[slots], cell[slots]
        if self.clock.kind == "flat":  # such families count what is there
            self.clock.next -= len(ids) - len(step)
            places = torch.arange(self.clock.next - len(step), self.clock.next, device=ids.device)[None]
        if len(step):
            self._run(inputs, places)
            self._fresh.append(Columns(step, cell, places.cpu()))

    def _grow(self, grown: Any) -> None:
        """Push settled steps of held cells."""
        if grown is None:
            return
        with self.report.stage("prefill", input_device(self.model)):
            grown.run(self.model, self.cache)
        self.report.tokens += grown.visual
        self._fresh.append(Columns(grown.step, grown.cell, grown.columns))

    def _text(self, ids: Tensor) -> None:
        if len(ids):
            none, places = torch.full((len(ids),), -1), self.clock.text(len(ids))
            self._run({"input_ids": ids.to(input_device(self.model))[None]}, places)
            self._fresh.append(Columns(none, none, places))

    def _end(self) -> None:
        """What comes once the video is over."""
        if self._held is not None:
            self._grow(self._held.finish())
        ids, x = self.family.ending(self.model)
        if ids:
            given: dict[str, Any] = {"input_ids": torch.tensor([ids], device=input_device(self.model))}
            if x is not None:
                empty = Features(x[:0], torch.zeros(0, dtype=torch.long), Layout.of_grids([]), torch.zeros(0))
                given["mm_encoder_outputs"] = {
                    self.family.clip_modality: self.family.pack(self.family.clip_modality, empty, [x])
                }
            self._run(given, self.clock.text(len(ids)))

    @torch.no_grad()
    def _run(self, inputs: dict[str, Any], places: Tensor) -> None:
        """Rows through the base model, without its head."""
        device = inputs["input_ids"].device
        places = as_argument(places.to(device), int(self.cache.get_seq_length()))
        with self.report.stage("prefill", device):
            self.model.base_model(**inputs, position_ids=places, **behind(self.model, self.cache))


def _relative(gate: GateMap, start: int) -> GateMap:
    """The map of a chunk, whose references count from its first step; -1 is anything before it.

    Raises:
        InputError: no time steps, or cells that are sent again.
    """
    if not len(gate.keep):
        raise InputError("a chunk needs at least one time step")
    if gate.repeated.any():
        raise InputError(
            "cells that repeat an earlier feature need the whole video; leave out anchors with reuse, and recall"
        )
    return replace(gate, reference=np.maximum(gate.reference - start, -1).astype(gate.reference.dtype))

"""What could stand in for hold where attention cannot see every slot, on the reference model.

    python -m benchmarks.hold_fallback                                        # 60 validation clips, minutes
    python -m benchmarks.hold_fallback --out docs/benchmarks/hold_fallback.txt

The same rows of each plan, read in several ways, all written out here layer by layer and without the engine:

    hold              every slot of the video has the key of the row it shows, turned to the slot
    dropped           rows alone
    log run           a row's score gets the logarithm of the number of slots that show it (a bias in the mask)
    smeared           a row's key is the mean of its keys at all slots that show it (no mask needed)
    slots, question   the video's rows see rows, the question sees every slot (no mask needed)

Accuracy is that of greedy answers under teacher forcing, the mean over the tasks; +- is one standard error by bootstrap
over clips, "of all" the paired share of the accuracy with all tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from training.reference import batches
from vtoken import families
from vtoken.bench import machine
from vtoken.data.report import Report
from vtoken.engine.call import Call
from vtoken.engine.hold.rotary import Rotary, rotary_of, turn
from vtoken.engine.prepare import prepare
from vtoken.methods.plan import Plan
from vtoken.output.files import write_text
from vtoken.qa.load import load
from vtoken.qa.prompt import prompts
from vtoken.qa.read import Sampling, read_clip
from vtoken.reference import data
from vtoken.reference import model as shape
from vtoken.reference.questions import TASKS

FPS, SEED = 16, 500
HIDDEN = float("-inf")


class Way(NamedTuple):
    """How rows are read: whether the video's rows and the question see slots, and what rows get in place of them."""

    video: bool = False
    question: bool = False
    log: float = 0.0
    smear: bool = False


WAYS = {
    "hold": Way(video=True, question=True),
    "dropped": Way(),
    "log run 0.5": Way(log=0.5),
    "log run": Way(log=1.0),
    "smeared": Way(smear=True),
    "smeared, log run": Way(log=1.0, smear=True),
    "slots, question": Way(question=True),
    "smeared; slots, question": Way(question=True, smear=True),
}
PLANS = {
    "none": ("dropped",),
    "grt": tuple(WAYS),
    "grt:second=none": tuple(WAYS),
    "grt:tau=0,second=none": tuple(WAYS),
    "grt:hold=off": ("dropped",),
}


@dataclass(frozen=True)
class Clip:
    """A clip under a plan: the columns of its prompt that are computed, int64 [p], their embeddings [p, D], and the row
    (0 to p - 1) that every column of the prompt shows, int64 [C], or -1."""

    columns: Tensor
    embeds: Tensor
    shows: Tensor
    share: float


class Reader:
    """The reference model, read in every way."""

    def __init__(self) -> None:
        self.model, self.processor = load("reference", "cpu", "float32")
        self.family, self.packer = families.of(self.model), batches.Packer(self.model, shape.tokenizer())
        self.text = self.model.model.language_model
        self.rotary: Rotary = rotary_of(self.text, 3)
        self.ids, self.positions = self.packer.prefix(FPS)

    def clip(self, frames: Any, plan: Plan) -> Clip:
        """Encode and reduce as ``ask`` does."""
        read = read_clip(
            frames, self.family.preprocess(self.model), plan, Report(), Sampling(FPS, native_fps=float(FPS))
        )
        inputs = prompts(self.family, self.model, self.processor, read, ["What"])[0]
        ready = prepare(Call(self.model, self.family, plan, clips=[read]), inputs, True)
        n = len(self.ids)
        columns = ready.cut.slots[0]
        columns = columns[columns < n]
        number = torch.full((n,), -1)
        number[columns] = torch.arange(len(columns))
        shows = number if ready.hold is None else number[ready.hold.shows[0, :n].clamp(min=0)]
        embeds = self.model.get_input_embeddings()(self.ids[columns])
        visual = self.ids[columns] == self.model.config.video_token_id
        embeds[visual] = torch.cat(ready.kept[0].parts).float()
        total = int((self.ids == self.model.config.video_token_id).sum())
        return Clip(columns, embeds, shows, float(visual.sum()) / total)

    def answers(self, clip: Clip, way: Way, questions: list[Any]) -> dict[str, list[bool]]:
        """Whether each answer is right, by task."""
        text, goals, starts, tasks = self.packer._slots([questions])
        got = self._read(clip, way, text, starts).argmax(-1)
        out: dict[str, list[bool]] = {}
        for _, first, last, q in tasks:
            out.setdefault(q.task, []).append(bool((got[first:last] == goals[0, first:last]).all()))
        return out

    def _read(self, clip: Clip, way: Way, text: Tensor, starts: list[int]) -> Tensor:
        """Logits [n, V] of the questions."""
        p, asked = len(clip.columns), text.shape[1]
        near = self.positions[:, clip.columns]
        offsets = [torch.arange(b - a) for a, b in zip(starts, [*starts[1:], asked], strict=True)]
        behind = (int(self.positions.max()) + 1 + torch.cat(offsets)).expand(3, -1)
        angles = self.text.rotary_emb(clip.embeds, torch.cat([near, behind], 1)[:, None])
        seen = (clip.shows >= 0).nonzero().squeeze(1)
        row = clip.shows[seen]
        count = torch.bincount(row, minlength=p).clamp(min=1)
        cos, sin = (a[0] for a in self.rotary.between(near[:, row][:, None], self.positions[:, seen][:, None]))
        mean_cos, mean_sin = (torch.zeros(p, a.shape[1]).index_add(0, row, a) / count[:, None] for a in (cos, sin))
        among = self.packer._mask(p, starts, asked)[0, 0][:, p:]
        bias = way.log * count.log()
        masks = {  # by whether slots are seen: of the video's rows, and of the questions
            False: (torch.triu(torch.full((p, p), HIDDEN), 1) + bias, torch.cat([bias.expand(asked, -1), among], 1)),
            True: (
                torch.zeros(p, len(seen)).masked_fill(seen[None] > clip.columns[:, None], HIDDEN),
                torch.cat([torch.zeros(asked, len(seen)), among], 1),
            ),
        }
        x = torch.cat([clip.embeds, self.model.get_input_embeddings()(text[0])])[None]
        for layer in self.text.layers:
            q, k, v = self._heads(layer, x, angles)
            rows = turn(k[:, :, :p], mean_cos, mean_sin, self.rotary.neighbours) if way.smear else k[:, :, :p]
            slots = turn(k[:, :, :p][:, :, row], cos, sin, self.rotary.neighbours)
            keys = {False: (rows, v[:, :, :p]), True: (slots, v[:, :, :p][:, :, row])}
            video = attend(q[:, :, :p], *keys[way.video], attn_mask=masks[way.video][0])
            late = [torch.cat([a, b[:, :, p:]], 2) for a, b in zip(keys[way.question], (k, v), strict=True)]
            question = attend(q[:, :, p:], *late, attn_mask=masks[way.question][1])
            x = x + layer.self_attn.o_proj(torch.cat([video, question], 2).transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.lm_head(self.text.norm(x)[0, p:])

    def _heads(self, layer: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

        own, h = layer.self_attn, layer.input_layernorm(x)
        wide = (1, h.shape[1], -1, own.head_dim)
        q, k = own.q_norm(own.q_proj(h).view(wide)), own.k_norm(own.k_proj(h).view(wide))
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *angles)
        return q, k, own.v_proj(h).view(wide).transpose(1, 2)


Found = dict[tuple[str, str], list[dict[str, list[bool]]]]


@torch.no_grad()
def measure(clips: int, seed: int) -> tuple[Found, dict[str, list[float]]]:
    """Answers by plan and way, a dictionary for each clip; and the share of the rows by plan."""
    reader, found, shares = Reader(), {}, {}
    for i in range(clips):
        one = data.clip(seed + i, "validation")
        frames, questions = data.frames(one, FPS)[0], data.questions(one)
        for plan, ways in PLANS.items():
            clip = reader.clip(frames, Plan.parse(plan))
            shares.setdefault(plan, []).append(clip.share)
            for way in ways:
                found.setdefault((plan, way), []).append(reader.answers(clip, WAYS[way], questions))
    return found, shares


def mean(answers: Sequence[dict[str, list[bool]]]) -> dict[str, float]:
    """Accuracy by task."""
    return {t: float(np.mean([r for clip in answers for r in clip.get(t, [])] or [0.0])) for t in TASKS}


def table(found: Found, shares: dict[str, list[float]]) -> str:
    """One line a plan and way."""
    full, r = found["none", "dropped"], np.random.default_rng(0)
    draws = [r.integers(0, len(full), len(full)) for _ in range(1000)]
    lines = [f"{'plan':22s} {'read as':24s} {'rows':>5s}  accuracy    of all, 95 %        " + " ".join(TASKS)]
    for (plan, way), answers in found.items():
        tasks = mean(answers)
        each = np.array(
            [
                [np.mean(list(mean([x[i] for i in draw]).values())) for x in (answers, full)]
                for draw in draws[: len(draws) if len(full) > 1 else 1]
            ]
        )
        low, high = np.percentile(100 * each[:, 0] / each[:, 1], [2.5, 97.5])
        value, all_tokens = (np.mean(list(t.values())) for t in (tasks, mean(full)))
        rows, error = 100 * np.mean(shares[plan]), 100 * each[:, 0].std()
        lines.append(
            f"{plan:22s} {way:24s} {rows:5.1f}  {100 * value:5.1f} +-{error:.1f}"
            f"  {100 * value / all_tokens:5.1f} [{low:5.1f}, {high:5.1f}]  "
            + " ".join(f"{100 * tasks[t]:{len(t)}.0f}" for t in TASKS)
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hold_fallback", description=__doc__, formatter_class=about
    )
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=SEED, help=f"first validation clip (default {SEED})")
    parser.add_argument("--out", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    head = f"reference model, {args.clips} validation clips from seed {args.seed}, {FPS} fps; {machine.describe('cpu')}"
    text = f"{head}\n\n{table(*measure(args.clips, args.seed))}\n"
    print(text)
    if args.out is not None:
        write_text(args.out, text)


if __name__ == "__main__":
    main()

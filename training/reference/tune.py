"""``python -m training.reference.tune``: fine-tune the reference model with a plan in the loop, resumable.

The engine runs the plan, so every step learns from what the plan leaves of its videos: gradients flow through the
kept tokens into the encoder and the language model. Several plans take turns by share of the steps (``--plans``), as
LLaVolta (arXiv 2406.20092) does: many tokens leave first, fewer later, none in the end. What comes out is no longer
training-free and must be reported apart. With peft installed low-rank adapters are trained and merged in the end,
else all weights are.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from training.reference.labels import IGNORE
from vtoken import families
from vtoken.data.report import Report
from vtoken.engine import run as engine
from vtoken.engine.call import Call
from vtoken.engine.check import check
from vtoken.errors import InputError
from vtoken.families.compat import core
from vtoken.methods.plan import Plan
from vtoken.output import program
from vtoken.qa import load as loading
from vtoken.qa.prompt import prompts, stack, tokenizer_of
from vtoken.qa.read import Sampling, read_clip
from vtoken.reference import data
from vtoken.reference import model as shape
from vtoken.reference.world import SPAN

RATES = {True: 1e-3, False: 2e-4}  # learning rate of adapters, of all weights
TELL = 10  # steps between reports
HELD = ("optimizer", "step", "log")  # parts of a checkpoint, beside weights and settings


@dataclass(frozen=True)
class Settings:
    """What a run is; a checkpoint goes on under the same settings only.

    Attributes:
        plan: the plan in the loop, budget included; of several the last, which is also that of validation.
        steps: updates in all.
        seed: of clips, questions and adapters.
        rank: of the adapters; 0 trains all weights.
        lr: peak learning rate.
        fps: rates of the clips, one a step.
        clips, questions: clips a step, questions about each.
        earlier: plans before it, each with the share of the steps that it has; it has the rest.
    """

    plan: Plan
    steps: int = 500
    seed: int = 0
    rank: int = 0
    lr: float = RATES[False]
    fps: tuple[int, ...] = (4, 8, 16)
    clips: int = 3
    questions: int = 6
    earlier: tuple[tuple[Plan, float], ...] = ()

    def __post_init__(self) -> None:
        numbers = {"steps": 1, "seed": 0, "rank": 0, "clips": 1, "questions": 1}
        for name, least in numbers.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.lr > 0 or not self.fps or min(self.fps) <= 0:
            raise InputError(f"lr={self.lr} and fps={self.fps} must be above 0")
        shares = [share for _, share in self.earlier]
        if any(not share > 0 for share in shares) or sum(shares) >= 1:
            raise InputError(
                f"shares of the steps {shares} must be above 0 and below 1 in all; the last plan has the rest"
            )
        if self.rank and find_spec("peft") is None:
            raise InputError(f"rank={self.rank}: adapters need peft (pip install 'vtoken[train]'); rank=0 trains all")

    def key(self) -> dict[str, Any]:
        shown = {"plan": str(self.plan), "earlier": [f"{plan}@{share:g}" for plan, share in self.earlier]}
        return {f.name: getattr(self, f.name) for f in fields(self)} | shown

    def at(self, step: int) -> Plan:
        """The plan of a step."""
        end = 0.0
        for plan, share in self.earlier:
            end += share
            if step < round(end * self.steps):
                return plan
        return self.plan


def scheduled(text: str, keep: float | None = None) -> tuple[Plan, tuple[tuple[Plan, float], ...]]:
    """The last plan, and those before it with their shares, of ``"pool:keep=0.125@0.3; pool:keep=0.5@0.3; none"``.

    Args:
        keep: budget of the plans that take one and bring none.

    Raises:
        InputError: an unknown plan, a share that is no number, or a plan before the last one without a share.
    """
    *first, last = [part.strip() for part in text.split(";") if part.strip()] or [""]
    earlier = []
    for part in first:
        plan, mark, share = part.rpartition("@")
        try:
            earlier.append((_plan(plan, keep), float(share)))
        except ValueError:
            told = f"the share {share!r} is no number" if mark else "it has no share of the steps"
            raise InputError(
                f"--plans: {part!r}: {told}; write PLAN@0.3, and leave it out of the last plan only"
            ) from None
    return _plan(last, keep), tuple(earlier)


def _plan(text: str, keep: float | None) -> Plan:
    """A plan that takes the budget only where it needs one."""
    try:
        return Plan.parse(text)
    except InputError:
        return Plan.parse(text, keep)


@dataclass
class Run:
    """A model in training: ``adapted`` is peft's wrapper around it (None without adapters), ``log`` a row a report."""

    model: Any
    words: Any
    settings: Settings
    adapted: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)


def start(model: Any, processor: Any, settings: Settings) -> Run:
    """Make a model ready; adapters go into every linear layer of its encoder and language model, in place.

    Raises:
        UnsupportedError: the plan cannot run on the model.
    """
    for plan in (settings.plan, *(plan for plan, _ in settings.earlier)):
        check(plan, families.of(model))
    adapted = None
    if settings.rank:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(settings.seed)
        layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
        adapted = get_peft_model(
            model, LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=layers)
        )
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    return Run(
        model, processor, settings, adapted, torch.optim.AdamW(weights, settings.lr, (0.9, 0.98), weight_decay=0)
    )


def batch(run: Run, step: int, split: str = "train") -> tuple[dict[str, Any], Tensor]:
    """Arguments of ``forward`` for the questions of one step, and labels int64 [B, L]; rows are padded on the left."""
    s, family, tokenizer = run.settings, families.of(core(run.model)), tokenizer_of(run.words)
    plan = s.at(step) if split == "train" else s.plan
    r = np.random.default_rng((s.seed, step, 0 if split == "train" else 1))
    fps = int(r.choice(s.fps))
    rows, labels, clips = [], [], []
    for _ in range(s.clips):
        one = data.clip(int(r.integers(SPAN)), split)
        frames, _ = data.frames(one, fps)
        sampling = Sampling(fps, native_fps=fps)
        clip = read_clip(frames, family.preprocess(run.model), plan, Report(), sampling)
        asked = _choose(data.questions(one), s.questions, r)
        for q, row in zip(asked, prompts(family, run.model, run.words, clip, [q.text for q in asked]), strict=True):
            answer = tokenizer(q.answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            answer = torch.tensor([answer])
            labels.append(torch.cat([torch.full_like(row["input_ids"], IGNORE), answer], 1))
            row["input_ids"] = torch.cat([row["input_ids"], answer], 1)
            row["attention_mask"] = torch.ones_like(row["input_ids"])
            row["mm_token_type_ids"] = pad(row["mm_token_type_ids"], (0, answer.shape[1]))
            rows.append(row)
            clips.append(clip)
    inputs = stack(rows, tokenizer.pad_token_id)
    width = inputs["input_ids"].shape[1]
    return inputs | {"clips": clips}, torch.cat([pad(x, (width - x.shape[1], 0), value=IGNORE) for x in labels])


def _choose(questions: list[data.Question], n: int, r: np.random.Generator) -> list[data.Question]:
    """n questions, every task as likely as any other."""
    tasks = {q.task: [x for x in questions if x.task == q.task] for q in questions}
    names = list(tasks)
    return [tasks[t][int(r.integers(len(tasks[t])))] for t in (names[int(r.integers(len(names)))] for _ in range(n))]


def forward(run: Run, inputs: dict[str, Any], labels: Tensor, plan: Plan | None = None) -> tuple[Tensor, float]:
    """Loss of the answers under a plan (by default the step's), and the share of answers with every token right."""
    device = run.model.device
    inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
    model = core(run.model)
    call = Call(model, families.of(model), plan or run.settings.at(run.step), clips=inputs.pop("clips"))
    out = engine.forward(call, inputs | {"labels": labels.to(device), "use_cache": False}, run.model)
    n = int((labels != IGNORE).sum(1).max())  # answers end the rows, and no plan drops text
    goals, guesses = labels[:, -n:], out.logits[:, -n - 1 : -1].argmax(-1).cpu()
    return out.loss, float(((goals == guesses) | (goals == IGNORE)).all(1).float().mean())


def train_step(run: Run, inputs: dict[str, Any], labels: Tensor) -> dict[str, float]:
    """One update."""
    loss, right = forward(run, inputs, labels)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = [p for group in run.optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(weights, 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = program.rate(run.step, run.settings.steps, run.settings.lr)
    run.optimizer.step()
    run.step += 1
    return {"loss": float(loss.detach()), "right": right}


@torch.no_grad()
def validate(run: Run, batches: int = 4) -> float:
    """Share of answers right on validation clips under the plan, by teacher forcing."""
    run.model.eval()
    found = [forward(run, *batch(run, i, "validation"), run.settings.plan)[1] for i in range(batches)]
    run.model.train()
    return float(np.mean(found))


def save(run: Run, path: Path) -> None:
    """Write a checkpoint."""
    weights = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
    program.save(run, path, HELD, weights=weights, settings=run.settings.key())


def resume(run: Run, path: Path) -> Run:
    """Continue from a checkpoint.

    Raises:
        InputError: it was made under other settings.
    """
    held = program.read(path)
    mine = run.settings.key()
    if changed := [
        f"{n}={held['settings'].get(n)} there, {v} here" for n, v in mine.items() if held["settings"].get(n) != v
    ]:
        raise InputError(
            f"{path} is of a run with other settings ({'; '.join(changed)}); give the same, or another --out"
        )
    run.model.load_state_dict(held["weights"], strict=False)
    program.restore(run, held, HELD)
    return run


def export(run: Run, folder: Path) -> None:
    """Write a checkpoint folder that ``vtoken.load`` takes; adapters are merged, which ends the training."""
    model = run.model if run.adapted is None else run.adapted.merge_and_unload()
    shape.save(model, tokenizer_of(run.words), folder)


def tune(run: Run, args: argparse.Namespace, path: Path) -> None:
    """Train to the last step, with a checkpoint and a table of losses in ``--out``."""
    since: list[dict[str, float]] = []  # steps since the last report

    def advance() -> None:
        since.append(train_step(run, *batch(run, run.step)))

    def report() -> dict[str, float]:
        means = {name: round(float(np.mean([one[name] for one in since])), 4) for name in since[0]}
        since.clear()
        return means

    if run.step == 0:
        print(f"validation before: {validate(run):.3f} of the answers right under {run.settings.plan}", flush=True)
    program.loop(run, args, advance, report, lambda: save(run, path), TELL)
    print(f"validation after: {validate(run):.3f} of the answers right under {run.settings.plan}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = program.parser("training.reference.tune", __doc__, "out/tuned", steps=500, threads=2)
    parser.add_argument("--plan", default="grt", help="the plan in the loop (default grt)")
    parser.add_argument(
        "--plans", help="several in turn, each but the last with its share of the steps: 'pool:keep=0.125@0.5; none'"
    )
    parser.add_argument("--keep", type=float, help="its budget, where it takes one")
    parser.add_argument("--model", default=loading.REFERENCE, help="reference checkpoint to start from")
    parser.add_argument("--rank", type=int, help="rank of the adapters, 0 for all weights (default 16 with peft)")
    parser.add_argument(
        "--lr", type=float, help=f"peak learning rate (default {RATES[True]} for adapters, else {RATES[False]})"
    )
    parser.add_argument("--fps", default="4,8,16", help="rates of the clips (default 4,8,16)")
    parser.add_argument("--clips", type=int, default=3, help="clips a step")
    parser.add_argument("--questions", type=int, default=6, help="questions about each clip")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    path = program.begin(args)
    rank = args.rank if args.rank is not None else 16 if find_spec("peft") else 0
    fps = tuple(int(f) for f in args.fps.split(","))
    plan, earlier = scheduled(args.plans, args.keep) if args.plans else (Plan.parse(args.plan, args.keep), ())
    lr = args.lr or RATES[rank > 0]
    settings = Settings(plan, args.steps, args.seed, rank, lr, fps, args.clips, args.questions, earlier)
    model, processor = loading.load(args.model, args.device, "float32")
    run = start(model, processor, settings)
    if path.is_file():
        resume(run, path)
    tune(run, args, path)
    export(run, args.out / "weights")
    print(f"wrote {args.out / 'weights'}; try vtoken.load({str(args.out / 'weights')!r})")


if __name__ == "__main__":
    from vtoken.cli.main import guarded

    sys.exit(guarded(main))

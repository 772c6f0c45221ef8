"""Surprise inside ``wrap``, ``ask``, ``ClipMemory`` and ``vtoken bench``: on every family that can look at frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import vtoken
from tests.engine.test_gated import touched
from tests.families.oracle import oracle_generate, oracle_logits, visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, LAYOUTS, model_of, moving_block
from tests.families.tokenizer import tokenizer_of
from tests.thinkjepa.tiny import vjepa
from vtoken import families
from vtoken.bench import run as bench
from vtoken.bench.models import random_model
from vtoken.bench.pipeline import Encoder, run_pass
from vtoken.data.frames import Frames
from vtoken.data.report import CellState, Report
from vtoken.errors import InputError, UnsupportedError
from vtoken.families.geometry import geometry
from vtoken.methods.plan import Plan
from vtoken.qa.cache import ClipMemory
from vtoken.qa.prompt import prompts
from vtoken.qa.read import Sampling, open_video, read_clip
from vtoken.reference.synthetic import render
from vtoken.video.write import write_video

pytestmark = pytest.mark.slow
POOLED = ["llava_next_video", "llava_onevision"]
NAMES = ["qwen2_5_vl", "qwen3_vl", "llava", *POOLED]
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def pathway(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pathway as plans write it, with a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("vjepa")
    vjepa().save_pretrained(folder)
    return f"jepa_surprise:encoder={folder},clip=4,past=4"


def video_of(name: str, clip: np.ndarray | None = None) -> tuple[Any, dict[str, Tensor]]:
    """Model, and the stock inputs of a prompt about a clip; default a moving block."""
    model, family = model_of(name), FAMILIES[name]
    clip = moving_block(10, *family.size, seed=1) if clip is None else clip
    visual = [("video", clip)] if "video" in family.modalities else [("image", frame[None]) for frame in clip]
    return model, family.inputs(model, [[("text", 5), *visual, ("text", 4)]])


def kept_columns(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """bool [1, N]: the columns that the wrapped model keeps."""
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    keep[0, prepared(model, inputs).cut.slots[0]] = True
    return keep


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_nothing_dropped_is_bit_identical(name: str, pathway: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, *FAMILIES[name].size, 3), dtype=np.uint8)
    model, inputs = video_of(name, noise)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with vtoken.wrapped(model, f"{pathway} | surprise:keep=1.0"):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        assert model.vtoken.report.tokens == model.vtoken.report.cells > 0
        model.vtoken.plan = f"mad:threshold=0 | {pathway} | surprise:keep=1.0"
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dropped_equals_sliced_language_model(name: str, pathway: str) -> None:
    model, inputs = video_of(name)
    with vtoken.wrapped(model, f"{pathway} | surprise", keep=0.3):
        keep, logits = kept_columns(model, inputs), model(**inputs).logits
        generated = model.generate(**inputs, **GREEDY)
        report = model.vtoken.report
    assert report.tokens == int(0.3 * report.cells + 0.5) and report.encoded == report.cells
    torch.testing.assert_close(logits[0], oracle_logits(model, inputs, keep)[0], atol=1e-4, rtol=1e-5)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(generated[:, width:], oracle_generate(model, inputs, keep, 4))
    assert set(report.milliseconds) == {"pathway", "encode", "reduce", "prefill", "generate"}


def seen_and_sent(name: str, model: Any, inputs: dict[str, Tensor], plan: Plan) -> tuple[Tensor, Tensor]:
    """Surprise of the language model's cells and which the gate sends, both [steps, cells], from the pathway's maps."""
    (clip,) = model.vtoken.family.clips(model, inputs, plan.gate, None, None)
    sent, pixels = torch.from_numpy(clip.gate.sent), inputs.get("pixel_values_videos", inputs.get("pixel_values"))
    assert pixels is not None
    thw = inputs["video_grid_thw"][0] if "video_grid_thw" in inputs else None
    frames = model.vtoken.family.preprocess(model).pictures(pixels[0] if name in POOLED else pixels, thw)
    seen = torch.from_numpy(plan.pathways[0].cells(frames, clip.grid)["surprise"]).clamp(max=1e9)
    if name not in POOLED:
        return seen.flatten(1), sent.flatten(1)
    side = -(-seen.shape[1] // 2) if name == "llava_onevision" else seen.shape[1] // 2
    stretch = {"mode": "bilinear"} if name == "llava_onevision" else {"mode": "area"}
    pooled = interpolate(seen[:, None], (side, side), **stretch).flatten(1)  # type: ignore[arg-type]
    return pooled, torch.stack([touched(step.flatten(), side * side) for step in sent])


@pytest.mark.parametrize("gate", ["", "mad:threshold=8", "mad:threshold=8,anchors=(4,reuse)", "l2:apply=reuse"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_stays_is_what_was_foreseen_least(name: str, gate: str, pathway: str) -> None:
    """Of the cells that the gate sends, none left out is above one that stays, at the surprise of its own step."""
    model, inputs = video_of(name)
    plan = Plan.parse(f"{gate}{' | ' if gate else ''}{pathway} | surprise:keep=0.7")
    with vtoken.wrapped(model, plan):
        seen, sent = seen_and_sent(name, model, inputs, plan)
        sent |= "apply=reuse" in gate
        keep = kept_columns(model, inputs)
    kept = keep[0, visual_mask(model, inputs["input_ids"])[0]][: sent.numel()].view_as(sent)
    assert int(kept.sum()) == int(0.7 * int(sent.sum()) + 0.5) and not (kept & ~sent).any()
    assert seen[kept].min() >= seen[sent & ~kept].max() - 1e-5
    assert kept[seen > 1e8].equal(sent[seen > 1e8]) and kept[2:].any()  # all that has no past, and more


ASK: dict[str, Any] = {"native_fps": 4, "fps": "native", "max_new_tokens": 4}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_the_encoder_of_the_package_is_named_in_the_report(name: str) -> None:
    model, video = model_of(name), moving_block(11, 84, 112, seed=3)
    plan = "grt | jepa_surprise:encoder=tiny | surprise"
    answer = vtoken.ask(model, tokenizer_of(model), video, "what moves?", plan=plan, tokens=9, **ASK)
    assert any("encoder=tiny is a toy" in note for note in answer.report.notes)
    seen = answer.clip.signals["surprise"]
    assert answer.report.tokens == 9 and np.isfinite(seen[2:]).all() and seen[2:].std() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_ask_drops_behind_a_gate(name: str, pathway: str) -> None:
    model, video = model_of(name), moving_block(11, 84, 112, seed=3)
    gated = vtoken.ask(model, tokenizer_of(model), video, "what moves?", plan="grt:hold=off", **ASK)
    answer = vtoken.ask(
        model, tokenizer_of(model), video, "what moves?", plan=f"grt:hold=off | {pathway} | surprise:keep=0.5", **ASK
    )
    assert answer.report.tokens == int(0.5 * gated.report.tokens + 0.5) < gated.report.tokens
    assert set(answer.report.milliseconds) - set(gated.report.milliseconds) == {"pathway"}
    assert (answer.cell_state == CellState.DROPPED).sum() == gated.report.tokens - answer.report.tokens
    assert answer.clip.signals["surprise"].shape == answer.clip.gate.keep.shape


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_ask_answers_as_generate_does(name: str, pathway: str) -> None:
    """The frames of ``ask`` and the pixels of a processor give the pathway the same pictures."""
    model, video, plan = model_of(name), moving_block(11, 84, 112, seed=3), f"{pathway} | surprise:keep=0.5"
    answer = vtoken.ask(model, tokenizer_of(model), video, "what moves?", plan=plan, **ASK)
    family, preprocess = families.of(model), families.of(model).preprocess(model)
    clip = read_clip(video, preprocess, Plan(), Report(), Sampling("native", native_fps=4))
    inputs = prompts(family, model, tokenizer_of(model), clip, ["what moves?"])[0]
    pixels = preprocess.pixel_values(Frames(video, np.arange(11) / 4), clip.grid)
    inputs["pixel_values" if name == "llava" else "pixel_values_videos"] = pixels
    with vtoken.wrapped(model, plan, fps=4):
        out = model.generate(**inputs, **GREEDY)
        assert model.vtoken.report.tokens == answer.report.tokens
    assert torch.equal(out[0, inputs["input_ids"].shape[1] :], answer.tokens)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", *POOLED])
@pytest.mark.parametrize("layout", ["image", "image_video", "batch_images"])
@torch.no_grad()
def test_images_have_no_past(name: str, layout: str, pathway: str) -> None:
    model = model_of(name)
    inputs = FAMILIES[name].inputs(model, LAYOUTS[layout])
    with vtoken.wrapped(model, f"{pathway} | surprise:keep=0.5"):
        model(**inputs)
        model.generate(**inputs, **GREEDY)
        report = model.vtoken.report
    assert report.notes.count("surprise: images have none; their tokens count as wholly new") == 1
    assert ("pathway" in report.milliseconds) == ("video" in layout)
    if layout == "image":
        assert report.tokens == int(0.5 * report.cells + 0.5)


@torch.no_grad()
def test_an_image_of_llava_is_a_clip_of_one_frame(pathway: str) -> None:
    model, inputs = model_of("llava"), FAMILIES["llava"].inputs(model_of("llava"), LAYOUTS["two_images"])
    with vtoken.wrapped(model, f"{pathway} | surprise:keep=0.5"):
        model.generate(**inputs, **GREEDY)
        assert model.vtoken.report.tokens * 2 == model.vtoken.report.cells and not model.vtoken.report.notes


@pytest.mark.parametrize("name", ["internvl", "llava_next", "gemma3", "mistral3", "video_llama_3"])
@pytest.mark.parametrize("plan", ["jepa_surprise:encoder=/no | surprise:keep=0.5", "jepa_surprise:encoder=/no"])
def test_families_without_frames_refuse_before_anything_is_loaded(name: str, plan: str) -> None:
    model, title = model_of(name), families.of(model_of(name)).title
    with pytest.raises(UnsupportedError, match=f"jepa_surprise reads the frames .*{title}; 'divprune' and 'evs'"):
        vtoken.wrap(model, plan)
    assert "vtoken" not in vars(model)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    model, video = model_of("qwen2_5_vl"), moving_block(4, 84, 112)
    plan = f"jepa_surprise:encoder={tmp_path / 'no'} | surprise:keep=0.5"
    with pytest.raises(InputError, match=f"encoder '{tmp_path / 'no'}' cannot be read .*give a hub id or a folder"):
        vtoken.ask(model, tokenizer_of(model), video, "what?", native_fps=4, plan=plan)


def test_a_memory_keeps_plans_with_and_without_a_pathway_apart(pathway: str) -> None:
    model, video, memory = model_of("qwen3_vl"), moving_block(8, 84, 112, seed=3), ClipMemory()
    tokenizer = tokenizer_of(model)
    ways = ["random:keep=0.5", f"{pathway} | surprise:keep=0.5", f"{pathway[:-1]}2 | surprise:keep=0.5"]
    plans = [*ways, *(f"grt | {w}" for w in ways), *ways]
    read: list[bool] = []
    options: dict[str, Any] = {"native_fps": 4, "fps": 4, "max_new_tokens": 3}
    for plan in plans:
        ask = {"plan": plan, "progress": lambda stage, share: read.append(stage == "decode" and share == 1)}
        told = vtoken.ask_many(model, tokenizer, video, ["what?", "why?"], memory=memory, **ask, **options)
        fresh = vtoken.ask_many(model, tokenizer, video, ["what?", "why?"], plan=plan, **options)
        for a, b in zip(told, fresh, strict=True):
            assert a.tokens.tolist() == b.tokens.tolist() and np.array_equal(a.cell_state, b.cell_state)
            assert ("pathway" in a.report.milliseconds) == ("surprise" in plan)
    assert sum(read) == 6


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "objects.mp4", render("objects", 2.0, 10.0, (112, 168)))


@pytest.mark.parametrize("gate", ["", "mad:threshold=4 | "])
@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "llava-1.5-7b"])
def test_a_pass_of_the_bench_gives_the_signal(name: str, gate: str, file: Path, pathway: str) -> None:
    model, plan = random_model(geometry(name)), Plan.parse(f"{gate}{pathway} | surprise:keep=0.5")
    family = families.of(model)
    encoder = Encoder(family, model, family.preprocess(model))
    passed = run_pass(file, 10, plan, encoder, end=1.3, chunk=3)
    with open_video(file, fps=10.0, end=1.3) as reader:
        planes = [encoder.preprocessor.resize(p.rgb(i), passed.grid) for p in reader for i in range(len(p))]
    want = plan.pathways[0].cells(np.stack(planes), passed.grid)["surprise"]
    t, h, w = passed.tokens.position.long().unbind(1)
    assert np.array_equal(passed.tokens.signals["surprise"].numpy(), want[t, h, w])
    assert len(passed.tokens) == int(passed.keep.sum()) and passed.milliseconds["pathway"] > 0
    without = run_pass(file, 10, Plan.parse(gate.partition(" ")[0] or "none"), encoder, end=1.3)
    assert "surprise" not in without.tokens.signals and "pathway" in without.milliseconds


def test_rows_of_the_bench_tell_the_pathways_time(file: Path, pathway: str) -> None:
    plans = [f"{pathway} | surprise", f"grt | {pathway} | surprise", "grt | divprune"]
    job = bench.Job.of([file], [5], plans, {"keep": 0.25})
    found = {r.plan: r for r in bench.measure(job, geometry("qwen2.5-vl-7b"))}
    assert list(found) == ["none", "random", "uniform", "resize", *plans]
    for plan, row in found.items():
        assert (row.pathway_ms is None) == ("surprise" not in plan) and row.pathway_ms != 0, plan
    assert found[plans[0]].tokens == int(0.25 * found[plans[0]].stock + 0.5)
    assert found[plans[1]].tokens == found[plans[2]].tokens
    assert found[plans[0]].encoded == 1 > found[plans[1]].encoded == found[plans[2]].encoded

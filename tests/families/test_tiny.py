"""The test bench itself: stock models take its inputs, and its oracles equal them where nothing is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.families import inputs, inputs_rows
from tests.families.configs import TEXT
from tests.families.masked import masked_clip_features, masked_qwen_features
from tests.families.oracle import (
    capture,
    oracle_generate,
    oracle_logits,
    oracle_scores,
    random_keep,
    rows,
    run,
    visual_mask,
)
from tests.families.tiny import FAMILIES, LAYOUTS, Clip, Layout, model_of, moving_block, video_pixels

CASES = [(name, layout) for name, family in FAMILIES.items() for layout in family.layouts()]
VIDEO = [name for name, family in FAMILIES.items() if family.video]
CLIP = ["llava", "llava_siglip", "llava_next_video", "llava_onevision", "video_llava"]
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


def generate(model: Any, given: dict[str, Tensor], count: int = 6, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        out = model.generate(**given, max_new_tokens=count, do_sample=False, **kwargs)
    return out[:, given["input_ids"].shape[1] :]


def all_of(given: dict[str, Tensor]) -> Tensor:
    return torch.ones_like(given["input_ids"], dtype=torch.bool)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_stock_model_runs_and_oracle_with_everything_kept_equals_it(name: str, layout: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    given = family.inputs(model, LAYOUTS[layout])
    _, stock = capture(model, given)
    assert stock.isfinite().all() and stock.std() > 0.5
    tokens = generate(model, given)
    assert (tokens >= TEXT).all(), "a special token was generated"
    assert torch.equal(tokens, oracle_generate(model, given, all_of(given), 6))
    mask = given["attention_mask"].bool()
    for b, logits in enumerate(oracle_logits(model, given, all_of(given))):
        # alone without padding the very same sums are made, in a batch others
        tolerance = 0 if mask.all() and len(mask) == 1 else family.tolerance
        torch.testing.assert_close(logits, stock[b][mask[b]], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_decoding_is_not_degenerate(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    runs = [generate(model, family.inputs(model, layout), 8) for layout in family.layouts().values()]
    distinct = [len(set(row.tolist())) for tokens in runs for row in tokens]
    assert np.mean(distinct) >= 5, distinct


@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_tokens_changes_the_answer_only_after_them(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    given = family.inputs(model, LAYOUTS["batch_images"])
    keep = random_keep(model, given, 0.5)
    full, half = oracle_logits(model, given, all_of(given)), oracle_logits(model, given, keep)
    visual, mask = visual_mask(model, given["input_ids"]), given["attention_mask"].bool()
    for b in range(2):
        kept, first = keep[b][mask[b]], int(visual[b][mask[b]].nonzero()[0])
        same = full[b][kept]
        assert len(half[b]) == int(kept.sum()) < len(full[b])
        assert (half[b][-1] - same[-1]).abs().max() > 0.05
        if model.config.model_type != "paligemma":  # its whole prompt sees everything
            torch.testing.assert_close(half[b][:first], same[:first], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_alone_has_the_ids_and_the_answer_of_its_row(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    for layout in [n for n in family.layouts() if n.startswith("batch")]:
        batch = family.inputs(model, LAYOUTS[layout])
        beam_search = family.stock_beams(LAYOUTS[layout])
        greedy, beams = generate(model, batch), generate(model, batch, num_beams=3) if beam_search else None
        for b in range(len(LAYOUTS[layout])):
            alone = family.inputs(model, LAYOUTS[layout], only=b)
            assert torch.equal(alone["input_ids"][0], batch["input_ids"][b][batch["attention_mask"][b].bool()])
            assert alone["attention_mask"].all()
            assert torch.equal(generate(model, alone)[0], greedy[b])
            if beams is not None:
                assert torch.equal(generate(model, alone, num_beams=3)[0], beams[b])


@pytest.mark.parametrize("name", FAMILIES)
def test_oracle_scores_equal_those_of_stock_beam_search(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    layout = LAYOUTS["batch_images" if family.stock_beams(LAYOUTS["batch_images"]) else "batch_text"]
    given = family.inputs(model, layout)
    with torch.no_grad():
        out = model.generate(
            **given,
            max_new_tokens=5,
            num_beams=3,
            num_return_sequences=2,
            length_penalty=0.0,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    tokens = out.sequences[:, given["input_ids"].shape[1] :]
    mine = oracle_scores(model, given, all_of(given), tokens)
    torch.testing.assert_close(mine, out.sequences_scores, atol=2e-4, rtol=0)


def test_mrope_positions_of_kept_tokens_are_the_original_ones() -> None:
    model = model_of("qwen3_vl")
    given = FAMILIES["qwen3_vl"].inputs(model, LAYOUTS["video_image"])
    keep = random_keep(model, given, 0.3)
    grids = {name: given[name] for name in ("image_grid_thw", "video_grid_thw")}
    original, _ = model.model.get_rope_index(given["input_ids"], given["mm_token_type_ids"], **grids)
    (row,) = rows(model, given, keep)
    assert row.mrope is not None and torch.equal(row.mrope, original[:, 0][:, keep[0]])
    # and they matter: counting instead gives another answer
    before = run(model, row)
    row.mrope = torch.arange(len(row.embeds)).expand(3, -1)
    assert (run(model, row)[-1] - before[-1]).abs().max() > 0.01


@pytest.mark.parametrize("name", VIDEO)
def test_video_pixels_gives_the_model_frames_it_encodes(name: str) -> None:
    family, model = FAMILIES[name], model_of(name)
    frames = moving_block(4, *family.size)
    given = video_pixels(name, model, frames)
    key = "pixel_values_videos" if "pixel_values_videos" in given else "pixel_values"
    still = video_pixels(name, model, np.repeat(frames[:1], 4, axis=0))[key]
    assert given[key].abs().max() <= 1 and not torch.equal(given[key], still)
    layout: Layout = [[("text", 3), ("video", Clip(frames)), ("text", 3)]]
    full = family.inputs(model, layout)
    assert all(torch.equal(full[n].flatten(), value.flatten()) for n, value in given.items())


def test_qwen_patches_equal_the_hugging_face_image_processor() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = moving_block(1, 84, 112)
    half = [0.5, 0.5, 0.5]
    processor = Qwen2VLImageProcessorPil(do_resize=False, image_mean=half, image_std=half, patch_size=14)
    theirs = processor([pixels[0]], return_tensors="pt")
    mine = inputs_rows.qwen_image(model_of("qwen2_vl").config, pixels, 1, 2.0).data
    assert torch.equal(theirs["image_grid_thw"], mine["image_grid_thw"])
    torch.testing.assert_close(theirs["pixel_values"], mine["pixel_values"], atol=1e-6, rtol=0)


def _tower(name: str) -> Any:
    model = model_of(name).model
    return model.video_tower if name == "video_llava" else model.vision_tower


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("name", CLIP)
def test_masked_clip_features_with_everything_kept_equal_the_tower(name: str, layer: int) -> None:
    tower = _tower(name)
    pixels = inputs.normalise(moving_block(3, tower.config.image_size, tower.config.image_size))
    with torch.no_grad():
        stock = tower(pixels, output_hidden_states=True).hidden_states[layer]
    keep = torch.ones(3, (tower.config.image_size // 14) ** 2, dtype=torch.bool)
    mine = masked_clip_features(tower, pixels, keep, layer, with_class=True)
    torch.testing.assert_close(torch.stack(mine), stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CLIP)
def test_masked_clip_features_do_not_depend_on_skipped_pixels(name: str) -> None:
    tower = _tower(name)
    side = tower.config.image_size // 14
    pixels = inputs.normalise(moving_block(2, side * 14, side * 14))
    keep = torch.rand(2, side * side, generator=torch.Generator().manual_seed(0)) < 0.4
    other = pixels.clone()
    hidden = (~keep).view(2, 1, side, side).repeat_interleave(14, 2).repeat_interleave(14, 3).expand_as(other)
    other[hidden] = torch.rand(int(hidden.sum()))
    a, b = (masked_clip_features(tower, x, keep, -1) for x in (pixels, other))
    stock = masked_clip_features(tower, pixels, torch.ones_like(keep), -1)
    for t in range(2):
        assert a[t].shape[0] == int(keep[t].sum())
        torch.testing.assert_close(a[t], b[t], atol=1e-6, rtol=0)
        assert (a[t] - stock[t][keep[t]]).abs().max() > 0.01


def _two_videos(name: str) -> tuple[Any, Tensor, Tensor]:
    family, model = FAMILIES[name], model_of(name)
    clips = [moving_block(6, *family.size), moving_block(3, *family.size[::-1], seed=1)]
    data = [video_pixels(name, model, clip) for clip in clips]
    pixels, grids = (torch.cat([d[n] for d in data]) for n in ("pixel_values_videos", "video_grid_thw"))
    return model.model.visual, pixels, grids


@pytest.mark.parametrize("name", QWEN)
def test_masked_qwen_features_with_everything_kept_equal_the_tower(name: str) -> None:
    visual, pixels, grids = _two_videos(name)
    with torch.no_grad():
        stock = visual(pixels, grid_thw=grids)
    mine, deepstack = masked_qwen_features(visual, pixels, grids, torch.ones(len(pixels) // 4, dtype=torch.bool))
    torch.testing.assert_close(mine, stock.pooler_output, atol=1e-5, rtol=0)
    theirs = getattr(stock, "deepstack_features", None) or []
    assert len(theirs) == len(deepstack) == (2 if name == "qwen3_vl" else 0)
    for a, b in zip(deepstack, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", QWEN)
def test_masked_qwen_features_do_not_depend_on_skipped_pixels(name: str) -> None:
    visual, pixels, grids = _two_videos(name)
    keep = torch.rand(len(pixels) // 4, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[: len(pixels) // 20] = False  # more than a whole frame
    other = torch.where(keep.repeat_interleave(4)[:, None], pixels, torch.rand_like(pixels))
    (a, da), (b, db) = (masked_qwen_features(visual, x, grids, keep) for x in (pixels, other))
    full, _ = masked_qwen_features(visual, pixels, grids, torch.ones_like(keep))
    for one, two in zip([a, *da], [b, *db], strict=True):
        assert one.isfinite().all() and len(one) == int(keep.sum())
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    assert (a - full[keep]).abs().max() > 0.01

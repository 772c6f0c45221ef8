"""Arguments and outputs that count columns when tokens are dropped: masks, positions, rows of logits, labels."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, StaticCache

import vtoken
from tests.families.oracle import oracle_logits, visual_mask
from tests.families.prepared import prepared
from tests.families.tiny import FAMILIES, model_of
from vtoken.errors import InputError, UnsupportedError

DROP = "random:keep=0.4"
COUNTED = ["llava", "llava_next_video", "internvl", "idefics3", "mistral3"]
MROPE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


def inputs_of(name: str, layout: str = "image", seed: int = 0) -> dict[str, Tensor]:
    return FAMILIES[name].inputs(model_of(name), FAMILIES[name].layouts()[layout], seed)


def kept_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """bool [B, N], columns that stay."""
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for b, slots in enumerate(prepared(model, inputs).cut.slots):
        keep[b, slots] = True
    return keep


@pytest.mark.parametrize("name", ["llava", "llava_next_video", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_logits_to_keep_names_columns_of_the_original_prompt(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    text = (~visual_mask(model, inputs["input_ids"])[0]).nonzero().squeeze(1)
    with vtoken.wrapped(model, DROP):
        keep = kept_of(model, inputs)[0]
        whole = model(**inputs).logits
        rows = model(**inputs, logits_to_keep=text).logits
        last = model(**inputs, logits_to_keep=torch.tensor([-1, -2])).logits
        behind = model(**inputs, logits_to_keep=2).logits
        gone = (~keep).nonzero().squeeze(1)[:1]
        with pytest.raises(InputError, match=rf"logits_to_keep=\[{int(gone)}\]"):
            model(**inputs, logits_to_keep=gone)
    place = keep.cumsum(0) - 1
    torch.testing.assert_close(rows, whole[:, place[text]])
    torch.testing.assert_close(last, whole[:, [-1, -2]])
    torch.testing.assert_close(behind, whole[:, -2:])


@torch.no_grad()
def test_logits_to_keep_of_prompts_that_keep_different_columns() -> None:
    model, inputs = model_of("llava"), inputs_of("llava", "batch_images")
    with vtoken.wrapped(model, DROP), pytest.raises(UnsupportedError, match="logits_to_keep"):
        model(**inputs, logits_to_keep=torch.tensor([-1]))


@pytest.mark.parametrize(("name", "layout"), [("llava", "batch_images"), ("qwen3_vl", "ragged_videos")])
@torch.no_grad()
def test_an_output_names_the_columns_of_its_logits(name: str, layout: str) -> None:
    model, inputs = model_of(name), inputs_of(name, layout)
    width = inputs["input_ids"].shape[1]
    with vtoken.wrapped(model, DROP):
        keep, found = kept_of(model, inputs), model(**inputs)
        behind = model(**inputs, logits_to_keep=2)
        assert isinstance(model(**inputs, return_dict=False), tuple)
    assert found.vtoken_columns.shape == found.logits.shape[:2] and "vtoken_columns" not in found
    want = oracle_logits(model, inputs, keep)
    for b, columns in enumerate(found.vtoken_columns):
        assert columns[columns >= 0].tolist() == keep[b].nonzero().squeeze(1).tolist()
        torch.testing.assert_close(found.logits[b][columns >= 0], want[b].to(found.logits), atol=1e-5, rtol=0)
    assert torch.equal(behind.vtoken_columns, found.vtoken_columns[:, -2:])
    with vtoken.wrapped(model, "none"):
        assert torch.equal(model(**inputs).vtoken_columns, torch.arange(width).expand(len(keep), -1))


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("plan", ["none", DROP])
def test_generate_infers_the_mask_from_padding_as_the_stock_model_does(name: str, plan: str) -> None:
    layout = "batch_images" if "batch_images" in FAMILIES[name].layouts() else "ragged_videos"
    model, inputs = model_of(name), inputs_of(name, layout)
    assert int((inputs["attention_mask"] == 0).sum())
    options = {"max_new_tokens": 4, "do_sample": False}
    bare = {n: v for n, v in inputs.items() if n != "attention_mask"}
    with vtoken.wrapped(model, plan):
        want = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**bare, **options), want)
    if plan == "none":
        assert torch.equal(model.generate(**bare, **options), want)


def squares(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The causal mask of a batch, ready-made: bool and float [B, 1, N, N]."""
    real = inputs["attention_mask"].bool()
    n = real.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril() & real[:, None, None] | torch.eye(n, dtype=torch.bool)
    return {"bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)}


@pytest.mark.parametrize("name", COUNTED + MROPE)
@torch.no_grad()
def test_ready_made_masks(name: str) -> None:
    """A causal mask of four dimensions, of a batch with padding, gives what the mask of two dimensions gives."""
    layout = "batch_images" if "batch_images" in FAMILIES[name].layouts() else "ragged_videos"
    model, inputs = model_of(name), inputs_of(name, layout)
    mask = inputs["attention_mask"]
    if name in MROPE:
        with vtoken.wrapped(model, DROP), pytest.raises(InputError, match="position_ids"):
            model(**inputs | {"attention_mask": squares(inputs)["bool"]})
        from vtoken.engine.positions import rope_positions

        inputs["position_ids"] = rope_positions(model, inputs, generating=True)[0]
    else:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    for plan in ("none", DROP):
        with vtoken.wrapped(model, plan):
            want = model(**inputs).logits
            counts = prepared(model, inputs).inputs["attention_mask"].sum(1).tolist()
            for kind, square in squares(inputs).items():
                if name == "qwen3_5" and kind == "float":
                    continue  # its linear layers read no mask of four dimensions
                got = model(**inputs | {"attention_mask": square}).logits
                if name != "qwen3_5":
                    for own, right, n in zip(got, want, counts, strict=True):  # padding stays: no mask says what it is
                        torch.testing.assert_close(own[-n:], right[-n:], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_masks_that_do_not_fit_are_refused() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    with vtoken.wrapped(model, DROP):
        with pytest.raises(InputError, match="generate takes"):
            model.generate(**inputs | {"attention_mask": squares(inputs)["bool"]}, max_new_tokens=1)
        with pytest.raises(InputError, match=r"attention_mask=\[45\]"):
            model(**inputs | {"attention_mask": inputs["attention_mask"][0]})
        with pytest.raises(UnsupportedError, match="row and a column"):
            model(**inputs | {"attention_mask": squares(inputs)["bool"][..., :-2, :]})


@pytest.mark.parametrize("name", COUNTED)
@torch.no_grad()
def test_positions_that_only_count_change_nothing(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    ids = inputs["input_ids"]
    bare = {n: v for n, v in inputs.items() if n != "attention_mask"}
    with vtoken.wrapped(model, DROP):
        want = model(**inputs).logits
        given = bare | {"position_ids": torch.arange(ids.shape[1])[None]}
        torch.testing.assert_close(model(**given, use_cache=False).logits, want, atol=1e-4, rtol=1e-5)
        late = bare | {"position_ids": torch.arange(ids.shape[1])[None] + 5}
        torch.testing.assert_close(model(**late).logits, want, atol=1e-4, rtol=1e-4)  # rotary: differences alone count


@torch.no_grad()
def test_packed_training_rows_stay_apart() -> None:
    """Two prompts in one row, told apart by positions that begin again: each gets its logits alone."""
    model = model_of("llava")
    one, two = inputs_of("llava", "image"), inputs_of("llava", "two_images", seed=1)
    row = {
        "input_ids": torch.cat([one["input_ids"], two["input_ids"]], 1),
        "pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]]),
        "position_ids": torch.cat([torch.arange(x["input_ids"].shape[1]) for x in (one, two)])[None],
    }
    with vtoken.wrapped(model, "random:tokens=15"):
        alone_one = model(**one, use_cache=False).logits
    with vtoken.wrapped(model, "random:tokens=45"):  # 15 an image
        together = model(**row, use_cache=False).logits
    with vtoken.wrapped(model, "random:tokens=30"):
        alone_two = model(**two, use_cache=False).logits
    torch.testing.assert_close(together, torch.cat([alone_one, alone_two], 1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_an_emptied_cache_takes_a_new_prompt(name: str, kind: str) -> None:
    model, first, second = model_of(name), inputs_of(name), inputs_of(name, seed=1)
    text = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=200)
    with vtoken.wrapped(model, DROP):
        want = model(**second).logits[:, -1]
        model.generate(**first, max_new_tokens=3, do_sample=False, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="filled KV cache|cannot be continued"):
            model(**second, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="cannot be continued"):
            model(input_ids=second["input_ids"][:, -1:], past_key_values=cache)
        cache.reset()
        assert int(cache.get_seq_length()) == 0
        if kind == "static":  # its mask has all columns that it can hold
            got = model.generate(
                **second,
                past_key_values=cache,
                max_new_tokens=1,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            ).logits[0]
        else:
            got = model(**second, past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_a_cut_cache_is_marked_whatever_the_output(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    step = {"input_ids": inputs["input_ids"][:, -1:]}
    with vtoken.wrapped(model, DROP):
        caches = [
            model(**inputs, use_cache=True).past_key_values,
            next(x for x in model(**inputs, use_cache=True, return_dict=False) if hasattr(x, "get_seq_length")),
            model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True).past_key_values,
        ]
        given = DynamicCache()
        model(**inputs, past_key_values=given, return_dict=False)
        for cache in [*caches, given]:
            with pytest.raises(UnsupportedError, match="lost"):
                model(**step, past_key_values=cache)
    whole = model(**inputs, use_cache=True).past_key_values
    model(**step, past_key_values=whole)  # a stock cache is not marked


@pytest.mark.parametrize("name", ["llava", "llava_next_video", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"])
@torch.no_grad()
def test_the_loss_is_that_of_all_text_labels(name: str) -> None:
    """Every label of text counts, each predicted from the column before it that stays."""
    layout = "batch_images" if "batch_images" in FAMILIES[name].layouts() else "batch_videos"
    model, inputs = model_of(name), inputs_of(name, layout)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    labels = ids.masked_fill(visual_mask(model, ids) | ~real, -100)
    every = labels.clone()
    labels[torch.arange(len(ids)), real.int().argmax(1)] = -100  # the first id has nothing before it
    with vtoken.wrapped(model, DROP):
        keep = kept_of(model, inputs)
        out = model(**inputs, labels=labels)
        first = model(**inputs, labels=every).labels
    for b in range(len(ids)):  # the labels that count are those that count in the stock batch
        assert first[b, 1:][first[b, 1:] != -100].tolist() == every[b, 1:][every[b, 1:] != -100].tolist()
    wanted, found = [], []
    for b, logits in enumerate(oracle_logits(model, inputs, keep)):
        own = labels[b, keep[b] & real[b]]
        wanted.append(cross_entropy(logits[:-1], own[1:], reduction="none", ignore_index=-100)[own[1:] != -100])
        found.append(own)
        mine = out.labels[b]
        assert mine[mine != -100].tolist() == labels[b][labels[b] != -100].tolist()
    torch.testing.assert_close(out.loss, torch.cat(wanted).mean(), atol=1e-4, rtol=1e-4)
    assert out.labels.shape == out.logits.shape[:2]
    again = cross_entropy(out.logits[:, :-1].flatten(0, 1), out.labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(out.loss, again, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_labels_that_were_shifted_before() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    ids = inputs["input_ids"]
    labels = ids.masked_fill(visual_mask(model, ids), -100)
    shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
    with vtoken.wrapped(model, DROP):
        want = model(**inputs, labels=labels).loss
        torch.testing.assert_close(model(**inputs, labels=labels, shift_labels=shifted).loss, want)


@torch.no_grad()
def test_an_output_with_labels_can_be_taken_apart_and_built_again() -> None:
    """As FSDP, DDP and processes do."""
    from torch.utils._pytree import tree_flatten, tree_unflatten

    model, inputs = model_of("llava"), inputs_of("llava")
    with vtoken.wrapped(model, DROP):
        out = model(**inputs, labels=inputs["input_ids"])
        text = model(input_ids=inputs["input_ids"][:, :4], labels=inputs["input_ids"][:, :4])
    assert isinstance(text.labels, Tensor) and isinstance(out, type(model(**inputs)))
    for again in (tree_unflatten(*tree_flatten(out)), pickle.loads(pickle.dumps(out)), copy.deepcopy(out)):
        assert list(again) == list(out) and torch.equal(again.labels, out.labels)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_trainer_trains_and_measures(name: str, tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    family, model = FAMILIES[name], FAMILIES[name].build(3)
    layouts = [[("text", 3 + i), ("image", None), ("text", 5)] for i in range(4)]
    measured: list[float] = []

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        batch = family.inputs(model, rows)
        hidden = visual_mask(model, batch["input_ids"]) | (batch["attention_mask"] == 0)
        return batch | {"labels": batch["input_ids"].masked_fill(hidden, -100)}

    def metrics(found: Any) -> dict[str, float]:
        logits, *_, labels = found.predictions
        counted = labels[:, 1:] != -100
        right = (logits[:, :-1].argmax(-1) == labels[:, 1:]) & counted
        measured.append(float(counted.sum()))
        return {"accuracy": float(right.sum() / counted.sum())}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    vtoken.wrap(model, "random:keep=0.3")
    trainer = Trainer(model, arguments, collate, layouts, layouts, compute_metrics=metrics)
    trainer.args.prediction_loss_only = False
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] and after["eval_accuracy"] > before["eval_accuracy"]
    texts = sum(n for row in layouts for kind, n in row if kind == "text")
    marks = 0 if name == "llava" else 2 * len(layouts)
    assert measured[0] == texts + marks - 1  # the longest row alone has nothing before its first id

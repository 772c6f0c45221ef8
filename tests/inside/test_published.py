"""Methods inside the language model against the outputs of the official code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.inside.views import Given, at_layer, projected, still_llama
from vtoken.engine.inner import Visual, installed
from vtoken.inside.aim_inner import AIMInner, pagerank
from vtoken.inside.prunevid_inner import BLOCK
from vtoken.inside.sparsevlm import raters
from vtoken.inside.todre_exit import exchange
from vtoken.methods import registry
from vtoken.methods.inner import COLUMN, Inner, LayerContext
from vtoken.methods.plan import Plan


def build(name: str, **options) -> Inner:
    method = registry.build(name, **options)
    assert isinstance(method, Inner)
    return method


def load(golden: Path, name: str) -> dict[str, Tensor]:
    return torch.load(golden / f"{name}.pt", weights_only=True)


def head_rows(attention: Tensor, start: int, count: int) -> Tensor:
    """Signal ``last_attention`` [N, H] from [1, H, n, n]."""
    return attention[0, :, -1, start : start + count].T


def columns(start: int, count: int, width: int, samples: int = 1) -> Tensor:
    """bool [samples, width], visual columns."""
    mask = torch.zeros(samples, width, dtype=torch.bool)
    mask[:, start : start + count] = True
    return mask


def kept_columns(tokens) -> list[int]:
    return tokens.signals[COLUMN].tolist()


def test_fastv_of_the_fork_for_hf(golden):
    data = load(golden, "fastv_hf")
    start, n = int(data["image_start"]), int(data["image_len"])
    x, attention = data["hidden_states"][0, start : start + n], head_rows(data["attn"], start, n)
    tokens, context = at_layer(None, x, start, last_attention=attention)
    out = build("fastv", exact=True, keep=1 - float(data["r"])).reduce(tokens, None, context)
    wanted = [i for i in data["keep_indices"].tolist() if start <= i < start + n]
    assert kept_columns(out) == wanted
    assert torch.equal(out.x, data["hidden_states"][0, wanted])


def test_fastv_in_place(golden):
    data = load(golden, "fastv_inplace")
    start, n, rank = (int(data[k]) for k in ("sys_len", "image_len", "attention_rank"))
    tokens, context = at_layer(
        None, data["hidden_states"][0, start : start + n], start, last_attention=head_rows(data["attn"], start, n)
    )
    out = build("fastv", tokens=rank).reduce(tokens, None, context)
    assert kept_columns(out) == [i for i in data["keep_indices"].tolist() if start <= i < start + n]


def test_holitom_folds_what_leaves(golden):
    data = load(golden, "holitom_inner")
    start, n = int(data["image_start"]), int(data["image_len"])
    tokens, context = at_layer(
        None, data["hidden_states"][0, start : start + n], start, last_attention=head_rows(data["attn"], start, n)
    )
    out = build("holitom_inner", exact=True, keep=1 - float(data["r"])).reduce(tokens, None, context)
    wanted = [i for i in data["keep_indices"].tolist() if start <= i < start + n]
    assert kept_columns(out) == wanted
    torch.testing.assert_close(out.x, data["out"][0, start : start + len(wanted)])
    assert float(out.size.sum()) == n and len(out) < n


@pytest.mark.parametrize("name", ["dart_authors", "dart_llmc_small"])
def test_dart(golden, name):
    data = load(golden, name)
    authors = name == "dart_authors"
    start, n = (int(data[k]) for k in (("image_start", "image_len") if authors else ("vision_start", "vision_len")))
    state = data["normed_state" if authors else "last_layer_state"][0]
    keys = data["keys" if authors else "key_states"][0]
    text = torch.arange(start + n, len(state))
    view = projected(keys, keys, torch.arange(start, start + n), text)
    tokens, context = at_layer(view, state[start : start + n], start, keys=keys.transpose(0, 1)[start : start + n])
    context.text = [state[text]]
    ratio = round(float(data["reduction_ratio"]), 6)
    out = build("dart_inner", exact=True, keep=1 - ratio).reduce(tokens, None, context)
    assert kept_columns(out) == data["retained_sorted"].tolist()
    count = len(out)
    assert len(build("dart_inner", tokens=count).reduce(tokens, None, context)) == count


def run_still(model, hidden: Tensor, plan: str, visual: Tensor, mask: Tensor | None = None, **inputs):
    """The rows that enter every layer of a decoder whose layers change nothing, and the record."""
    entered: list[Tensor] = []
    with torch.no_grad(), installed(model, Plan.parse(plan), Visual.of(visual)) as record:
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: entered.append(args[0])) for layer in model.model.layers
        ]
        model(inputs_embeds=hidden, attention_mask=mask, **inputs)
        for hook in hooks:
            hook.remove()
    return entered, record


def test_pyramiddrop_in_stages_with_padding(golden):
    data = load(golden, "pdrop_stages")
    weights = [(data[f"wq{s}"], data[f"wk{s}"]) for s in range(3)]
    model = still_llama(weights, int(data["heads"]))
    visual = torch.zeros_like(data["mask"])
    for b in range(2):
        start, n = int(data["image_start"][b]), int(data["image_tokens"][b])
        visual[b, start : start + n] = True
    plan = "pyramiddrop:layer=(0,1,2),exact=True"
    entered, record = run_still(model, data["hidden"], plan, visual, data["mask"].long())
    for s in range(3):
        for b in range(2):
            wanted = data[f"kept{s}"][b]
            at = record.at[s][b]
            assert at[at >= 0].tolist() == wanted[wanted >= 0].tolist()
            assert torch.equal(entered[s][b][at >= 0], data["hidden"][b][wanted[wanted >= 0]])
    shift = record.shift[2]
    assert shift.tolist() == [int(data["mask"][b].sum()) - int((data["kept2"][b] >= 0).sum()) for b in range(2)]


def test_pyramiddrop_stage_0(golden):
    data = load(golden, "pdrop_stage0")
    model = still_llama([(data["wq"], data["wk"])], int(data["heads"]))
    start, n, keep = (int(data[k]) for k in ("image_start", "image_tokens", "keep"))
    visual = columns(start, n, data["hidden"].shape[1])
    entered, record = run_still(model, data["hidden"], f"pyramiddrop:layer=0,tokens={keep}", visual)
    assert record.at[0][0].tolist() == data["kept_seq_index"].tolist()
    assert torch.equal(entered[0], data["out"])


def test_visiondrop_merges_and_counts_positions_anew(golden):
    data = load(golden, "visiondrop_stages")
    weights = [(data[f"wq{s}"], data[f"wk{s}"]) for s in range(2)]
    model = still_llama(weights, int(data["heads"]))
    visual = columns(int(data["image_start"]), int(data["image_tokens"]), data["hidden"].shape[1])
    lists = tuple(tuple(pair) for pair in data["lists"].tolist())
    entered, _ = run_still(model, data["hidden"], f"visiondrop:layer=(0,1),lists={lists},exact=True", visual)
    for s in range(2):
        torch.testing.assert_close(entered[s], data[f"out{s}"], atol=1e-5, rtol=1e-5)


def test_vscan_for_qwen_scores_without_rotary_positions(golden):
    data = load(golden, "vscan_qwen")
    model = still_llama([(data["wq"], data["wk"])], int(data["heads"]), int(data["kv_heads"]))
    start, n = int(data["image_start"]), int(data["image_tokens"])
    visual = columns(start, n, data["hidden"].shape[1])
    keep = round(float(data["ratio"]), 6)
    entered, record = run_still(model, data["hidden"], f"vscan_inner:layer=0,keep={keep},exact=True", visual)
    kept = [c for c in record.at[0][0].tolist() if start <= c < start + n]
    assert kept == (data["kept_visual"] + start).tolist()
    assert torch.equal(entered[0], data["out"])


def test_llavolta_pools_rows_and_positions(golden):
    data = load(golden, "llavolta_pool")
    model = still_llama([(torch.eye(16), torch.eye(16))], 2)
    n, start = int(data["visual_length"]), int(data["starts"][0, 0])
    visual = columns(start, n, data["hidden"].shape[1], samples=2)
    seen: list[Tensor] = []

    def see(_, args):
        seen.extend(args[1:])

    hook = model.model.rotary_emb.register_forward_pre_hook(see)
    plan = f"llavolta:layer=1,stride={int(data['stride'])},exact=True"
    entered, _ = run_still(model, data["hidden"], plan, visual, position_ids=data["position_ids"])
    hook.remove()
    torch.testing.assert_close(entered[1], data["out"])
    assert torch.equal(seen[-1], data["position_ids_after"])


def test_sparsevlm_scores(golden):
    data = load(golden, "sparsevlm_topk")
    start, n = int(data["v_start"]), int(data["v_num"])
    words = data["text_rater_idx_rel"] + int(data["text_start"])
    view = Given(data["attn"][0], torch.arange(start, start + n), words)
    tokens, context = at_layer(view, torch.randn(n, 4), start)
    k = int(data["k"])
    method = build("sparsevlm", layer=2, table=(k,), exact=True)
    torch.testing.assert_close(method.score(tokens, context), data["relation"][0])
    assert method.select(tokens, k, context)[:k].tolist() == data["mask"][0].nonzero().squeeze(1).tolist()


def test_sparsevlm_layer_recycles(golden):
    data = load(golden, "sparsevlm_layer")
    start, n, keep = (int(data[k]) for k in ("v_start", "v_num", "keep"))
    embeds, text = data["embeds"][0], torch.arange(start + n, data["embeds"].shape[1])
    view = Given(data["attn_text_rows"][0], torch.arange(start, start + n), text, first=start + n)
    view.start = embeds[start : start + n], embeds[text]
    assert raters(view).nonzero().squeeze(1).tolist() == data["raters_rel"].tolist()
    tokens, context = at_layer(view, data["layer_out"][0, start : start + n], start)
    method = build("sparsevlm", layer=2, table=(keep,), exact=True)
    torch.testing.assert_close(method.score(tokens, context), data["relation"][0])
    out = method.reduce(tokens, None, context)
    assert len(out) == int(data["v_num_after"])
    assert out.signals[COLUMN][:keep].tolist() == (data["kept"] + start).tolist()
    torch.testing.assert_close(out.x, data["out"][0, start : start + len(out)])


def test_sparsevlm_plus(golden):
    data = load(golden, "sparsevlm_plus")
    start, n, keep, width = (int(data[k]) for k in ("v_start", "v_num", "keep", "head_dim"))
    embeds, rows = data["embeds"][0], data["embeds"].shape[1]
    angle = torch.arange(rows)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)

    def turn(x: Tensor, places: Tensor) -> Tensor:
        cos, sin = angle[places].cos(), angle[places].sin()
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    view = Given(data["attn"][0], torch.arange(start, start + n), torch.arange(start + n, rows))
    view = replace_view(view, turn=turn, keys=lambda rotary: torch.zeros(1, rows, width))
    view.start = embeds[start : start + n], embeds[start + n :]
    assert raters(view).nonzero().squeeze(1).tolist() == data["raters_rel"].tolist()
    tokens, context = at_layer(view, data["layer_out"][0, start : start + n], start)
    method = build("sparsevlm", version="plus", layer=2, table=(keep,), exact=True)
    torch.testing.assert_close(method.score(tokens, context), data["relation"][0])
    out = method.reduce(tokens, None, context)
    assert torch.equal(out.x, data["out"][0, start : start + keep])


def replace_view(view: Given, **fields) -> Given:
    for name, value in fields.items():
        setattr(view, name, value)
    return view


def test_prunevid_keeps_the_best_of_every_block(golden):
    data = load(golden, "prunevid_llm")
    start = int(data["image_start"])
    blocks, number = [], 0
    sizes = (data[k].tolist() for k in ("static_sizes", "dynamic_sizes", "window_sizes"))
    for static, dynamic, window in zip(*sizes, strict=True):
        for size in [static, *[dynamic // window] * window]:
            blocks += [number] * size
            number += 1
    n, rows = len(blocks), data["hidden"].shape[1]
    view = projected(
        data["q_without_rope"][0],
        data["k_without_rope"][0],
        torch.arange(start, start + n),
        torch.arange(start + n, rows),
    )
    tokens, context = at_layer(view, data["hidden"][0, start : start + n], start, **{BLOCK: torch.tensor(blocks)})
    keep = round(float(data["alpha"]), 6)
    out = build("prunevid_inner", exact=True, keep=keep).reduce(tokens, None, context)
    wanted = [i for i in data["kept"].tolist() if start <= i < start + n]
    assert out.signals[COLUMN].tolist() == wanted
    assert len(build("prunevid_inner", tokens=20).reduce(tokens, None, context)) == 20


def test_todre_shares_of_attention(golden):
    data = load(golden, "todre_ratios")
    visual, text = data["visual"].nonzero().squeeze(1), data["text"].nonzero().squeeze(1)
    view = Given(data["attn"] / data["attn"].sum(-1, keepdim=True), visual, text)
    to_image, to_text = exchange(view, visual)
    assert to_image == pytest.approx(float(data["alpha_text_to_visual"]), abs=1e-5)
    assert to_text == pytest.approx(float(data["alpha_visual_to_text"]), abs=1e-5)
    tokens, context = at_layer(view, torch.randn(len(visual), 4), int(visual[0]))
    for tau, left in ((to_image + 0.01, 0), (to_image - 0.01, len(visual))):
        assert len(build("todre_exit", tau=tau).reduce(tokens, None, context)) == left


def test_aim_pagerank(golden):
    data = load(golden, "aim_pagerank")
    n = data["importance"].shape[1]
    view = Given(data["attn_logits"][0], torch.arange(n), torch.tensor([n - 1]))
    torch.testing.assert_close(pagerank(view), data["importance"][0], atol=1e-6, rtol=1e-4)


def test_aim_schedule(golden):
    data = load(golden, "aim_schedule")
    start, stop = data["image_range"][0].tolist()
    left = torch.arange(start, stop)
    context = LayerContext(depth=28)
    method = AIMInner(exact=True)
    context.steps = len(method.boundaries(28))
    assert method.boundaries(28) == list(range(15, 23))

    class Scored(AIMInner):
        def score(self, tokens, context):
            return importance[left]

    method = Scored(exact=True)
    for step, layer in enumerate(range(14, 22)):
        importance = data["importance"][layer - int(data["first_layer"]), 0]
        context.step = step
        tokens, _ = at_layer(None, torch.zeros(len(left), 2), 0)
        (choice,) = method.choose(tokens, None, context)
        left = left[choice.kept]
        seen = data["visible_after"][layer - int(data["first_layer"]), 0, start:stop]
        assert (left - start).tolist() == seen.nonzero().squeeze(1).tolist()


def test_framefusion_merges_then_prunes(golden):
    data = load(golden, "framefusion_static")
    start, n, places = (int(data[k]) for k in ("video_start", "video_len", "patch_num"))
    options = {k: round(float(data[k]), 6) for k in ("cost", "similarity_lower_bound", "ratio_lower_bound")}
    method = build("framefusion", exact=True, **options)
    tokens, context = at_layer(None, data["sequence"][0, start : start + n], start)
    cell = torch.arange(n)
    tokens = replace(tokens, position=torch.stack([cell // places, cell * 0, cell % places], 1).int())
    context.steps = 28
    text = data["sequence"].shape[1] - n
    for call in range(3):
        if call == int(data["prune_call"]):
            rows = int(data["lens"][call])
            view = Given(data["attn_at_prune"][0], torch.arange(start, start + len(tokens)), torch.tensor([rows - 1]))
            context.view = lambda _, view=view: view
            tokens = tokens.with_signals(_place=torch.arange(len(tokens)) + start)
        context.step = call
        tokens = method.reduce(tokens, None, context)
        wanted = data[f"pos_after_call{call}"]
        assert len(tokens) + text == len(wanted)
        assert tokens.signals[COLUMN].tolist() == [p for p in wanted.tolist() if start <= p < start + n]
    assert context.memory["past", 0] == data["sparsity_list"].tolist()
    torch.testing.assert_close(tokens.x, data["final_hidden"][0, start : start + len(tokens)])
    assert method.finished(context)

"""Models that PEFT, torch.compile, accelerate or quantisation changed: vtoken gives what the plain model gives."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vtoken
from tests.engine.changed import (
    GREEDY,
    NAMES,
    PLANS,
    Results,
    ask,
    equal,
    forward,
    generate,
    inputs_of,
    merged,
    plain_results,
    results,
    same_or_refused,
    with_adapters,
)
from tests.families.tiny import FAMILIES, model_of
from tests.families.tokenizer import tokenizer_of

pytest.importorskip("peft", reason="PEFT is not installed; pip install 'vtoken[train]'")
GATED = PLANS[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_peft_model_is_wrapped(name: str) -> None:
    plain, adapted = merged(name), with_adapters(FAMILIES[name].build())
    inputs = inputs_of(name, plain)
    stock = adapted.generate(**inputs, **GREEDY)
    assert not torch.equal(stock, model_of(name).generate(**inputs, **GREEDY))  # the adapters matter
    for plan in PLANS:
        same_or_refused(lambda p=plan: results(adapted, name, p), results(plain, name, plan), "get_base_model", 1e-4)
        assert torch.equal(adapted.generate(**inputs, **GREEDY), stock)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapped_model_gets_adapters(name: str) -> None:
    model = FAMILIES[name].build()
    vtoken.wrap(model, GATED)
    adapted, plain = with_adapters(model), merged(name)
    inputs = inputs_of(name, plain)
    with torch.no_grad():
        logits = adapted(**inputs).logits
    found = Results(logits, adapted.generate(**inputs, **GREEDY), ask(model, tokenizer_of(plain), GATED))
    equal(found, results(plain, name, GATED), 1e-4)
    vtoken.unwrap(model)
    assert torch.equal(adapted.generate(**inputs, **GREEDY), plain.generate(**inputs, **GREEDY))


@pytest.mark.parametrize("name", NAMES)
def test_adapters_on_a_wrapped_model_are_asked(name: str) -> None:
    plain, adapted = merged(name), with_adapters(vtoken.wrap(FAMILIES[name].build(), GATED))
    found, wanted = ask(adapted, tokenizer_of(plain), None), ask(plain, tokenizer_of(plain), GATED)
    assert torch.equal(found.tokens, wanted.tokens) and found.report.tokens == wanted.report.tokens


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile's cache, emptied; it would otherwise give up on functions that earlier tests compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_model(name: str, compiler: None) -> None:
    compiled = torch.compile(FAMILIES[name].build(), backend="eager")
    same_or_refused(lambda: results(compiled, name, GATED), plain_results(name, GATED), "compile", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_compiled_itself(name: str, compiler: None) -> None:
    model = FAMILIES[name].build()
    model.compile(backend="eager")
    same_or_refused(lambda: results(model, name, GATED), plain_results(name, GATED), "compile", 1e-5)


def offloaded(name: str, where: str, folder: Path) -> Any:
    """A model whose weights wait on the CPU, or in files: ``model.device`` is "meta"."""
    from accelerate import cpu_offload, dispatch_model

    model = FAMILIES[name].build()
    if where == "cpu":
        return cpu_offload(model, execution_device=torch.device("cpu"))
    parts = [part for part, _ in model.model.named_children()]
    places: dict[str, Any] = dict.fromkeys((f"model.{part}" for part in parts), "disk")
    if where == "mixed":
        places |= {place: "cpu" for place in places if "language" not in place}
    places["lm_head"] = "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main: Any = "cpu"  # the text, so that what is mapped to the CPU stays there
        return dispatch_model(model, places, main_device=main, offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("where", ["cpu", "mixed", "disk"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_wait_elsewhere(name: str, where: str, tmp_path: Path) -> None:
    model, plain = offloaded(name, where, tmp_path), model_of(name)
    inputs = inputs_of(name, plain)
    assert torch.equal(model.generate(**inputs, **GREEDY), plain.generate(**inputs, **GREEDY))
    for plan in PLANS if where == "cpu" else PLANS[-1:]:
        same_or_refused(
            lambda p=plan: results(model, name, p), plain_results(name, plan), "offload", 2e-5
        )  # an offloaded patch projection runs as a convolution


def quantised(name: str, how: str) -> Any:
    """A model with quantised linear layers, whose ``weight`` is no tensor of its own."""
    model = FAMILIES[name].build()
    if how == "torchao":
        api: Any = importlib.import_module("torchao.quantization")
        api.quantize_(model, api.Int8WeightOnlyConfig())
        return model
    kind = torch.float16 if how == "float16" else torch.qint8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=kind).eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_linear_layers_in_float16_give_what_rounded_weights_give(name: str) -> None:
    plain = FAMILIES[name].build()
    for layer in plain.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(layer.weight.half().float())
    model = quantised(name, "float16")
    for plan in PLANS:
        same_or_refused(lambda p=plan: results(model, name, p), results(plain, name, plan), "quant", 1e-4)


NO_TORCHAO = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is optional")


@pytest.mark.parametrize("how", ["int8", pytest.param("torchao", marks=NO_TORCHAO)])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_linear_layers_in_int8(name: str, how: str) -> None:
    """Their rounding depends on all rows of an input, so what is cut is compared by its counts alone.

    The counts of a feature gate depend on it too, so there is none.
    """
    gated = GATED.replace("grt", "grt:tau=0,second=none", 1)
    model = quantised(name, how)
    inputs = inputs_of(name, model)
    assert torch.equal(forward(model, inputs, "none"), model(**inputs).logits)
    assert torch.equal(generate(model, inputs, "none"), model.generate(**inputs, **GREEDY))
    found, plain = results(model, name, gated), results(FAMILIES[name].build(), name, gated)
    assert found.logits.shape == plain.logits.shape and bool(found.logits.isfinite().all())
    for field in ("cells", "encoded", "tokens", "prompt"):
        assert getattr(found.answer.report, field) == getattr(plain.answer.report, field)

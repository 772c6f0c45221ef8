"""vtoken.load passes arguments on, leaves the process as it was, and fails with errors of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import BertConfig, BitsAndBytesConfig, PreTrainedTokenizerFast
from transformers.utils import logging

import vtoken
from tests.families.tiny import model_of, moving_block
from tests.qa import processors as real
from vtoken import families
from vtoken.errors import InputError, MissingExtraError
from vtoken.qa.api import preprocessor_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny Qwen2.5-VL with a tokenizer and a template of its own."""
    path = tmp_path_factory.mktemp("checkpoint")
    model_of("qwen2_5_vl").save_pretrained(path)
    words = real.tokenizer_of("qwen2_5_vl", False)
    words.save_pretrained(path)
    (path / "chat_template.jinja").write_text(real.template_of("qwen2_5_vl"), encoding="utf-8")
    return path


def test_weights_and_prompts_are_those_of_the_checkpoint(folder: Path) -> None:
    model, words = vtoken.load(str(folder), "cpu")
    assert not model.training and model.dtype == torch.float32 and isinstance(words, PreTrainedTokenizerFast)
    mine = vtoken.ask(model, words, moving_block(4, 84, 112), "what?", native_fps=2, plan="none", max_new_tokens=3)
    tokenizer = real.tokenizer_of("qwen2_5_vl", False)
    tokenizer.chat_template = real.template_of("qwen2_5_vl")
    given = {"native_fps": 2, "plan": "none", "max_new_tokens": 3}
    want = vtoken.ask(model_of("qwen2_5_vl"), tokenizer, moving_block(4, 84, 112), "what?", **given)
    assert mine.tokens.tolist() == want.tokens.tolist() and mine.report.prompt == want.report.prompt


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "eager"},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}, "dtype": torch.float64},
        {"dtype": "bfloat16", "low_cpu_mem_usage": True},
        {"revision": "main", "token": False, "local_files_only": True, "cache_dir": None},
        {"use_safetensors": True, "trust_remote_code": False},
    ],
)
def test_arguments_reach_from_pretrained(folder: Path, options: dict[str, Any]) -> None:
    model, _ = vtoken.load(str(folder), **options)
    if "attn_implementation" in options:
        assert model.config._attn_implementation == "eager"
    kinds = {"bfloat16": torch.bfloat16, torch.float64: torch.float64}
    assert model.dtype == kinds.get(options.get("dtype"), torch.float32)


def test_the_revision_goes_to_every_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    seen: list[tuple[str, Any]] = []
    for name in ("AutoConfig", "AutoProcessor", "AutoTokenizer"):
        stock = getattr(transformers, name).from_pretrained

        def noting(path: str, *args: Any, _name: str = name, _stock: Any = stock, **kwargs: Any) -> Any:
            seen.append((_name, kwargs.get("revision")))
            return _stock(path, *args, **kwargs)

        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", noting)
    vtoken.load(str(folder), "cpu", revision="main")
    assert {name for name, _ in seen} == {"AutoConfig", "AutoProcessor", "AutoTokenizer"}
    assert {revision for _, revision in seen} == {"main"}


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub", [True, False])
def test_progress_bars_are_as_before(folder: Path, bars: bool, hub: bool) -> None:
    before = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    try:
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        (enable_progress_bars if hub else disable_progress_bars)()
        vtoken.load(str(folder), "cpu")
        with pytest.raises(InputError):
            vtoken.load(str(folder / "nothing"), "cpu")
        assert logging.is_progress_bar_enabled() == bars and are_progress_bars_disabled() != hub
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
        (disable_progress_bars if before[1] else enable_progress_bars)()


def test_errors_are_ours(folder: Path, tmp_path: Path) -> None:
    name = str(folder)
    with pytest.raises(InputError, match="no such|cannot be found"):
        vtoken.load(str(tmp_path / "nothing"), "cpu")
    for near in ("referense", "Reference"):  # at once: no hub is asked
        with pytest.raises(InputError, match="did you mean 'reference'"):
            vtoken.load(near)
    with pytest.raises(InputError, match="owner/name"):
        vtoken.load("qwen2.5-vl-7b")
    with pytest.raises(InputError, match=r"config\.json"):
        vtoken.load(str(tmp_path), "cpu")
    with pytest.raises(InputError, match="give one of them"):
        vtoken.load(name, "cpu", device_map="cpu")
    with pytest.raises(InputError, match="dtype='int8'"):
        vtoken.load(name, "cpu", "int8")
    with pytest.raises(InputError, match="dtype=torch.int8"):
        vtoken.load(name, "cpu", torch.int8)
    with pytest.raises(InputError, match="device='cpux'"):
        vtoken.load(name, "cpux")
    with pytest.raises(InputError, match="weights cannot be loaded"):
        vtoken.load(name, "cpu", attn_implementation="none of these")
    with pytest.raises(InputError, match="weights cannot be loaded"):
        vtoken.load(name, "cpu", no_such_argument=3)
    with pytest.raises((MissingExtraError, InputError), match="bitsandbytes"):
        vtoken.load(name, "cpu", quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert', which vtoken does not know"):
        vtoken.load(str(tmp_path), "cpu")


@pytest.mark.parametrize("own", [True, False])
def test_without_torchvision_the_checkpoints_own_video_settings_count(folder: Path, tmp_path: Path, own: bool) -> None:
    where = tmp_path / "copy"
    shutil.copytree(folder, where)
    for file in ("video_preprocessor_config.json", "processor_config.json"):
        (where / file).unlink(missing_ok=True)
    if own:
        settings = {"size": {"shortest_edge": 784, "longest_edge": 98_000}, "patch_size": 14, "merge_size": 2}
        settings |= {"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "video_processor_type": "Qwen2VLVideoProcessor"}
        (where / "video_preprocessor_config.json").write_text(json.dumps(settings))
    model, processor = vtoken.load(str(where), "cpu")
    if getattr(processor, "tokenizer", None) is not None:
        pytest.skip("torchvision is here, so that the processor itself is built")
    found = preprocessor_of(families.of(model), model, processor)
    stock = families.of(model).preprocess(model)
    assert (found == stock) == (not own)
    if own:
        assert (found.mean, found.min_pixels, found.max_pixels) == ((0.4,) * 3, 784, 98_000)
        assert found.patch == model.config.vision_config.patch_size

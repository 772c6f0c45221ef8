"""learned: the format of a scorer, what it is refused for, and that it scores what it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtoken
from tests.catalogue import SCORER
from tests.conftest import ROOT
from tests.families.tiny import FAMILIES, model_of
from tests.tokens import context, sample
from vtoken.data.budget import Budget
from vtoken.data.tokens import Tokens
from vtoken.errors import InputError
from vtoken.methods import learned, registry
from vtoken.methods.learned import ScorerNet, Shape, fingerprint, neighbours


def made(path: Path, **shape: Any) -> str:
    torch.manual_seed(1)
    given: dict[str, Any] = {"model_type": "qwen2_5_vl", "width": 12, "hidden": 16, "blocks": 1, "heads": 2} | shape
    return str(learned.save(ScorerNet(Shape(**given)), path))


def test_a_scorer_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    net = ScorerNet(Shape("x", 12, text=False, checkpoint="abc", keep=(0.2, 0.4), hidden=16, blocks=2, heads=4))
    found = learned.load(learned.save(net, tmp_path / "scorer"))
    assert found.shape == net.shape
    tokens = sample(20)
    place = tokens.position.float()
    torch.testing.assert_close(found(tokens.x, place, None), net(tokens.x, place, None), atol=2e-2, rtol=2e-2)


def test_the_order_of_tokens_does_not_matter() -> None:
    net, tokens = learned.load(SCORER), sample(30)
    order = torch.randperm(30)
    text = torch.randn(5, 12)
    whole = net(tokens.x, tokens.position.float(), text)
    torch.testing.assert_close(net(tokens.x[order], tokens.position[order].float(), text), whole[order])


def test_the_question_and_the_place_count() -> None:
    net, tokens = learned.load(SCORER), sample(30)
    place = tokens.position.float()
    first = net(tokens.x, place, torch.randn(5, 12))
    assert not torch.allclose(first, net(tokens.x, place, torch.randn(5, 12)))
    assert not torch.allclose(net(tokens.x, place, None), net(tokens.x, place + torch.tensor([3.0, 0, 0]), None))


def test_neighbours_are_those_of_the_same_cell() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 2]])  # cell (0, 0) at 0, 1 and 3 s; cell (0, 1) at 0 s
    place = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [3, 0, 0]])
    half = 0.5**0.5
    wanted = [[0, 0, half, 1], [0, 0, 0, 0], [half, 1, half, 1], [half, 1, 0, 0]]
    torch.testing.assert_close(neighbours(x, place), torch.tensor(wanted))


def test_seconds_stand_for_steps_where_they_are_known() -> None:
    from vtoken.pruners.learned import places

    tokens = sample(10)
    assert torch.equal(places(tokens)[:, 0], tokens.time)
    tokens.time[3] = torch.nan
    assert torch.equal(places(tokens)[:, 0], tokens.position[:, 0].float())


def test_the_highest_scores_are_kept() -> None:
    tokens, given = sample(40), context()
    method: Any = registry.build("learned", weights=SCORER)
    left = method.reduce(tokens, Budget(tokens=7), given)
    score = method.score(tokens, given)
    assert (left.source >= 0).nonzero().squeeze(1).tolist() == sorted(score.topk(7).indices.tolist())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "format 'vtoken-scorer' 2"),
        ({"format": "other"}, "format 'other' 1"),
        ({"width": None}, "width=None"),
        ({"hidden": 24}, "does not fit"),
        ({"heads": 3}, "multiple of heads=3"),
    ],
)
def test_a_config_that_is_wrong(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    folder = Path(made(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=told):
        registry.build("learned", weights=str(folder))


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs weights=FOLDER"):
        registry.build("learned")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        registry.build("learned", weights=str(tmp_path))
    folder = Path(made(tmp_path))
    weights = load_file(str(folder / "model.safetensors"))
    weights.pop("leave.1.bias")
    save_file(weights, str(folder / "model.safetensors"))
    with pytest.raises(InputError, match="does not fit"):
        registry.build("learned", weights=str(folder))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="damaged"):
        registry.build("learned", weights=str(folder))
    (folder / "config.json").write_text("[1")
    with pytest.raises(InputError, match="no JSON object"):
        registry.build("learned", weights=str(folder))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    folder = made(tmp_path)
    first = learned.load(folder)
    assert learned.load(folder) is first
    shutil.copytree(SCORER, folder, dirs_exist_ok=True)
    assert learned.load(folder) is not first


def test_tokens_of_another_model_are_refused() -> None:
    method: Any = registry.build("learned", weights=SCORER)
    wide = Tokens.of(torch.randn(5, 8), torch.zeros(5, 3, dtype=torch.long))
    with pytest.raises(InputError, match="tokens of width 12; here are tokens of width 8"):
        method.reduce(wide, Budget(tokens=2), context())
    other = context()
    other.extra["model_type"] = "llava"
    with pytest.raises(InputError, match="here are llava of width 12"):
        method.reduce(sample(9), Budget(tokens=2), other)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_in_a_model(name: str, tmp_path: Path) -> None:
    model, family = model_of(name), FAMILIES[name]
    table = model.get_input_embeddings().weight
    own = {"model_type": model.config.model_type, "width": table.shape[1], "checkpoint": fingerprint(table)}
    inputs = family.inputs(model, family.layouts()["image_video"])
    for checkpoint, noted in ((own["checkpoint"], False), ("another", True)):
        folder = made(tmp_path / checkpoint, **own | {"checkpoint": checkpoint})
        with torch.no_grad(), vtoken.wrapped(model, f"learned:weights={folder}", keep=0.5):
            model(**inputs)
            report = model.vtoken.report
        assert 0 < report.tokens <= report.cells * 0.6
        assert any("another checkpoint" in note for note in report.notes) == noted


def test_the_scorer_of_the_package_fits_the_reference_model() -> None:
    from vtoken.qa.load import load
    from vtoken.reference import data

    model, words = load("reference", "cpu")
    shape = learned.load(ROOT / "vtoken" / "reference" / "scorer").shape
    assert shape.checkpoint == fingerprint(model.get_input_embeddings().weight) and shape.text
    clip = data.clip(3, "validation")
    frames, _ = data.frames(clip, 8)
    asked = [q for q in data.questions(clip) if q.task in ("read", "order", "motion")][:8]
    options: dict[str, Any] = {"fps": "native", "native_fps": 8, "max_new_tokens": 8}
    right = {}
    for plan in ("learned:weights=reference", "random"):
        found = vtoken.ask_many(model, words, frames, [q.text for q in asked], plan=plan, keep=0.1, **options)
        assert not any("another checkpoint" in note for note in found[0].report.notes)
        right[plan] = sum(a.text == q.answer for a, q in zip(found, asked, strict=True))
    assert right["learned:weights=reference"] > right["random"]

"""Registry: names, options, clear errors, and that no method is left out of the catalogue or without a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from tests.catalogue import MERGERS, OWN_COUNT, PRUNERS
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.reducer import Pruner
from vtoken.methods.registry import Method, build, get, names, register

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"


@pytest.fixture
def scratch():
    """Methods registered in a test are forgotten after it."""
    before = dict(registry._methods)
    names()
    yield
    registry._methods.clear()
    registry._methods.update(before)


def test_every_pruner_and_merger_has_a_row_and_a_page():
    assert set(names("pruner")) == {row["name"] for row in PRUNERS}
    assert set(names("merger")) - {row["name"] for row in OWN_COUNT} <= {row["name"] for row in MERGERS}
    assert {row["name"] for row in (*MERGERS, *OWN_COUNT)} <= {*names("pruner"), *names("merger")}
    for name in set(names()) - set(names("gate")):  # gates share one page
        assert (PAGES / f"{name}.md").is_file(), name


@pytest.mark.parametrize("name", names())
def test_every_method_describes_itself(name):
    cls = get(name)
    assert cls.name == name
    assert cls.kind in ("gate", "encoder", "pruner", "merger", "inner", "cache", "pathway")
    assert 10 < len(cls.describe()) <= 120
    assert "(" not in cls.describe().split()[0], "the dataclass wrote the docstring"
    assert str(build(name)) == name


def test_unknown_names_get_a_hint():
    with pytest.raises(InputError, match="did you mean divprune"):
        get("divprun")
    with pytest.raises(InputError, match="known methods: .*uniform"):
        get("zzzz")


def test_taken_name(scratch):
    with pytest.raises(InputError, match=r"'evs' is taken by vtoken\.pruners\.evs\.EVS"):

        @register("evs")
        class EVS(Method):
            """Another class of the same name elsewhere."""


def test_options_show_in_text_when_they_differ_from_the_default():
    assert str(build("evs", exact=True, keep=0.5)) == "evs:keep=0.5,exact=True"
    assert str(build("random", seed=0)) == "random"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("divprune", {"ratio": 0.5}, "no option 'ratio'; it has: .*keep"),
        ("random", {"seed": "abc"}, "seed='abc' is no int"),
        ("random", {"seed": 1.5}, "seed=1.5 is no int"),
        ("random", {"seed": True}, "seed=True is no int"),
        ("evs", {"exact": 1}, "exact=1 is no bool"),
        ("evs", {"keep": "many"}, "keep='many' is no float"),
        ("evs", {"keep": float("nan")}, "keep=nan is no float"),
        ("evs", {"keep": 0.0}, "above 0"),
        ("evs", {"keep": 1.5}, "at most 1"),
        ("evs", {"keep": 0.5, "tokens": 3}, "exactly one"),
        ("evs", {"tokens": 0}, "at least 1"),
        ("evs", {"per_second": -1}, "above 0"),
        ("evs", {"anchors": -1}, "anchors=-1"),
        ("random", {"seed": -1}, "seed=-1"),
        ("none", {"keep": 0.5}, "takes no budget"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)


def test_types_of_options(scratch):
    @register("typed")
    @dataclass(kw_only=True)
    class Typed(Method):
        """A method with options of several types."""

        kind: ClassVar[str] = "gate"
        place: Literal["first", "last"] = "last"
        layers: list[int] = field(default_factory=list)
        scale: float | None = None

    assert str(build("typed")) == "typed"
    assert str(build("typed", layers=[1], scale=2)) == "typed:layers=[1],scale=2"
    for options in ({"place": "middle"}, {"layers": 3}, {"scale": "2"}):
        with pytest.raises(InputError, match="is no "):
            build("typed", **options)


def test_subclass_without_options_is_a_method(scratch):
    @register("plain")
    class Plain(Pruner):
        """A pruner that is no dataclass itself."""

    assert str(build("plain", keep=0.5)) == "plain:keep=0.5"


def test_missing_signals_in_words():
    class Picky(Method):
        needs: ClassVar[frozenset[str]] = frozenset({"keys", "text"})
        accepts: ClassVar[frozenset[str]] = frozenset({"cls_attention", "received_attention"})

    assert Picky.missing({"text"}) == ["keys", "cls_attention or received_attention"]
    assert Picky.missing({"text", "keys", "received_attention"}) == []


def test_signals_of_layers_by_wildcard():
    class Deep(Method):
        needs: ClassVar[frozenset[str]] = frozenset({"keys@5"})
        accepts: ClassVar[frozenset[str]] = frozenset({"cls_attention@0", "received_attention"})

    assert Deep.missing({"keys@*", "cls_attention@*"}) == []
    assert Deep.missing({"keys@5", "received_attention"}) == []
    assert Deep.missing({"keys", "keys@4", "cls_attention"}) == ["keys@5", "cls_attention@0 or received_attention"]


def test_broken_plugin_warns_and_harms_nobody(monkeypatch):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("theirs", "no_such_module_of_theirs:Method", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    registry._load.cache_clear()
    with pytest.warns(UserWarning, match="theirs = no_such_module_of_theirs"):
        assert "evs" in names("pruner")

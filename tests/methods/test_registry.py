"""Registry: names, options, clear errors, and that no method is left out of the catalogue or without a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest

from tests.catalogue import MERGERS, OWN_COUNT, PRUNERS, SCORER
from vtoken.errors import InputError
from vtoken.methods import registry
from vtoken.methods.anchors import Anchors
from vtoken.methods.options import Bound, Share
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
    assert cls.kind in ("size", "gate", "image", "encoder", "pruner", "merger", "inner", "cache", "pathway")
    assert 10 < len(cls.describe()) <= 120
    assert "(" not in cls.describe().split()[0], "the dataclass wrote the docstring"
    required = {"encoder": "tiny", "weights": SCORER}
    options = {n: v for n, v in required.items() if n in cls.__dataclass_fields__}  # type: ignore[attr-defined]
    assert str(build(name, **options)) == ":".join([name, *(f"{n}={v}" for n, v in options.items())])


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
        ("random", {"seed": "abc"}, "seed='abc' must be a whole number"),
        ("random", {"seed": 1.5}, "seed=1.5 must be"),
        ("random", {"seed": True}, "seed=True must be"),
        ("evs", {"exact": 1}, "exact=1 must be True or False"),
        ("evs", {"keep": "many"}, "keep='many' must be a finite number, or None"),
        ("evs", {"keep": float("nan")}, "keep=nan must be a finite number"),
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
        with pytest.raises(InputError, match="must be"):
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


def test_bounds_of_options(scratch):
    @register("bounded")
    @dataclass(kw_only=True)
    class Bounded(Method):
        """A method whose options have ranges."""

        kind: ClassVar[str] = "gate"
        share: Share = 0.5
        period: Annotated[float | None, Bound(above=0, hint="None for never")] = None
        layer: Annotated[int, Bound(most=-1)] = -2

    for options in ({"share": 0}, {"share": 1}, {"share": np.float32(0.5)}, {"period": 1e-9}, {"layer": -1}):
        build("bounded", **options)
    for options, message in (
        ({"share": 1.01}, "bounded:share=1.01 must be a finite number from 0 to 1$"),
        ({"period": 0}, "bounded:period=0 must be a finite number above 0, or None; None for never$"),
        ({"layer": 0}, "bounded:layer=0 must be a whole number of at most -1$"),
        ({"share": float("inf")}, "share=inf must be"),
    ):
        with pytest.raises(InputError, match=message):
            build("bounded", **options)
        with pytest.raises(InputError, match=message):
            Bounded(**options)  # the same where no registry is asked


def test_an_option_given_twice_is_refused():
    with pytest.raises(InputError, match="'seed' of random is given twice"):
        registry.parse("random:seed=1,seed=2")


@pytest.mark.parametrize(
    ("text", "anchors"),
    [
        ("2", Anchors(2)),
        ("(spread:3)", Anchors(3, "spread")),
        ("(random:2,seed=5)", Anchors(2, "random", 5)),
        ("(16,reuse)", Anchors(16, reuse=True)),
        ("(first:1,seed=3,reuse)", Anchors(1, "first", 3, True)),
    ],
)
def test_anchors_as_text(text: str, anchors: Anchors):
    made = registry.parse(f"mad:anchors={text}")
    assert made.anchors == anchors and made == build("mad", anchors=anchors)  # type: ignore[attr-defined]
    assert str(made) == f"mad:anchors={text}" and registry.parse(str(made)) == made


@pytest.mark.parametrize(
    "text", ["(middle:1)", "(spread:)", "(spread:1,often)", "(seed=1)", "abc", "(1,seed=x)", "1.5"]
)
def test_bad_anchors_are_refused(text: str):
    with pytest.raises(InputError, match="mad:anchors="):
        registry.parse(f"mad:anchors={text}")


def test_anchors_of_reducers_are_not_encoded():
    with pytest.raises(InputError, match="divprune:anchors=.*reuse is for gates"):
        registry.parse("divprune:anchors=(1,reuse)")

"""``kv=`` of a wrapped model: a method that takes rows out of the cache, or a cache whose rows are quantised."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vtoken.engine.memory.memory import ALIASES, policy_of
from vtoken.errors import InputError, MissingExtraError, UnsupportedError
from vtoken.methods import registry
from vtoken.methods.eviction import Eviction
from vtoken.methods.plan import Plan

QUANTISED = ("fp8", "int8", "int4")
INTEGER = {
    "int8": (("hqq", {"nbits": 8, "axis_key": 1, "axis_value": 1}),),
    "int4": (("quanto", {"nbits": 4}), ("hqq", {"nbits": 4, "axis_key": 1, "axis_value": 1})),
}


@dataclass(frozen=True)
class Kv:
    """What becomes of the cache.

    Attributes:
        text: as it was given; "" for nothing.
        eviction: takes rows out behind the prefill, or None.
        arguments: of ``generate``, for a quantised cache.
    """

    text: str = ""
    eviction: Eviction | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kv: str | Eviction | None, model: Any) -> Kv:
        """What ``kv=`` means for a model.

        Args:
            kv: "fp8", "int8", "int4", or a method of the kind "cache" such as "tar_van", "snapkv:keep=0.25".

        Raises:
            InputError: neither of them.
            UnsupportedError: the model cannot have a quantised cache.
            MissingExtraError: the package that quantises is not installed.
        """
        if kv is None:
            return cls()
        if isinstance(kv, str) and kv in QUANTISED:
            return cls(kv, None, _quantised(kv, model))
        try:
            return cls(str(kv), policy_of(kv))
        except InputError as error:
            names = ", ".join([*QUANTISED, *registry.names("cache"), *ALIASES])
            raise InputError(f"kv={kv!r}: {error}; known are {names}") from error

    def added(self, plan: Plan) -> Plan:
        """The plan with the method that takes rows out.

        Raises:
            UnsupportedError: a quantised cache, and a plan that takes rows out of it or holds cells in it.
        """
        if self.arguments:
            what = _cannot(plan)
            if what:
                raise UnsupportedError(
                    f"kv={self.text!r} stores rows that cannot be taken out or turned, and plan {str(plan)!r} {what}"
                )
            return plan
        if self.eviction is None or any(s is self.eviction for s in plan.stages):
            return plan
        if plan.evictions:
            raise InputError(
                f"kv={self.text!r}: plan {str(plan)!r} takes rows out of the cache already; name one of them only"
            )
        return dataclasses.replace(plan, stages=(*plan.stages, self.eviction))

    def fill(self, inputs: dict[str, Any]) -> None:
        """Ask ``generate`` for the quantised cache, unless its arguments name a cache.

        Raises:
            UnsupportedError: decoding that takes rows back.
        """
        config = inputs.get("generation_config")
        named = inputs.get("cache_implementation") or getattr(config, "cache_implementation", None)
        if not self.arguments or inputs.get("past_key_values") is not None or named:
            return
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if inputs.get(name) is not None or getattr(config, name, None) is not None:
                raise UnsupportedError(
                    f"kv={self.text!r}: a quantised cache cannot take back tokens of a draft; leave out {name}="
                )
        inputs.update(self.arguments)


def _cannot(plan: Plan) -> str:
    """What a plan does that a quantised cache cannot, with the remedy; "" for nothing."""
    if plan.evictions:
        return f"takes rows out ({plan.evictions[0].name}); leave one of the two out"
    cuts = [s for s in plan.inner if s.cuts_cache]
    if cuts:
        return f"takes rows out of layers that have run ({cuts[0].name}); leave one of the two out"
    if plan.hold is not None and not plan.acts_inside:
        return f"holds skipped cells; write {plan.gate.name}:hold=off" if plan.gate else "holds skipped cells"
    return ""


def _quantised(kv: str, model: Any) -> dict[str, Any]:
    """Arguments of ``generate`` for a quantised cache; one is made to see that it can be."""
    from transformers.cache_utils import QuantizedCache

    text = model.config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    group = next((g for g in (64, 32, 16) if size % g == 0), size)
    backends = (("fp8", {}),) if kv == "fp8" else tuple((b, o | {"q_group_size": group}) for b, o in INTEGER[kv])
    missing: list[str] = []
    for backend, options in backends:
        try:
            QuantizedCache(backend=backend, config=text, **options)
        except ImportError as error:
            missing.append(str(error).strip().splitlines()[0])
            continue
        except (ValueError, TypeError) as error:
            if "backend" in str(error) and kv == "fp8":
                raise UnsupportedError(
                    "kv='fp8' needs a later transformers, whose QuantizedCache has the backend fp8"
                ) from error
            raise UnsupportedError(f"kv={kv!r}: this model cannot have a quantised cache ({error})") from error
        return {"cache_implementation": "quantized", "cache_config": {"backend": backend, **options}}
    packages = "hqq" if kv == "int8" else "optimum-quanto (or hqq)"
    raise MissingExtraError(
        f"kv={kv!r} needs {packages}: {missing[0]} Install it with: pip install {packages.split()[0]}"
    )

# pyright: reportMissingImports=false
"""The model ``vtoken_hf`` of lmms-eval: one of lmms-eval's own models, with a plan inside ``generate``.

Frames, prompts and processors are lmms-eval's, so that runs differ in their visual tokens alone. Imported by lmms-eval,
through ``vtoken.bench.lmms``.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models import get_model
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from vtoken.data.report import Report
from vtoken.engine.wrap import wrap
from vtoken.errors import InputError, UnsupportedError


class Counted:
    """A wrapped model as lmms-eval's model sees it; keeps the report of every call of ``generate``."""

    def __init__(self, model: Any, reports: list[Report]) -> None:
        self._model, self._reports = model, reports

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """The wrapped model's ``generate``."""
        out = self._model.generate(*arguments, **named)
        if self._model.vtoken.report is not None:
            self._reports.append(self._model.vtoken.report)
        return out


class VtokenHf(lmms):
    """``lmms_eval --model vtoken_hf --model_args "base=qwen2_5_vl,pretrained=...,plan=divprune,keep=0.25"``.

    Args:
        base: name of a model of lmms-eval that runs a Hugging Face model by its ``generate``, such as "qwen2_5_vl",
            "qwen3_vl", "llava_hf" or "huggingface".
        plan: stages as text.
        keep, tokens, per_second: budget of the plan.
        sampled_fps: frames a second of the videos, where the model's inputs do not hold it, see ``vtoken.wrap``.
        positions: see ``vtoken.wrap``; "stock" is what lmms-eval's models use without a plan.
        options: arguments of the base model.
    """

    is_simple = False

    def __init__(
        self,
        base: str = "huggingface",
        plan: str = "grt",
        keep: float | None = None,
        tokens: int | None = None,
        per_second: float | None = None,
        sampled_fps: float | None = None,
        positions: str = "stock",
        **options: Any,
    ) -> None:
        super().__init__()
        kind = get_model(base)
        if getattr(kind, "is_simple", True) or base.startswith("vtoken"):
            raise InputError(f"base={base}: give a chat model of lmms-eval, such as qwen2_5_vl or qwen3_vl")
        self.base: Any = kind(**options)
        model = getattr(self.base, "model", None)
        if not hasattr(model, "generate"):
            raise UnsupportedError(f"base={base} runs no Hugging Face model here; give for example qwen2_5_vl")
        processor = getattr(self.base, "processor", None) or getattr(self.base, "_image_processor", None)
        budget = {"keep": keep, "tokens": tokens, "per_second": per_second}
        wrap(model, plan, **budget, fps=sampled_fps, processor=processor, positions=positions)  # type: ignore[arg-type]
        self.reports: list[Report] = []
        self.base._model = Counted(model, self.reports)
        self.base.task_dict = self.task_dict

    @property
    def rank(self) -> int:
        return self.base.rank

    @property
    def world_size(self) -> int:
        return self.base.world_size

    def set_cache_hook(self, cache_hook: Any) -> None:
        """lmms-eval's cache of answers, for the base model."""
        super().set_cache_hook(cache_hook)
        self.base.set_cache_hook(cache_hook)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The base model's answers; the means of visual tokens go to lmms-eval's metrics."""
        self.reports.clear()
        answers = self.base.generate_until(requests)
        n, cells = max(1, len(self.reports)), sum(r.cells for r in self.reports)
        sent = sum(r.tokens for r in self.reports)
        more = {"visual_tokens_full": cells / n, "visual_tokens": sent / n, "visual_tokens_kept": sent / max(1, cells)}
        log_metrics(0.0, 0, 0.0, more)  # times are the base model's
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Not offered."""
        raise UnsupportedError("the model vtoken_hf has no log-likelihoods; choose a task that generates")

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Not offered."""
        raise UnsupportedError("the model vtoken_hf has no rounds of lmms-eval; choose a task that generates once")

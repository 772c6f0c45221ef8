"""What Prometheus reads at ``/metrics``; every server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vtoken.serve.replies import Done

ONCE = ("decode", "gate", "pathway", "prepare", "encode")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts and times of one server."""

    def __init__(self, taken: Callable[[], float], running: Callable[[], float], kept: Callable[[], float]) -> None:
        self.registry = own = CollectorRegistry()
        self._requests = Counter("vtoken_requests", "Chat completions by HTTP status", ["status"], registry=own)
        self._tokens = Counter("vtoken_visual_tokens", "Visual tokens, sent and in full", ["of"], registry=own)
        self._text = Counter("vtoken_tokens", "Tokens of prompts as sent, and of answers", ["of"], registry=own)
        self._stages = Counter("vtoken_stage_seconds", "Seconds by stage of the pipeline", ["stage"], registry=own)
        self.first = Histogram(
            "vtoken_first_token_seconds", "From the request to the first text", registry=own, buckets=SECONDS
        )
        self.whole = Histogram(
            "vtoken_answer_seconds", "From the request to the end of the answer", registry=own, buckets=SECONDS
        )
        gauges = (
            ("vtoken_requests_present", "Requests that wait or are answered", taken),
            ("vtoken_model_busy", "1 while the model runs", running),
            ("vtoken_videos_kept", "Videos kept for further questions", kept),
        )
        for name, text, value in gauges:
            Gauge(name, text, registry=own).set_function(value)

    def ended(self, status: int) -> None:
        """A request is over; 499 where the client left."""
        self._requests.labels(str(status)).inc()

    def answered(self, done: Done) -> None:
        """Add what an answer cost."""
        report = done.answer.report
        self._tokens.labels("sent").inc(report.tokens)
        self._tokens.labels("full").inc(report.cells)
        self._text.labels("prompt").inc(report.prompt)
        self._text.labels("answer").inc(len(done.answer.tokens))
        for stage, spent in report.milliseconds.items():
            if done.reused and stage in ONCE:  # the report has the time of the call that did it
                continue
            self._stages.labels(stage).inc(spent / 1e3)

    def text(self) -> bytes:
        """The page of metrics."""
        return generate_latest(self.registry)


def media_type() -> str:
    """Content type of the page."""
    return str(CONTENT_TYPE_LATEST)

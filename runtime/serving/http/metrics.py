"""Prometheus metrics under vLLM's names, so that its dashboards and gateways read them; own registry per server."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from megrez.runtime.serving.llm import LLM
from megrez.runtime.serving.request import Token

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NEXT_TOKEN_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)


class Metrics:
    """What is counted; see `Gauges` for what is looked up when asked."""

    def __init__(self, llm: LLM, model: str) -> None:
        self._registry = CollectorRegistry()
        labels: dict[str, Any] = {"labelnames": ("model_name",), "registry": self._registry}

        def counter(name: str, help: str) -> Any:
            return Counter(name, help, **labels).labels(model)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of all requests.")
        self.generation_tokens = counter("vllm:generation_tokens", "Generated tokens.")
        self.prefix_queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the KV cache.")
        self.prefix_hits = counter("vllm:prefix_cache_hits", "Prompt tokens that the KV cache held.")
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "From a request's arrival.", buckets=FIRST_TOKEN_S, **labels
        ).labels(model)
        self.next_token = Histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", buckets=NEXT_TOKEN_S, **labels
        ).labels(model)
        self._finished = Counter(
            "vllm:request_success",
            "Finished sequences.",
            labelnames=("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._model = model
        self._registry.register(_Gauges(llm, model))

    def observe(self, token: Token, *, first: bool) -> None:
        self.generation_tokens.inc()
        (self.first_token if first else self.next_token).observe(token.seconds)
        if token.finish_reason:
            self._finished.labels(self._model, token.finish_reason).inc()

    def observe_aborted(self, sequences: int) -> None:
        self._finished.labels(self._model, "abort").inc(sequences)

    def observe_prompt(self, tokens: int, cached: int) -> None:
        self.prompt_tokens.inc(tokens)
        self.prefix_queries.inc(tokens)
        self.prefix_hits.inc(cached)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges:
    """A collector: what the engine is doing now, and what it counts itself."""

    def __init__(self, llm: LLM, model: str) -> None:
        self._llm, self._model = llm, model

    def collect(self) -> Iterator[Metric]:
        running, waiting, cached = self._llm.load()
        capacity = self._llm.session.slots * self._llm.session.capacity
        for name, help, value in (
            ("vllm:num_requests_running", "Sequences in a slot.", running),
            ("vllm:num_requests_waiting", "Requests that wait for a slot.", waiting),
            (
                "vllm:kv_cache_usage_perc",
                "Share of the KV cache that running sequences fill, 0 to 1.",
                cached / capacity,
            ),
        ):
            gauge = GaugeMetricFamily(name, help, labels=("model_name",))
            gauge.add_metric((self._model,), value)
            yield gauge
        yield from self._drafts()

    def _drafts(self) -> Iterator[Metric]:
        totals = self._llm.speculation
        if totals is None:
            return
        for name, help, value in (
            ("vllm:spec_decode_num_drafts", "Drafts of one or more tokens.", totals.drafts),
            ("vllm:spec_decode_num_draft_tokens", "Drafted tokens.", totals.drafted),
            ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were generated.", totals.accepted),
        ):
            counter = CounterMetricFamily(name, help, labels=("model_name",))
            counter.add_metric((self._model,), value)
            yield counter

"""Embeddings, rerank and score: requests that end with their prefill. The shapes are vLLM's, the numbers invented.

Equal texts get equal numbers on every worker.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import xxhash

from router.simulator.intake import Intake, Plan, PlannedChoice, refuse
from router.simulator.requests import PoolingRequest
from router.simulator.wire import Choice, End, Usage


class PoolingWire:
    """A reply that is never streamed. Its data is given; its usage is added at the end."""

    def __init__(self, body: dict[str, Any], *, has_total_only: bool = False) -> None:
        self._body = body
        self._has_total_only = has_total_only

    def opening(self, choice: int, usage: Usage, prompt_ids: Sequence[int] | None) -> bytes:
        raise NotImplementedError

    def delta(self, choice: int, text: bytes, ids: Sequence[int] | None, end: End | None) -> bytes:
        raise NotImplementedError

    def closing(self, usage: Usage) -> bytes:
        raise NotImplementedError

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        del choices
        counts: dict[str, Any] = {"total_tokens": usage.prompt_tokens}
        if not self._has_total_only:
            counts = {"prompt_tokens": usage.prompt_tokens, **counts, "completion_tokens": 0}
        return msgspec.json.encode({**self._body, "usage": counts})


def _unit(text: str, seed: int) -> float:
    """A number from 0 to 1, made of the text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed) / (1 << 64)


def _texts(value: Any, param: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        refuse(400, f"{param} must be a string or a list of strings", param=param)
    return texts


def _plan(intake: Intake, request: PoolingRequest, prompts: list[str], wire: PoolingWire) -> Plan:
    kv_name = intake.model_of(request.model)[1]
    salt = request.cache_salt or ""
    generations = [intake.pool(prompt.encode("utf-8", "surrogatepass"), kv_name, salt) for prompt in prompts]
    choices = [PlannedChoice(generation, 0, None) for generation in generations]
    return Plan(wire, choices, is_stream=False, wants_ids=False, n=1)


def plan_embeddings(intake: Intake, body: bytes, request_id: str, created_s: int, dims: int) -> Plan:
    """`/v1/embeddings`: a vector of `dims` numbers for each input."""
    request = intake.decode(body, PoolingRequest)
    texts = _texts(request.input, "input")
    data = [
        {"index": index, "object": "embedding", "embedding": [_unit(text, dim) * 2 - 1 for dim in range(dims)]}
        for index, text in enumerate(texts)
    ]
    model = intake.model_of(request.model)[0]
    head = {"id": f"embd-{request_id}", "object": "list", "created": created_s, "model": model, "data": data}
    return _plan(intake, request, texts, PoolingWire(head))


def plan_rerank(intake: Intake, body: bytes, request_id: str) -> Plan:
    """`/v1/rerank`: the documents by relevance, best first."""
    request = intake.decode(body, PoolingRequest)
    query, documents = _texts(request.query, "query")[0], _texts(request.documents, "documents")
    results = [
        {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": _unit(query + text, 0)}
        for index, text in enumerate(documents)
    ]
    results.sort(key=_relevance, reverse=True)
    top = results[: request.top_n] if request.top_n else results
    head = {"id": f"rerank-{request_id}", "model": intake.model_of(request.model)[0], "results": top}
    return _plan(intake, request, [query + text for text in documents], PoolingWire(head, has_total_only=True))


def _relevance(result: dict[str, Any]) -> float:
    score: float = result["relevance_score"]
    return score


def plan_score(intake: Intake, body: bytes, request_id: str, created_s: int) -> Plan:
    """`/v1/score`: one score for each pair. A single text_1 is paired with each text_2."""
    request = intake.decode(body, PoolingRequest)
    lefts, rights = _texts(request.text_1, "text_1"), _texts(request.text_2, "text_2")
    if len(lefts) == 1:
        lefts *= len(rights)
    if len(lefts) != len(rights):
        refuse(400, "text_1 and text_2 must be of the same length", param="text_1")
    pairs = [left + right for left, right in zip(lefts, rights, strict=True)]
    data = [{"index": at, "object": "score", "score": _unit(pair, 0)} for at, pair in enumerate(pairs)]
    model = intake.model_of(request.model)[0]
    head = {"id": f"score-{request_id}", "object": "list", "created": created_s, "model": model, "data": data}
    return _plan(intake, request, pairs, PoolingWire(head))

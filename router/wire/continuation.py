"""Whether another worker may continue a broken stream, and with which request. Pure; raises Unsafe if it may not.

There are two ways. *Exact*: the token ids of the prompt and of the delivered answer are known, so /v1/completions continues
after them with the same sampling. *By text*: the answer so far becomes the last message, or the end of the prompt, and is
tokenised anew. Measurements (20 greedy prompts on two workers) decide which parameters may be carried over. A parameter that is
in none of the tables below could mean anything, so it makes a stream unsafe to continue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from router.core.request.routes import PromptForm, Route
from router.wire.transcript import REPLACEMENT, Delivered

MAX_STEPS_BACK = 32
"""Most ids dropped to reach a whole character or a known text: 30 was the maximum in 14,000 cuts."""

COMPLETIONS_MAX_TOKENS = 16
"""vLLM's default on /v1/completions."""

_CARRIED = frozenset(
    (
        *("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "length_penalty", "logit_bias"),
        *("stop_token_ids", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens"),
        *("allowed_token_ids", "priority", "cache_salt", "session_id", "stream_interval", "user"),
        "include_stop_str_in_output",  # holds for stop_token_ids too, which the worker heeds
    )
)
"""Parameters that mean the same for the rest of an answer as for the whole."""

_ANSWERED = frozenset(
    (
        *("messages", "prompt", "max_tokens", "max_completion_tokens", "min_tokens", "frequency_penalty", "stop"),
        *("stream", "stream_options", "return_token_ids", "seed", "tools", "tool_choice"),
        *("parallel_tool_calls", "chat_template", "chat_template_kwargs", "add_generation_prompt", "documents"),
        *("continue_final_message", "add_special_tokens", "reasoning_effort", "truncate_prompt_tokens", "request_id"),
        *("truncation_side", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    )
)
"""Parameters that are handled here by name, or that only shaped the prompt, whose ids are known."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),  # completions' 0 is no false: it asks for the drawn token's
    "top_logprobs": (0,),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "include_reasoning": (True,),
    "watermarking": (False,),
    "suffix": ("",),
    "return_tokens_as_token_ids": (False,),
}
"""Parameters that are safe only at these values and null: a grammar starts anew, a penalty loses its counts, choices
interleave."""


class Unsafe(Exception):
    """A continuation could show the client a wrong answer. ``reason`` is one of a closed set."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Asked(msgspec.Struct, frozen=True):
    """The parts of the client's request on which the rest of an answer depends."""

    route: Route
    members: dict[str, Any]
    stops: tuple[str, ...]
    keeps_stop: bool
    """The answer includes the stop string."""
    max_tokens: int | None
    min_tokens: int
    wants_usage: bool
    wants_ids: bool


class Seam(msgspec.Struct, frozen=True):
    """Where the old answer ends and the new one begins."""

    kept_ids: int
    """The number of delivered ids with which the new request begins."""
    skipped: str = ""
    """The beginning of the new text, which the client has already."""
    held: str = ""
    """Text of the kept ids that the old worker had not sent, since a stop string might have begun in it."""


def has_one_answer(members: Mapping[str, Any]) -> bool:
    """False if choices interleave, so that the first reason for finishing ends only one of them."""
    prompt = members.get("prompt")
    is_batch = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return members.get("n") in (None, 1) and not is_batch


def may_resume(members: Mapping[str, Any]) -> bool:
    """A quick check of each request, which finds most of those whose stream cannot be continued."""
    return has_one_answer(members) and not _may_call_tools(members) and not members.get("echo")


def _may_call_tools(members: Mapping[str, Any]) -> bool:
    return bool(members.get("tools")) and members.get("tool_choice") != "none"


def read_asked(route: Route, body: bytes, *, wants_usage: bool, hides_ids: bool) -> Asked:
    """``body``: as it went to the first worker. Raises Unsafe("parameters"), Unsafe("tools"), Unsafe("media")."""
    members: dict[str, Any] = msgspec.json.decode(body)
    given = {name: value for name, value in members.items() if value is not None}
    for name, value in given.items():
        if name in _NEUTRAL:
            if not any(_is_same(value, neutral) for neutral in _NEUTRAL[name]):
                raise Unsafe("parameters")
        elif name not in _CARRIED and name not in _ANSWERED:
            raise Unsafe("parameters")
    if not has_one_answer(given):
        raise Unsafe("parameters")
    if not all(map(_is_text, given.get("messages", ()))):
        raise Unsafe("media")  # ids are placeholders of images, without the images
    if _may_call_tools(given):
        raise Unsafe("tools")
    if "seed" in given and given.get("temperature") != 0:
        raise Unsafe("parameters")  # a random generator cannot be advanced
    stop = given.get("stop") or []
    stops = tuple(filter(None, [stop] if isinstance(stop, str) else stop))
    if stops and given.get("min_tokens"):
        raise Unsafe("parameters")  # the worker decides how much of the held text it searched for them
    limit = given.get("max_tokens")
    if route.spec.prompt is PromptForm.MESSAGES:
        limit = given.get("max_completion_tokens", limit)
    elif "max_tokens" not in members:
        limit = COMPLETIONS_MAX_TOKENS
    return Asked(
        route=route,
        members=given,
        stops=stops,
        keeps_stop=bool(given.get("include_stop_str_in_output")),
        max_tokens=limit,
        min_tokens=int(given.get("min_tokens", 0)),
        wants_usage=wants_usage,
        wants_ids=bool(given.get("return_token_ids")) and not hides_ids,
    )


def _is_same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _is_text(message: Any) -> bool:
    content = message.get("content")
    return not isinstance(content, list) or all(
        isinstance(part, dict) and part.get("type") in ("text", "refusal") for part in content
    )


def require_plain(delivered: Delivered) -> None:
    """Raises Unsafe("parsed") if a parser of the first worker changed the text: another worker cannot continue that."""
    if not delivered.is_plain:
        raise Unsafe("parsed")


class SeamFinder:
    """Finds the seam of an exact continuation by asking for texts: ``while (ids := finder.question): finder.hear(text)``.

    Workers hold text back until its character is whole. A request that begins inside a character makes them send all
    before it as text, system prompt included, so the seam lies where the text is whole.
    """

    def __init__(self, asked: Asked, delivered: Delivered) -> None:
        self._delivered = delivered
        self._has_stops = bool(asked.stops)
        self._first = self._at = len(delivered.ids) if asked.stops else delivered.whole_ids
        self._is_sure = not self._at or not (asked.stops or delivered.is_grouped)
        self._text = ""

    @property
    def question(self) -> list[int] | None:
        """Ids whose text decides; None: the seam is found. Raises Unsafe("seam") if it cannot be found."""
        if self._is_sure:
            return None
        if self._first - self._at > MAX_STEPS_BACK:
            raise Unsafe("seam")
        return self._delivered.ids[: self._at].tolist()

    def hear(self, text: str) -> None:
        """The text of the ids in question."""
        if text.endswith(REPLACEMENT):
            self._at -= 1
            self._is_sure = not self._at
            self._text = ""
        else:
            self._is_sure = True
            self._text = text

    @property
    def seam(self) -> Seam:
        """Raises Unsafe("seam") if the ids' text differs from the client's."""
        had = self._delivered.text
        if self._at == self._first and not self._has_stops:  # that chunk's text ended with its last id
            return Seam(self._at, skipped=had[self._delivered.whole_chars :])
        if had.startswith(self._text):
            return Seam(self._at, skipped=had[len(self._text) :])
        if self._text.startswith(had):
            return Seam(self._at, held=self._text[len(had) :])
        raise Unsafe("seam")


def exact_body(asked: Asked, delivered: Delivered, seam: Seam, max_model_len: int | None) -> bytes:
    """The body for /v1/completions. Raises Unsafe("length") if the answer's longest length is unknown."""
    prompt = delivered.prompt_ids or []
    kept = delivered.ids[: seam.kept_ids].tolist()
    limit = asked.max_tokens
    if limit is None and max_model_len is not None:
        limit = max_model_len - len(prompt)
    if limit is None or limit <= len(kept):
        raise Unsafe("length")
    body = {
        **_carried(asked),
        "prompt": [*prompt, *kept],
        "max_tokens": limit - len(kept),
        "min_tokens": max(asked.min_tokens - len(kept), 0),
        "return_token_ids": True,
    }
    if penalty := asked.members.get("frequency_penalty"):
        bias = dict(asked.members.get("logit_bias") or {})
        for token, count in Counter(kept).items():
            bias[str(token)] = bias.get(str(token), 0.0) - penalty * count
        body |= {"logit_bias": bias, "frequency_penalty": penalty}
    return msgspec.json.encode(body)


def text_body(asked: Asked, delivered: Delivered) -> bytes:
    """The body for the first request's route. Raises Unsafe for parameters that count tokens, which are unknown here."""
    members, text = asked.members, delivered.text
    if members.get("frequency_penalty") or asked.min_tokens or members.get("truncate_prompt_tokens"):
        raise Unsafe("parameters")
    body = {name: value for name, value in members.items() if name not in ("stop", "max_completion_tokens", "seed")}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if asked.max_tokens is not None:
        if asked.max_tokens <= delivered.chunks:
            raise Unsafe("length")
        body["max_tokens"] = asked.max_tokens - delivered.chunks
    if text and asked.route.spec.prompt is PromptForm.TEXT:
        if not isinstance(members.get("prompt"), str):
            raise Unsafe("parameters")
        body["prompt"] = members["prompt"] + text
    elif text:
        messages = list(members["messages"])
        if members.get("continue_final_message"):
            last = messages.pop()
            if not isinstance(last.get("content"), str):
                raise Unsafe("parameters")
            text = last["content"] + text
        body["messages"] = [*messages, {"role": "assistant", "content": text}]
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return msgspec.json.encode(body)


def _carried(asked: Asked) -> dict[str, Any]:
    """Without stop strings, which the router searches: one may straddle the seam, and no worker sees both sides."""
    carried = {name: value for name, value in asked.members.items() if name in _CARRIED}
    return carried | {"stream": True, "stream_options": {"include_usage": True}}

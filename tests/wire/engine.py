"""A model worker without sockets: a greedy answer as vLLM would stream it, with its incremental detokeniser.

The answer is the same on every worker, and each of its tokens has an id of its own, so whoever is given the prompt's ids and
some of the answer's knows how to go on. Text is held until its characters are whole, and a longest stop string's length
less one besides. A prompt that ends inside a character comes out with the first text, all of it: that is what leaks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from router.core.request.routes import Route
from router.wire.continuation import Asked, Seam, SeamFinder, exact_body, read_asked
from router.wire.continued import ContinuedFilter
from router.wire.dialects import DIALECTS
from router.wire.sse import StreamFilter
from router.wire.transcript import Delivered, Transcript, TranscriptBudget

PROMPT_IDS = [1, 2, 3]
PROMPT_TEXT = "SYSTEM PROMPT: "
EOS = 4
FIRST = 10
"""The id of the answer's first token."""


class Step(NamedTuple):
    ids: list[int]
    text: str
    finish_reason: str | None = None
    stop_reason: str | None = None


@dataclass(frozen=True)
class Engine:
    tokens: Sequence[bytes]
    """Of the whole answer; characters may be spread over several."""

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        known = {1: b"SYSTEM ", 2: b"PROMPT", 3: b": ", EOS: b""}
        return b"".join(known[i] if i < FIRST else self.tokens[i - FIRST] for i in ids)

    def text_of(self, ids: Sequence[int]) -> str:
        """/detokenize."""
        return self.bytes_of(ids).decode(errors="replace")

    def run(
        self,
        prompt: Sequence[int] = PROMPT_IDS,
        *,
        max_tokens: int = 1000,
        stops: Sequence[str] = (),
        keeps_stop: bool = False,
        group: int = 1,
    ) -> list[Step]:
        """``group``: ids a chunk."""
        steps, out, ids, sent = [], "", [], 0
        hold = max(map(len, stops), default=1) - 1 if not keeps_stop else 0
        pending = self.bytes_of(prompt) if self.text_of(prompt).endswith("\ufffd") else b""
        left = [*range(FIRST + len(prompt) - len(PROMPT_IDS), FIRST + len(self.tokens)), EOS]
        for count, token in enumerate(left, 1):
            ids.append(token)
            pending += self.bytes_of([token])
            new = pending.decode(errors="replace")
            pending, new = (pending, "") if new.endswith("\ufffd") else (b"", new)
            out += new
            stop = next((s for s in stops if out.find(s, max(len(out) - len(new) + 1 - len(s), 0)) >= 0), None)
            if stop is not None:
                at = out.find(stop, max(len(out) - len(new) + 1 - len(stop), 0))
                out = out[: at + len(stop) if keeps_stop else at]
            reason = "stop" if stop is not None or token == EOS else "length" if count == max_tokens else None
            upto = len(out) if reason else max(len(out) - hold, sent)
            if reason or len(ids) == group:
                steps.append(Step(ids, out[sent:upto], reason, stop))
                ids, sent = [], upto
            if reason:
                break
        return steps


def event(value: object) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def events_of(steps: list[Step], route: Route, prompt: Sequence[int], name: str = "first") -> list[bytes]:
    """A worker's stream, with the ids and the usage that the router asked for."""
    kind = "chat.completion.chunk" if route is Route.CHAT else "text_completion"
    head = {"id": name, "object": kind, "created": len(name), "model": "m"}
    out = []
    if route is Route.CHAT:
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        out.append(event({**head, "choices": [role], "prompt_token_ids": list(prompt), "prompt_text": None}))
    for at, step in enumerate(steps):
        choice: dict[str, Any] = {"index": 0}
        choice |= {"delta": {"content": step.text}} if route is Route.CHAT else {"text": step.text}
        choice |= {"logprobs": None, "finish_reason": step.finish_reason, "stop_reason": step.stop_reason}
        if route is not Route.CHAT and not at:
            choice["prompt_token_ids"] = list(prompt)
        out.append(event({**head, "choices": [choice | {"token_ids": step.ids}]}))
    counts = {"prompt_tokens": len(prompt), "completion_tokens": sum(len(step.ids) for step in steps)}
    out.append(event({**head, "choices": [], "usage": counts, "system_fingerprint": f"{name}-print"}))
    return [*out, b"data: [DONE]\n\n"]


@dataclass
class Relay:
    """One client's stream over several workers, as resumption would carry it."""

    engine: Engine
    route: Route
    members: dict[str, Any]
    wants_usage: bool = False
    group: int = 1

    def __post_init__(self) -> None:
        self.members = {"model": "m", "stream": True, "temperature": 0, **self.members}
        self.body = json.dumps(self.members).encode()
        self.hides_ids = not self.members.get("return_token_ids")
        self.seen = b""
        self.watch: StreamFilter | ContinuedFilter | None = None

    @property
    def asked(self) -> Asked:
        return read_asked(self.route, self.body, wants_usage=self.wants_usage, hides_ids=self.hides_ids)

    def first(self, upto: int | None = None) -> Delivered:
        """The first worker's stream, broken off before the event at ``upto``."""
        asked = self.asked
        steps = self.engine.run(
            max_tokens=asked.max_tokens or 1000, stops=asked.stops, keeps_stop=asked.keeps_stop, group=self.group
        )
        transcript = Transcript(1 << 20, TranscriptBudget(1 << 20))
        watch = StreamFilter(
            DIALECTS[self.route],
            hides_usage=not self.wants_usage,
            hides_ids=self.hides_ids,
            transcript=transcript,
        )
        self.watch = watch
        self.seen += watch.take(b"".join(events_of(steps, self.route, PROMPT_IDS)[:upto]))
        return transcript.delivered()

    def seam(self, delivered: Delivered) -> Seam:
        finder = SeamFinder(self.asked, delivered)
        while (ids := finder.question) is not None:
            finder.hear(self.engine.text_of(ids))
        return finder.seam

    def go_on(self, delivered: Delivered, upto: int | None = None, name: str = "second") -> ContinuedFilter:
        """The next worker's, from the seam; its ``delivered`` is what the client has then."""
        seam = self.seam(delivered)
        body = json.loads(exact_body(self.asked, delivered, seam, 1000))
        steps = self.engine.run(body["prompt"], max_tokens=body["max_tokens"], group=self.group)
        self.watch = watch = ContinuedFilter(self.asked, delivered.copy(), seam)
        for piece in events_of(steps, Route.COMPLETIONS, body["prompt"], name)[:upto]:
            self.seen += watch.take(piece)
        return watch

    # What the client has

    @property
    def chunks(self) -> list[Any]:
        return [
            json.loads(line[6:])
            for line in self.seen.decode().split("\n\n")
            if line.startswith("data: ") and line != "data: [DONE]"
        ]

    @property
    def choices(self) -> list[Any]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(
            choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in self.choices
        )

    @property
    def ids(self) -> list[int]:
        return [i for choice in self.choices for i in choice.get("token_ids") or ()]

    @property
    def ends(self) -> list[tuple[str, str | None]]:
        return [(c["finish_reason"], c.get("stop_reason")) for c in self.choices if c["finish_reason"]]

    @property
    def usages(self) -> list[Any]:
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]

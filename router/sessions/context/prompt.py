"""A turn's prompt: the history, what the turn adds, and the rest of the body. The same log gives the same bytes, on every
replica and at any time, since workers cache by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from router.core.index.fingerprint import Fingerprint, anchor
from router.core.request.canonical import message_segments, tools_segments
from router.sessions.context.entry import Draft, Entry, Kind
from router.sessions.context.history import History
from router.sessions.context.item import keep_parts, segments_of, with_recalled
from router.sessions.context.log import Setting
from router.sessions.context.messages import Message, digest, find_overlap, message_bytes, split_system


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request to a session, by any API."""

    model: str
    messages: Sequence[Message]
    """New messages, and old ones if the client ``resends``."""
    counts: Sequence[int] = ()
    """Tokens of each message; empty: they are estimated."""
    params: dict[str, Any]
    """Members of a chat body without model, messages and tools."""
    tools: list[Any] | None = None
    """Tools from now on; None: as before."""
    turn_system: Sequence[Message] = ()
    """System messages of this turn alone, before all others."""
    turn_tools: list[Any] | None = None
    """Tools of this turn alone; None: the session's."""
    tools_tokens: int = 0
    """Tokens of ``tools``; 0: estimated."""
    turn_tokens: int = 0
    """Tokens of ``turn_system`` and ``turn_tools``."""
    resends: bool = False
    """True: leading system messages hold from now on, and a repeated history is recognised."""

    @property
    def cache_salt(self) -> str:
        """The client's own salt; empty: none. A salt that is no text is refused elsewhere."""
        salt = self.params.get("cache_salt")
        return salt if isinstance(salt, str) else ""


class HistoryDiffers(Exception):
    """The client repeats a history that is not this one."""


class NothingNew(Exception):
    """The log has all that the client sends, or there is nothing to answer."""


def find_news(history: History, incoming: Incoming, bytes_per_token: float) -> list[Draft]:
    """Entries that the turn adds to the log; empty if it answers what others added. Raises HistoryDiffers, NothingNew."""
    system, messages = split_system(incoming.messages) if incoming.resends else ((), incoming.messages)
    drafts: list[Draft] = []
    if system and list(map(digest, system)) != list(map(digest, history.log.system.values)):
        counted = sum(incoming.counts[: len(system)])
        drafts.append(_draft(Kind.SYSTEM, _array(map(message_bytes, system)), bytes_per_token, counted))
    if incoming.tools is not None and incoming.tools != history.log.tools.values:
        drafts.append(_draft(Kind.TOOLS, msgspec.json.encode(incoming.tools), bytes_per_token, incoming.tools_tokens))
    new = messages[_known(history, messages) if incoming.resends else 0 :]
    if not new and (incoming.resends or history.log.is_empty):
        raise NothingNew
    own = [_draft(Kind.MESSAGE, message_bytes(message), bytes_per_token) for message in new]
    if incoming.counts and new:
        counts = incoming.counts[-len(new) :]
        own = [draft._replace(tokens=count) for draft, count in zip(own, counts, strict=True)]
    return drafts + own


def _known(history: History, messages: Sequence[Message]) -> int:
    if history.log.is_empty or not messages:
        return 0
    sends_answers = any(message.get("role") == "assistant" for message in messages)
    overlap = find_overlap(
        history.log.digests, history.log.last_answer, list(map(digest, messages)), sends_answers=sends_answers
    )
    if overlap.differs:
        raise HistoryDiffers
    return overlap.known


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes that a turn sent: numbers of the log's entries, and what is in no entry."""

    params: msgspec.Raw = msgspec.Raw(b"{}")
    system: int = 0
    tools: int = 0
    preface: msgspec.Raw = msgspec.Raw(b"[]")
    """The messages that stood for items that were cut."""
    items: list[tuple[int, int]] = []
    """Runs of entries' numbers, both ends included, with recalled texts."""
    cut: dict[int, tuple[int, ...]] = {}
    """For items that had lost parts by then: the parts left."""
    turn_system: msgspec.Raw = msgspec.Raw(b"[]")
    turn_tools: msgspec.Raw = msgspec.Raw(b"null")

    def with_own(self, drafts: Sequence[Draft], head: int, params: bytes) -> Recipe:
        """With what the turn appends to a log of ``head`` entries."""
        numbers: dict[Kind, list[int]] = {kind: [] for kind in Kind}
        for number, draft in enumerate(drafts, head + 1):
            numbers[draft.kind].append(number)
        own = sorted(numbers[Kind.MESSAGE] + numbers[Kind.RECALL])
        return msgspec.structs.replace(
            self,
            params=msgspec.Raw(params),
            system=(numbers[Kind.SYSTEM] or [self.system])[0],
            tools=(numbers[Kind.TOOLS] or [self.tools])[0],
            items=[*self.items, (own[0], own[-1])] if own else self.items,
        )


class Prompt(NamedTuple):
    """The parts of the body, and what routing needs."""

    messages: list[bytes]
    """JSON objects."""
    tools: bytes
    """JSON array; empty: there are none."""
    fingerprint: Fingerprint
    anchor: int
    earlier_bytes: int
    """Bytes of the prompt that earlier turns had."""
    tokens: int
    """Estimated, without the chat template."""
    recipe: Recipe

    def earlier_tokens(self, prompt_tokens: int) -> float:
        """The share of so many tokens that earlier turns had."""
        return prompt_tokens * self.earlier_bytes / self.fingerprint.prompt_bytes

    @property
    def shape(self) -> bytes:
        """Equal for two turns if the later one's history begins as the earlier one's does."""
        return bytes(self.recipe.preface)


class Scope(NamedTuple):
    """The owner of a prompt, as far as caches separate owners."""

    salt: str
    name: str


def make_prompt(history: History, incoming: Incoming, drafts: Sequence[Draft], scope: Scope) -> Prompt:
    """``drafts``: what the turn adds, in the log or not. O(new), but for joining bytes."""
    system, tools = _settings(history, drafts)
    turn_system = [message_bytes(message) for message in incoming.turn_system]
    own = list(_rendered((draft.kind, draft.body) for draft in drafts))
    messages = [msgspec.json.decode(body) for body in own]
    before = [*turn_system, *_elements(system.body)]
    tools_body = tools.body if incoming.turn_tools is None else msgspec.json.encode(incoming.turn_tools)
    first_segments = [*tools_segments(msgspec.json.decode(tools_body)), *_segments(before)]
    grown = history.chain(model=incoming.model, salt=scope.salt, scope=scope.name, before=first_segments)
    earlier_bytes = grown.prompt_bytes if history.log.last_answer >= 0 else 0
    grown.extend(segment for message in messages for segment in message_segments(message))
    return Prompt(
        messages=[*before, *history.preface, *history.bodies, *own],
        tools=b"" if tools_body == b"[]" else tools_body,
        fingerprint=grown.fingerprint(),
        anchor=anchor([*first_segments, *_stable(history, messages)], model=incoming.model, tenant=scope.name),
        earlier_bytes=earlier_bytes,
        tokens=_tokens_beside(incoming, system, tools)
        + history.aside_tokens
        + history.tokens
        + sum(_own_tokens(drafts)),
        recipe=Recipe(
            system=system.number,
            tools=tools.number,
            preface=msgspec.Raw(_array(history.preface)),
            items=history.runs[:],
            cut=history.log.parts_left.copy(),
            turn_system=msgspec.Raw(_array(turn_system)),
            turn_tools=msgspec.Raw(msgspec.json.encode(incoming.turn_tools)),
        ),
    )


def replay(recipe: Recipe, entries: Mapping[int, Entry]) -> bytes:
    """The body that a turn sent, from the log's entries by number. Raises KeyError."""

    def body(number: int) -> bytes:
        return bytes(entries[number].body) if number else b"[]"

    items = _rendered(
        (entries[number].kind, _body(body(number), recipe.cut.get(number))) for number in _numbers(recipe.items)
    )
    before = [
        *_elements(bytes(recipe.turn_system)),
        *_elements(body(recipe.system)),
        *_elements(bytes(recipe.preface)),
    ]
    tools = bytes(recipe.turn_tools)
    if tools == b"null":
        tools = body(recipe.tools)
    return join_body([*before, *items], b"" if tools == b"[]" else tools, bytes(recipe.params))


def _rendered(entries: Iterable[tuple[Kind, bytes]]) -> Iterator[bytes]:
    """Messages as they are sent, each with the text recalled for it."""
    recall: bytes | None = None
    for kind, body in entries:
        if kind is Kind.RECALL:
            recall = body
        elif kind is Kind.MESSAGE:
            yield body if recall is None else with_recalled(body, recall)
            recall = None


def join_body(messages: Sequence[bytes], tools: bytes, params: bytes) -> bytes:
    """``params``: a JSON object. The messages are copied once."""
    rest = b"," + params[1:] if params != b"{}" else b"}"
    parts = list(messages) or [b""]
    parts[0] = b'{"messages":[' + parts[0]
    parts[-1] += b"]" + (b',"tools":' + tools if tools else b"") + rest
    return b",".join(parts)


def _stable(history: History, new: Sequence[Message]) -> list[bytes]:
    """Segments of the messages up to the first of a user; of all, in O(history), if there is none."""
    if history.log.first_user >= 0:
        return _segments(item.body for item in history.items[: history.log.first_user + 1])
    end = next((at for at, message in enumerate(new, 1) if message.get("role") == "user"), len(new))
    own = [segment for message in new[:end] for segment in message_segments(message)]
    return [*_segments(item.body for item in history.items), *own]


def _numbers(runs: Iterable[tuple[int, int]]) -> Iterator[int]:
    return chain.from_iterable(range(first, last + 1) for first, last in runs)


def _body(body: bytes, parts: tuple[int, ...] | None) -> bytes:
    return body if parts is None else keep_parts(body, parts)


def _tokens_beside(incoming: Incoming, system: Setting, tools: Setting) -> int:
    return system.tokens + incoming.turn_tokens + (tools.tokens if incoming.turn_tools is None else 0)


def _own_tokens(drafts: Iterable[Draft]) -> Iterator[int]:
    """Tokens of what the turn adds to the history."""
    return (draft.tokens for draft in drafts if draft.kind in (Kind.MESSAGE, Kind.RECALL))


def _settings(history: History, drafts: Sequence[Draft]) -> tuple[Setting, Setting]:
    system, tools = history.log.system, history.log.tools
    for draft in drafts:
        if draft.kind is Kind.SYSTEM:
            system = Setting(0, draft.body, draft.tokens)
        elif draft.kind is Kind.TOOLS:
            tools = Setting(0, draft.body, draft.tokens)
    return system, tools


def _draft(kind: Kind, body: bytes, bytes_per_token: float, counted: int = 0) -> Draft:
    """``counted``: its tokens; 0: they are estimated."""
    return Draft(kind, body, counted or max(1, round(len(body) / bytes_per_token)))


def _segments(bodies: Iterable[bytes]) -> list[bytes]:
    return [segment for body in bodies for segment in segments_of(body)]


def _array(elements: Iterable[bytes]) -> bytes:
    return b"[%b]" % b",".join(elements)


def _elements(array: bytes) -> list[bytes]:
    return [bytes(raw) for raw in msgspec.json.decode(array, type=list[msgspec.Raw])]

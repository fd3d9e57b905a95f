"""What must be true of sessions, whatever happened: told by what clients sent and were told, and by what workers were asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from router.core.errors import (
    InvalidRequest,
    NoWorkerAvailable,
    RouterError,
    SessionBusy,
    SessionNotFound,
    StateUnavailable,
    WorkerError,
)
from router.core.request.request import Tenant
from router.core.tenants.tenant import Caller
from router.sessions.context.history import History
from router.sessions.context.prompt import Incoming, Scope, find_news, make_prompt
from router.sessions.stores.contract import Sid
from tests.sessions.desk import contents, user
from tests.sessions.turn_world import Exchange, Reader, Router, World


@dataclass(eq=False)
class Session:
    sid: Sid
    caller: Caller
    parent: Session | None = None
    """Whose copy it is, if it was ever made."""

    @property
    def owner(self) -> Tenant:
        return self.caller.rules.tenant


@dataclass(eq=False)
class Try:
    """One request of a client's. ``sent``: its messages' texts. ``placed``: the session and turn that it became."""

    number: int
    session: Session
    router: Router
    overrides: dict[str, Any]
    sent: list[str]
    began_at: int
    client: Reader
    task: asyncio.Task[Any]
    adds: bool = False
    """Asks no model."""
    placed: tuple[Sid, int] | None = None
    ended_at: int = 0
    is_cut: bool = False
    """Cancelled, or its router died."""
    was_troubled: bool = False

    @property
    def key(self) -> str:
        return str(self.overrides.get("key", ""))

    @property
    def told_at(self) -> int:
        if self.adds:
            return self.ended_at if self.error is None and not self.is_cut else 0
        return self.client.told_at

    @property
    def error(self) -> BaseException | None:
        """What its client was told instead of an answer."""
        if not self.task.done() or self.task.cancelled():
            return None
        return self.task.exception() or self.client.broken


@dataclass(frozen=True)
class Told:
    """An answer, or what was added, that a client was told of: when it was, and when that client had asked."""

    text: str
    began_at: int
    told_at: int


@dataclass
class Model:
    world: World
    sessions: list[Session] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)

    def by_answer(self, text: str) -> Exchange:
        return self.world.exchanges[int(text[1:]) - 1]

    def try_of(self, exchange: Exchange) -> Try:
        return self.tries[int(exchange.request.request_id)]

    def told(self) -> list[tuple[Try, Told]]:
        """Everything that clients were told of, with the request that brought it about."""
        found = []
        for one in self.tries:
            if not one.told_at:
                continue
            text = one.sent[-1] if one.adds else one.client.text
            real = one if one.adds else self.try_of(self.by_answer(text))
            assert (real.session, real.sent) == (one.session, one.sent), "the answer is another request's"
            assert real is one or one.key, "the answer is another's"
            found.append((real, Told(text, one.began_at, one.told_at)))
        return found

    # One session's log

    def check_log(self, session: Session, history: History) -> list[Exchange]:
        """Of its turns with their workers."""
        before: list[str] = []
        own: dict[str, tuple[int, Try]] = {}
        numbers = dict.fromkeys(item.turn for item in history.items)
        for at, (turn, texts) in enumerate(zip(numbers, turns_of(history), strict=True)):
            one = self._check_turn(session, turn, texts, before)
            if one is None:
                assert at == 0, "what nobody said in this session"
                self._check_base(session, texts)
            else:
                assert texts[-1] not in own, "something counts twice"
                own[texts[-1]] = at, one
            before += texts
        self._check_systems(own)
        self._check_keys(session, own)
        self._check_told(session, own)
        return [self.by_answer(text) for text in own if text[0] == "a"]

    def check_absent(self, session: Session) -> None:
        """It was never there, or was deleted."""
        self._check_told(session, {})

    def _check_turn(self, session: Session, turn: int, texts: list[str], before: list[str]) -> Try | None:
        """The request whose turn this is; None: none of this session."""
        if texts[-1][0] == "n":
            one = next(one for one in self.tries if one.adds and one.sent[-1] == texts[-1])
            assert one.session is not session or texts == one.sent, "what was added is not what is stored"
            return one if one.session is session else None
        exchange = self.by_answer(texts[-1])
        one = self.try_of(exchange)
        if one.placed != (session.sid, turn):
            return None
        assert exchange.is_answered, "half an answer counts"
        assert not isinstance(one.error, SessionBusy), "a turn counts that was told that it lost its session"
        self._check_sent(exchange, before, texts[:-1])
        self._check_news(one, exchange.sent, texts[:-1])
        return one

    def _check_sent(self, exchange: Exchange, before: list[str], news: list[str]) -> None:
        """The worker was sent what the log has. What a journal handed over late may have been missing."""
        late = {text for other in before if other in self.world.late for text in self._turn_texts(other)}
        sent = [text for text in exchange.sent if text not in late]
        stored = [text for text in before + news if text not in late]
        assert sent == stored, f"the worker was sent another history: {sent}, not {stored}"

    def _turn_texts(self, text: str) -> list[str]:
        return [text, *self.try_of(self.by_answer(text)).sent] if text[0] == "a" else [text]

    @staticmethod
    def _check_news(one: Try, sent: list[str], news: list[str]) -> None:
        """``sent``: to the worker, by which is known what the log had."""
        assert news == one.sent[len(one.sent) - len(news) :], "what the client sent is not what is stored"
        assert sent[-len(one.sent) :] == one.sent, "something that the client sent is missing"
        before = sent[: len(sent) - len(news)]
        if one.sent[: len(before)] == before:
            assert news == one.sent[len(before) :], "what was sent again is stored again"

    def _check_systems(self, own: dict[str, tuple[int, Try]]) -> None:
        """The system message that was sent last holds."""
        holds = None
        for text, (_, one) in own.items():
            if text[0] != "a" or self.world.late:
                continue
            exchange = self.by_answer(text)
            wish = one.overrides.get("system") or holds
            assert wish is None or exchange.system == wish, "another system message holds"
            holds = exchange.system

    def _check_base(self, session: Session, texts: list[str]) -> None:
        """Of a copy: whole turns of the session that it was made of, or of that one's."""
        families = []
        parent = session.parent
        assert parent is not None, "this session is nobody's copy"
        while parent is not None:
            families.append(parent)
            parent = parent.parent
        for text, following in zip(texts, [*texts[1:], "-"], strict=True):
            assert text[0] != "q" or following[0] == "a", "a question without its answer"
            if text[0] == "a":
                one = self.try_of(self.by_answer(text))
                assert any(one.session is family or one.placed[0] == family.sid for family in families if one.placed)

    def _check_keys(self, session: Session, own: dict[str, tuple[int, Try]]) -> None:
        punctual = [one for text, (_, one) in own.items() if text not in self.world.late]
        keys = [one.key for one in punctual if one.key]
        assert len(keys) == len(set(keys)), "an idempotency key was taken twice"

    def _check_told(self, session: Session, own: dict[str, tuple[int, Try]]) -> None:
        deleted = self.world.deleted[session.sid]
        here = []
        for real, told in self.told():
            if (real.session.sid if real.adds else real.placed and real.placed[0]) != session.sid:
                continue
            if any(tick > told.told_at for tick in deleted):
                assert told.text not in own, "what was deleted is there"
            elif not any(tick > told.began_at for tick in deleted):
                assert told.text in own, "what a client was told is lost"
            if told.text in own:
                here.append((own[told.text][0], real, told))
        for place, _, told in here:
            for other_place, other, _ in here:
                assert not (told.told_at < other.began_at and place > other_place), "the order is not that of time"

    # What clients were told

    def check_repetitions(self) -> None:
        for real, told in self.told():
            if real.placed and real.placed[0] != real.session.sid:
                continue  # a copy knows only its own keys
            for one in self.tries:
                if not (one.key and one.key == real.key and one.session is real.session and one is not real):
                    continue
                if one.began_at < told.told_at or self._was_deleted(real, one.began_at, one.ended_at):
                    continue
                assert all(self.try_of(exchange) is not one for exchange in self.world.exchanges), "asked twice"
                if one.told_at and one.sent == real.sent:
                    assert one.client.text == told.text, "two answers to one request"
                if one.sent != real.sent:
                    assert not one.told_at, "a key was taken for another request"

    def _was_deleted(self, real: Try, _from: int, _to: int) -> bool:
        sids = {real.session.sid, real.placed[0] if real.placed else real.session.sid}
        return any(tick > real.began_at for sid in sids for tick in self.world.deleted[sid])

    def check_outcome(self, one: Try) -> None:
        """Of a request that is over: was there a reason for it?"""
        error = one.error
        if error is None:
            return
        if not isinstance(error, RouterError):
            raise error
        exchanges = [exchange for exchange in self.world.exchanges if self.try_of(exchange) is one]
        if isinstance(error, (NoWorkerAvailable, WorkerError)):
            assert exchanges, "no worker was asked"
            assert one.client.is_gone or not exchanges[-1].is_answered, "the worker had answered"
        elif isinstance(error, StateUnavailable):
            assert one.was_troubled, "the store was well"
        elif isinstance(error, InvalidRequest):
            assert one.key or len(one.sent) > 1, "the request was right"
        elif isinstance(error, SessionNotFound):
            assert self.world.deleted[one.session.sid] or one.was_troubled or one.overrides.get("forks"), "it is there"
        elif isinstance(error, SessionBusy):
            assert one.was_troubled or self.world.deleted[one.session.sid] or self._met_another(one), "nobody was there"
        else:
            raise error

    def _met_another(self, one: Try) -> bool:
        return any(
            other is not one
            and one.session.sid in {other.session.sid, other.placed[0] if other.placed else other.session.sid}
            and (not other.ended_at or other.ended_at > one.began_at)
            for other in self.tries
        )


def turns_of(history: History) -> list[list[str]]:
    """The texts of each turn that counts."""
    pairs = zip(history.items, contents(history), strict=True)
    return [[text for _, text in turn] for _, turn in groupby(pairs, key=lambda pair: pair[0].turn)]


def require_same(one: History, other: History, caller: Caller) -> None:
    """Two replicas make the same prompt of what they have read."""
    incoming = Incoming(model="m", messages=[user("next")], params={}, resends=True)
    prompts = [
        make_prompt(history, incoming, find_news(history, incoming, 4.0), Scope("salt", caller.scope))
        for history in (one, other)
    ]
    assert prompts[0] == prompts[1]
    assert (one.head, one.log.last_turn, one.log.digests) == (other.head, other.log.last_turn, other.log.digests)

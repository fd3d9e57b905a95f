"""Recall: the cut part of a history is searched for each question, and the findings are sent beside it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

import msgspec

from router.config.context import ContextConfig
from router.sessions.context.entry import Draft, Kind
from router.sessions.context.history import History
from router.sessions.context.item import Item
from router.sessions.context.messages import Message
from router.sessions.context.provenance import recalled_numbers
from router.sessions.context.recollection import Found, compose
from router.sessions.context.summaries import text_of, words_of
from router.sessions.planner import TurnRequest
from router.sessions.recall.index import IndexUnavailable, Passage, RecallIndex
from router.sessions.stores.contract import Sid

log = logging.getLogger("warmroute.sessions")

ITEMS_PER_CALL = 200
"""Items that are indexed by one call."""


MAX_FOUND = 10
"""Items that a search returns for one question."""


class Recaller:
    """One for the process."""

    def __init__(
        self,
        config: ContextConfig,
        index: RecallIndex,
        bytes_per_token: Callable[[str], float],
        clock: Callable[[], float],
        observe: Callable[[float], None],
    ) -> None:
        self._config = config
        self._index = index
        self._bytes_per_token = bytes_per_token
        self._clock = clock
        self._observe = observe
        self.results: Counter[str] = Counter({"found": 0, "nothing": 0, "unavailable": 0})
        """Searches by outcome."""
        self.index_failures = 0
        """Failed calls to index items or to forget a session."""

    async def recall(self, request: TurnRequest, history: History) -> Draft | None:
        """Findings for the newest message, if that is a user's. None: nothing was found in time."""
        question = _question(request.incoming.messages[-1]) if history.start and request.incoming.messages else ""
        if not question:
            return None
        began_at = self._clock()
        try:
            async with asyncio.timeout(self._config.recall_timeout_s):
                numbers = await self._index.search(
                    _key(history),
                    history.owner,
                    question,
                    upto=history.view.cut.number,
                    limit=MAX_FOUND,
                )
        except (IndexUnavailable, TimeoutError) as error:
            self.results["unavailable"] += 1
            log.warning("nothing was recalled", extra={"why": str(error) or "the search took too long"})
            return None
        finally:
            self._observe(self._clock() - began_at)
        bytes_per_token = self._bytes_per_token(request.incoming.model)
        max_bytes = round(self._config.recall_tokens * bytes_per_token)
        text = compose(_found(history, numbers), question, max_bytes, _shown(history))
        self.results["found" if text else "nothing"] += 1
        if not text:
            return None
        return Draft(Kind.RECALL, msgspec.json.encode(text), round(len(text.encode()) / bytes_per_token))

    async def catch_up(self, history: History) -> None:
        """Indexes the cut part of the history."""
        sid = _key(history)
        try:
            newest = await self._index.newest(sid, history.owner)
            left = (item for item in islice(history.items, history.start) if not item.is_system)
            gone = (item for item in left if item.number > newest)
            while passages := [Passage(item.number, text_of(item.body)) for item in islice(gone, ITEMS_PER_CALL)]:
                await self._index.add(sid, history.owner, sorted(passages))
                if history.is_deleted:  # deleted meanwhile: what was just added goes, too
                    await self._index.forget(sid, history.owner)
                    return
            history.indexed = history.view.cut.number
        except IndexUnavailable as error:
            self.index_failures += 1
            log.warning("cut items were not made searchable", extra={"why": str(error)})

    async def forget(self, history: History) -> None:
        """Forgets a session that is deleted, or whose items must be indexed anew."""
        history.indexed = 0
        try:
            await self._index.forget(_key(history), history.owner)
        except IndexUnavailable as error:
            self.index_failures += 1
            log.warning("a deleted session stays in the index", extra={"why": str(error), "sid": history.sid})


def _key(history: History) -> Sid:
    """Other replicas do not hear of a deletion. A later session of the same name has another key."""
    return Sid(f"{history.sid}.{history.generation}")


def _question(message: Message) -> str:
    return words_of(message) if message.get("role") == "user" else ""


def _shown(history: History) -> set[int]:
    """Numbers of the items that earlier questions of the prompt quote."""
    texts = [msgspec.json.decode(item.recall[1]) for item in history.items[history.start :] if item.recall is not None]
    return {number for text in texts for number in recalled_numbers(text)}


def _found(history: History, numbers: Sequence[int]) -> list[Found]:
    """The items of these numbers that still count, in their order."""
    wanted = frozenset(numbers)
    gone: dict[int, Item] = {
        item.number: item for item in islice(history.items, history.start) if item.number in wanted
    }
    items = [gone[number] for number in numbers if number in gone]
    return [Found(item.number, item.role, text) for item in items if (text := text_of(item.body))]

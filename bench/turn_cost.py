"""The CPU cost of a turn's state: from the client's body to a dispatch request, and from the answer to the log.

Sessions have 20, 200 and 2,000 items of a kilobyte, in memory. Prints µs of one core for each turn.

    python -m bench.turn_cost
"""

from __future__ import annotations

import asyncio
import json
import time

import msgspec

from router.config.sessions import SessionsConfig
from router.core.request.record import Record
from router.core.request.reply import Reply
from router.core.request.request import Request, Tenant
from router.core.request.routes import Route
from router.core.tenants.tenant import TenantRules, make_caller
from router.proxy.internal_client import InternalClient
from router.proxy.ports import Client
from router.runtime import memory_trim
from router.sessions.api.chat_codec import ChatCodec
from router.sessions.api.chat_requests import read_chat
from router.sessions.context.prompt import Incoming
from router.sessions.copying import copy_session
from router.sessions.histories import Histories
from router.sessions.history_cache import HistoryCache
from router.sessions.planner import Planner, TurnRequest
from router.sessions.stores.contract import Sid
from router.sessions.turns import Turns
from router.wire.body_limits import BodyLimits
from router.wire.media import MediaRule
from tests.sessions.kept_histories import context_window_of
from tests.sessions.stores.memory import MemoryStore

ITEM_BYTES, TURNS = 1000, 100
LIMITS = BodyLimits(64, 2048, 2048, 8, 20, 16, MediaRule(frozenset()))
CALLER = make_caller(TenantRules(tenant=Tenant("acme")), b"a secret of a benchmark")
TEXT = "the fleet keeps what it has seen " * (ITEM_BYTES // 33)
TOOL = {"type": "function", "function": {"name": "look", "description": TEXT, "parameters": {"type": "object"}}}
SYSTEM = {"role": "system", "content": TEXT * 4}
ANSWER = msgspec.json.encode(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}]}
)
USER = {"role": "user", "content": TEXT}
BEGIN = json.dumps({"model": "m", "messages": [SYSTEM, USER], "tools": [TOOL] * 8}).encode()
NEXT = json.dumps({"model": "m", "messages": [USER]}).encode()


class Worker:
    """Answers at once, and notes the time of its request and of its end."""

    def __init__(self) -> None:
        self.asked_at = self.done_at = 0.0

    async def dispatch(self, request: Request, client: Client, started_at: float, rules: TenantRules) -> None:  # noqa: ARG002
        self.asked_at = time.perf_counter()
        await client.answer(Reply(200, {}, ANSWER, is_stream=False), record())
        self.done_at = time.perf_counter()


def record() -> Record:
    return Record(route=Route.CHAT, model="m", policy="", request_id="r", stream=False, started_at=0.0, worker="w")


def ask(sid: Sid, incoming: Incoming) -> TurnRequest:
    return TurnRequest(
        api="sessions",
        sid=sid,
        caller=CALLER,
        incoming=incoming,
        headers={},
        request_id="r",
        started_at=0.0,
        lifetime_s=60.0,
    )


async def measure(items: int) -> dict[str, float]:
    """One turn each of sessions with this many items."""
    worker, store = Worker(), MemoryStore(time.monotonic, time.time)
    histories = Histories(store, HistoryCache(1 << 34), time.time)
    turns = Turns(
        SessionsConfig(),
        histories,
        worker,
        lambda _session, _worker: None,
        Planner(histories, lambda _model: 4.0, resumes=True),
        context_window_of(histories, time.time, strategy="hybrid", window=1_000_000),
        time.monotonic,
        lambda _seconds: None,
    )
    await talk(turns, Sid("0"), BEGIN)
    while (history := histories.cache.get(Sid("0"))) is None or len(history.items) < items:
        await talk(turns, Sid("0"), NEXT)
    befores, behinds, loads = [], [], []
    for number in range(1, TURNS + 1):
        sid = Sid(str(number))
        await copy_session(histories, Sid("0"), sid, CALLER.rules.tenant, 60.0)
        started_at = time.perf_counter()
        await histories.load(sid, CALLER.rules.tenant)
        loads.append(time.perf_counter() - started_at)
        await talk(turns, sid, NEXT)
        started_at = time.perf_counter()
        await talk(turns, sid, NEXT)
        behinds.append(time.perf_counter() - worker.done_at)
        befores.append(worker.asked_at - started_at)
        await store.delete(sid, CALLER.rules.tenant)
        histories.cache.forget(sid)
    times = {"before": befores, "behind": behinds, "cold load": loads}
    return {
        f"{name} p{int(share * 100)}": sorted(each)[int(TURNS * share)] * 1e6
        for name, each in times.items()
        for share in (0.5, 0.99)
    }


async def talk(turns: Turns, sid: Sid, body: bytes) -> None:
    incoming = read_chat(body, CALLER, LIMITS)
    await turns.run(ask(sid, incoming), ChatCodec(record(), stream=False, wants_usage=False), InternalClient())


def main() -> None:
    memory_trim.keep_some()
    for items in (20, 200, 2000):
        found = asyncio.run(measure(items))
        print(f"{items:>5} items: " + ", ".join(f"{name} {value:,.0f} µs" for name, value in found.items()))


if __name__ == "__main__":
    main()

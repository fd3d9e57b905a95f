"""What answers teach of a worker's cache, with a worker whose cache is known."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator

import pytest

from router.core.fleet.affinity import LastWorkers
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules
from router.core.fleet.load import LoadReport
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import BLOCK_BYTES, Fingerprint, fingerprint
from router.core.index.prefix_index import PrefixIndex
from router.core.request.record import Record
from router.core.request.request import NO_TENANT, Request
from router.core.request.routes import Route
from router.core.worker import WorkerAddress
from router.policies import make_policy
from router.proxy.selection import UNREPORTED_HITS, WorkerSelector
from router.wire.usage import Usage

TOKENS = 256
"""Of a block."""
DEFAULT_TOKENS = 500_000


class CachedWorker:
    """Holds so many blocks, and drops a prompt's end before its beginning, as vLLM does."""

    def __init__(self, blocks: int, *, tells: bool = True, tells_nothing: bool = True) -> None:
        """``tells_nothing``: a count of 0, which older releases leave out."""
        self.blocks = blocks
        self.tells = tells
        self.tells_nothing = tells_nothing
        self._held: OrderedDict[int, None] = OrderedDict()

    def answer(self, prompt: Fingerprint) -> Usage:
        cached = 0
        while cached < len(prompt.hashes) and prompt.hashes[cached] in self._held:
            cached += 1
        for block in reversed(prompt.hashes):
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > self.blocks:
            self._held.popitem(last=False)
        is_told = self.tells and (cached or self.tells_nothing)
        return Usage(len(prompt.hashes) * TOKENS, cached * TOKENS if is_told else None, 10)


class House:
    """One worker, sent prompts one after another."""

    def __init__(self, worker: CachedWorker) -> None:
        self.worker = worker
        self.index = PrefixIndex(100_000, 1_000)
        self.fleet = Fleet(FleetRules(HealthRules(), 10_000.0, 4.0, 5.0, DEFAULT_TOKENS), self.index)
        self.fleet.set_members([WorkerAddress("http", "a", 80)])
        (self.member,) = self.fleet.members()
        self.fleet.set_models(self.member, {"m": {"id": "m"}})
        self.member.health.on_probe_answered(0.0)
        self.fleet.on_health_changed(self.member)
        policy = make_policy("least_loaded", {}, random.Random(1))
        self.selector = WorkerSelector(self.fleet, self.index, LastWorkers(10), policy, lambda: 100.0, 30.0)

    def send(self, prompt: Fingerprint) -> Record:
        request = a_request(prompt)
        facts, _ranking = self.selector.rank(request)
        lease, predicted = self.selector.send_to(self.member, request, facts)
        record = Record(route=Route.CHAT, model="m", policy="p", request_id="r", stream=False, started_at=100.0)
        record.outcome, record.predicted_cached_tokens = "ok", predicted
        with lease:
            self.selector.learn(request, facts, lease, record, self.worker.answer(prompt))
        return record

    def report(self, *, cache_tokens: int | None = None, started_at: float = 1.0) -> None:
        given = LoadReport(0, 0, 0.0, None, cache_tokens, started_at)
        self.fleet.on_load(self.member, given, self.fleet.own_load(self.member), 100.0)


def a_request(prompt: Fingerprint) -> Request:
    return Request(
        route=Route.CHAT,
        model="m",
        stream=False,
        body=b"{}",
        fingerprint=prompt,
        anchor=1,
        earlier_bytes=0,
        session=None,
        tenant=NO_TENANT,
        hides_usage=False,
        request_id="r",
    )


def a_prompt(number: int, blocks: int) -> Fingerprint:
    text = f"{number} ".encode() * (blocks * BLOCK_BYTES)
    return fingerprint([text[: blocks * BLOCK_BYTES]], model="m")


def conversations(lots: random.Random, turns: int) -> Iterator[Fingerprint]:
    """Prompts of 60 conversations that grow by two to six blocks a turn and begin anew when they are long."""
    lengths: dict[int, int] = {}
    names = list(range(60))
    for turn in range(turns):
        at = lots.randrange(len(names))
        length = lengths.get(names[at], 0) + lots.randint(2, 6)
        if length > 60:
            names[at], length = 1000 + turn, 8
        lengths[names[at]] = length
        yield a_prompt(names[at], length)


@pytest.mark.parametrize("tells_nothing", [True, False])
@pytest.mark.parametrize("blocks", [300, 800])
def test_the_cache_of_a_worker_that_does_not_tell_its_size_is_learnt(blocks: int, tells_nothing: bool) -> None:
    house = House(CachedWorker(blocks, tells_nothing=tells_nothing))
    for prompt in conversations(random.Random(1), 1500):
        house.send(prompt)
    assert 0.75 * blocks <= house.member.cache_blocks <= 1.3 * blocks
    records = [house.send(prompt) for prompt in conversations(random.Random(2), 1000)]
    predicted = sum(record.predicted_cached_tokens for record in records)
    actual = sum(record.actual_cached_tokens or 0 for record in records)
    assert 0.85 * actual <= predicted <= 1.15 * actual


def test_a_worker_that_tells_its_size_is_believed() -> None:
    house = House(CachedWorker(300))
    house.report(cache_tokens=600 * TOKENS)
    for prompt in conversations(random.Random(1), 500):
        house.send(prompt)
    assert house.member.learnt_capacity is None
    assert house.member.cache_blocks == pytest.approx(600, rel=0.02)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.worker for each in caplog.records if "--enable-prompt-tokens-details" in each.message]  # type: ignore[attr-defined]


def test_a_worker_that_does_not_tell_what_was_cached_is_told_of_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    house = House(CachedWorker(300, tells=False))
    for number in range(20):
        house.send(a_prompt(number, 20))
    assert not complaints(caplog), "no hit was expected"
    for sent in range(3 * UNREPORTED_HITS):
        house.send(a_prompt(19, 20))
        assert len(complaints(caplog)) == (sent >= UNREPORTED_HITS - 1)
    assert complaints(caplog) == [house.member.name]
    house.report(started_at=1.0)
    house.report(started_at=2.0)
    for _ in range(2 * UNREPORTED_HITS):
        house.send(a_prompt(19, 20))
    assert len(complaints(caplog)) == 2, "another process has other flags"


def test_nothing_told_is_a_miss_where_hits_are_told(caplog: pytest.LogCaptureFixture) -> None:
    house = House(CachedWorker(300, tells_nothing=False))
    assert house.send(a_prompt(1, 20)).actual_cached_tokens is None, "it told nothing yet"
    assert house.send(a_prompt(1, 20)).actual_cached_tokens == 20 * TOKENS
    house.worker = CachedWorker(300, tells_nothing=False)
    assert house.send(a_prompt(1, 20)).actual_cached_tokens == 0
    assert not complaints(caplog)

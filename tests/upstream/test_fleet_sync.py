"""The fleet follows its sources: workers come, are looked at, and leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from router.config.schema import Config
from router.config.workers import FleetConfig, LoadConfig, ProbesConfig
from router.core.fleet.fleet import Fleet
from router.core.fleet.health import HealthRules, WorkerState
from router.core.fleet.ring import Ring
from router.core.fleet.rules import FleetRules
from router.core.index.prefix_index import PrefixIndex
from router.core.worker import WorkerAddress, parse_address
from router.runtime.background import Background
from router.upstream import health_check
from router.upstream.discovery import Unreadable
from router.upstream.exchange import Upstream
from router.upstream.fleet_sync import FRESH_S, FleetSync
from router.upstream.health_check import WorkerMonitor
from router.upstream.pool import Pool
from tests.upstream.scripted import ScriptedWorker, scripted, unused_url
from tests.upstream.test_exchange import FLEET, LIMITS

CONFIG = Config(
    fleet=FleetConfig(discovery_interval_s=60.0),
    probes=ProbesConfig(interval_s=60.0, timeout_s=5.0),
    load=LoadConfig(poll_interval_s=60.0),
)


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe comes when a test makes it, and reads the models each time."""
    monkeypatch.setattr(health_check, "ILL_INTERVAL_S", 60.0)
    monkeypatch.setattr(health_check, "MODELS_INTERVAL_S", 0.0)


class FakeSource:
    kind: ClassVar[str] = "fake"

    def __init__(self, *urls: str) -> None:
        self.urls: Sequence[str] | None = urls
        self.mistake: Exception | None = None

    async def read(self) -> Sequence[WorkerAddress]:
        if self.mistake is not None:
            raise self.mistake
        if self.urls is None:
            raise Unreadable("nothing to be read")
        return [parse_address(url) for url in self.urls]


class Fixture:
    def __init__(self, *sources: FakeSource) -> None:
        self.now = 100.0
        self.index = PrefixIndex(100_000, 1000)
        rules = FleetRules(HealthRules(failures=2, ejection_s=1.0), 10_000.0, 4.0, 5.0, 500_000)
        self.fleet = Fleet(rules, self.index, notify=lambda _member: None)
        self.pool = Pool(FLEET, LIMITS)
        self.upstream = Upstream(self.pool, lambda _model: lambda _gap: None)
        self.rings: list[Ring] = []
        self.ring_mistake: Exception | None = None
        self.background = Background(lambda: self.now)
        self.fleet_sync = FleetSync(
            sources,
            self.fleet,
            self.pool,
            self.upstream,
            CONFIG,
            self.take_ring,
            lambda: self.now,
            self.background,
        )

    def take_ring(self, ring: Ring) -> None:
        if self.ring_mistake is not None:
            raise self.ring_mistake
        self.rings.append(ring)

    @property
    def urls(self) -> set[str]:
        return {member.address.url for member in self.fleet.members()}

    def watch(self) -> WorkerMonitor:
        """A watch of one's own over the only member, to be moved by hand."""
        (member,) = self.fleet.members()
        return WorkerMonitor(member, self.fleet, self.upstream, CONFIG.probes, CONFIG.load, lambda: self.now)


@asynccontextmanager
async def kept(*sources: FakeSource) -> AsyncIterator[Fixture]:
    fixture = Fixture(*sources)
    async with asyncio.timeout(20):
        await fixture.fleet_sync.start(10.0)
        running = asyncio.create_task(fixture.fleet_sync.run())
        try:
            yield fixture
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            fixture.pool.close()


async def test_the_first_look_is_over_when_start_returns() -> None:
    async with (
        scripted(models=("m", "adapter")) as one,
        scripted() as two,
        kept(FakeSource(one.url, two.url)) as fixture,
    ):
        assert fixture.fleet.catalog.is_ready()
        assert list(fixture.fleet.catalog.served_models()) == ["adapter", "m"]
        assert fixture.fleet.catalog.eligible("m").positions == [0, 1]
        assert all(member.load is not None for member in fixture.fleet.members())


async def test_whoever_looks_for_a_model_at_once_shares_a_look_and_one_that_is_fresh_is_not_repeated() -> None:
    async with scripted() as one, kept(FakeSource(one.url)) as fixture:
        fixture.now += 10.0
        one.models = ("m", "adapter")
        before = one.probes["/v1/models"]
        await asyncio.gather(*[fixture.fleet_sync.refresh_models() for _ in range(50)])
        assert one.probes["/v1/models"] == before + 1
        assert fixture.fleet.catalog.serves("adapter")
        await fixture.fleet_sync.refresh_models()
        assert one.probes["/v1/models"] == before + 1
        fixture.now += FRESH_S
        await fixture.fleet_sync.refresh_models()
        assert one.probes["/v1/models"] == before + 2


async def test_a_worker_that_failed_a_probe_or_refused_a_model_is_asked_for_its_models_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scripted() as one, kept(FakeSource(one.url)) as fixture:
        (member,) = fixture.fleet.members()
        monkeypatch.setattr(health_check, "MODELS_INTERVAL_S", 60.0)
        watch = fixture.watch()
        await watch.probe()
        one.models = ("other",)
        await watch.probe()
        assert list(member.models) == ["m"], "it is not time yet"
        one.is_ill = True
        await watch.probe()
        one.is_ill = False
        await watch.probe()
        assert list(member.models) == ["other"]
        fixture.fleet.disown(member, "other")
        assert not member.models
        await watch.probe()
        assert list(member.models) == ["other"]


async def test_a_worker_that_does_not_answer_holds_nobody_up_and_serves_nothing() -> None:
    async with scripted() as one, kept(FakeSource(one.url, await unused_url())) as fixture:
        assert fixture.fleet.catalog.eligible("m").positions == [0]
        assert [member.health.state for member in fixture.fleet.members()] == [WorkerState.UP, WorkerState.STARTING]


async def test_workers_come_and_leave_with_their_source_and_the_ring_with_them() -> None:
    source = FakeSource()
    async with scripted() as one, scripted() as two, kept(source) as fixture:
        source.urls = (one.url,)
        await fixture.fleet_sync.refresh()
        assert fixture.urls == {one.url}
        source.urls = (two.url, one.url)
        await fixture.fleet_sync.refresh()
        source.urls = (two.url,)
        await fixture.fleet_sync.refresh()
        assert fixture.urls == {two.url}
        assert len(fixture.rings) == 3
        await fixture.fleet_sync.refresh()
        assert len(fixture.rings) == 3, "the same workers need no new ring"


async def test_a_source_that_cannot_be_read_takes_no_worker_away() -> None:
    async with scripted() as one, scripted() as two:
        static, file = FakeSource(one.url), FakeSource(two.url)
        async with kept(static, file) as fixture:
            file.urls = None
            await fixture.fleet_sync.refresh()
            assert fixture.urls == {one.url, two.url}
            file.urls = ()
            await fixture.fleet_sync.refresh()
            assert fixture.urls == {one.url}


async def test_a_source_that_cannot_be_read_is_counted_each_time_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = FakeSource()
    async with kept(source) as fixture:
        source.urls = None
        for _ in range(3):
            await fixture.fleet_sync.refresh()
        assert fixture.fleet_sync.failures == {"fake": 3}
        source.urls = ()
        await fixture.fleet_sync.refresh()
        source.urls = None
        await fixture.fleet_sync.refresh()
        assert [each.message for each in caplog.records].count("workers unreadable: the last known ones stay") == 2


async def test_what_a_look_that_failed_left_undone_the_next_one_makes_up_for() -> None:
    source = FakeSource()
    async with scripted() as one, kept(source) as fixture:
        source.urls = (one.url,)
        fixture.ring_mistake = ValueError("nobody foresaw this")
        with pytest.raises(ValueError, match="foresaw"):
            await fixture.fleet_sync.refresh()
        fixture.ring_mistake = None
        rings = len(fixture.rings)
        await fixture.fleet_sync.refresh()
        assert len(fixture.rings) == rings + 1
        assert len(watches()) == 1
        await fixture.fleet_sync.close()


def watches() -> list[asyncio.Task[Any]]:
    return [
        task for task in asyncio.all_tasks() if task.get_name().startswith("health_check") and not task.cancelling()
    ]


async def test_a_watch_that_fails_begins_again_and_the_worker_stays_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = [ValueError("nobody foresaw this")]
    poll = WorkerMonitor.poll

    async def poll_with_a_mistake(watch: WorkerMonitor) -> None:
        if mistakes:
            raise mistakes.pop()
        await poll(watch)

    monkeypatch.setattr(WorkerMonitor, "poll", poll_with_a_mistake)
    async with scripted() as one, kept(FakeSource(one.url)) as fixture:
        assert fixture.background.failures["health_check"] == 1
        assert fixture.fleet.catalog.is_ready()
        assert all(member.load is not None for member in fixture.fleet.members())
        assert len(watches()) == 1


async def test_a_worker_named_twice_is_one() -> None:
    async with scripted() as one, kept(FakeSource(one.url), FakeSource(one.url)) as fixture:
        assert len(fixture.fleet) == 1


async def test_a_worker_that_left_is_watched_no_longer() -> None:
    source = FakeSource()
    async with scripted() as one, kept(source) as fixture:
        source.urls = (one.url,)
        await fixture.fleet_sync.refresh()
        source.urls = ()
        await fixture.fleet_sync.refresh()
        assert not watches()


async def look(worker: ScriptedWorker, fixture: Fixture) -> WorkerState:
    watch = fixture.watch()
    await watch.probe()
    (member,) = fixture.fleet.members()
    return member.health.state


async def test_probes_eject_an_ill_worker_and_bring_a_well_one_back_when_its_time_is_over() -> None:
    async with scripted() as worker, kept(FakeSource(worker.url)) as fixture:
        worker.is_ill = True
        assert [await look(worker, fixture) for _ in range(2)] == [WorkerState.UP, WorkerState.EJECTED]
        worker.is_ill = False
        assert await look(worker, fixture) is WorkerState.EJECTED
        fixture.now += 1.5
        assert await look(worker, fixture) is WorkerState.UP


async def test_a_worker_comes_up_with_its_models_and_not_before() -> None:
    async with scripted(models=()) as worker, kept(FakeSource(worker.url)) as fixture:
        assert not fixture.fleet.catalog.is_ready()
        worker.models = ("m",)
        assert await look(worker, fixture) is WorkerState.UP
        assert fixture.fleet.catalog.eligible("m").positions == [0]


async def test_models_that_a_worker_loads_or_drops_are_noticed() -> None:
    async with scripted() as worker, kept(FakeSource(worker.url)) as fixture:
        worker.models = ("n",)
        await look(worker, fixture)
        assert list(fixture.fleet.catalog.served_models()) == ["n"]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":5}', b'{"data":[{"id":7}]}', b"\xff"])
async def test_a_model_list_that_makes_no_sense_is_no_models_and_no_crash(body: bytes) -> None:
    class Odd(ScriptedWorker):
        def _probed(self, path: str) -> bytes:
            odd = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            return odd if path in ("/v1/models", "/metrics") else super()._probed(path)

    worker = Odd()
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    async with server, kept(FakeSource(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")) as fixture:
        assert not fixture.fleet.catalog.is_ready()
        assert fixture.fleet.catalog.served_models() == {}

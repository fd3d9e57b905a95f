"""Where workers come from, and that a source which cannot be read takes none of them away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from router.core.worker import WorkerAddress, parse_address
from router.upstream.discovery import Unreadable
from router.upstream.discovery.dns import DnsSource, resolve
from router.upstream.discovery.file import FileSource
from router.upstream.discovery.static import StaticSource

A, B = "http://10.0.0.1:8000", "https://[fd00::1]:8443"


async def test_named_workers_are_given_in_their_order() -> None:
    assert await StaticSource([B, A]).read() == (parse_address(B), parse_address(A))


@pytest.mark.parametrize(
    "url", ["", "10.0.0.1:8000", "ftp://a", "http://", "http://a/v1", "http://u@a", "http://a:99999"]
)
def test_what_is_not_a_workers_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"worker URL|[Pp]ort"):
        StaticSource([url])


async def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    source = FileSource(file)
    file.write_text(f"# the fleet\n{A}\n\n  {B}  # behind TLS\n")
    assert await source.read() == [parse_address(A), parse_address(B)]
    file.write_text(f"{B}\n")
    assert await source.read() == [parse_address(B)]
    file.write_text("  none  # for the night\n")
    assert await source.read() == []


async def test_a_file_whose_last_line_has_no_end_is_believed_when_it_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    source = FileSource(file)
    file.write_text(f"{A}\n{B}")
    assert await source.read() == [parse_address(A), parse_address(B)], "nothing is known that could stay"
    assert await source.read() == [parse_address(A), parse_address(B)]
    file.write_text(f"{B}\n{A[:-2]}")
    with pytest.raises(Unreadable, match="no end"):
        await source.read()
    file.write_text(f"{B}\n{A}\n")
    assert await source.read() == [parse_address(B), parse_address(A)]
    file.write_text(A)
    with pytest.raises(Unreadable, match="no end"):
        await source.read()
    assert await source.read() == [parse_address(A)]


BAD_FILES = {
    "a typing error": f"{A}\nhttp//typo\n".encode(),
    "no UTF-8": b"\xff\xfe",
    "gone": None,
    "empty": b"",
    "only comments": b"# the fleet\n\n",
    "none and some": f"none\n{A}\n".encode(),
    "cut within a URL's host": f"{B}\nhttp://".encode(),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
async def test_a_file_with_one_bad_line_is_not_read_in_part(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "workers"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Unreadable, match=str(file)):
        await FileSource(file).read()


class Resolver:
    """``hosts``: what a name resolves to; ``speaks``: whether it answers."""

    def __init__(self) -> None:
        self.hosts: Sequence[str] | OSError = ()
        self.asked: list[tuple[str, int]] = []
        self.speaks = asyncio.Event()
        self.speaks.set()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        await self.speaks.wait()
        if isinstance(self.hosts, OSError):
            raise self.hosts
        return self.hosts


def source_of(resolver: Resolver, timeout_s: float = 5.0) -> DnsSource:
    return DnsSource("vllm.example:8000", timeout_s, resolver)


async def test_every_address_of_a_name_is_a_worker() -> None:
    resolver = Resolver()
    resolver.hosts = ("10.0.0.2", "10.0.0.1", "10.0.0.2")
    found = await source_of(resolver).read()
    assert found == [WorkerAddress("http", host, 8000) for host in ("10.0.0.1", "10.0.0.2")]
    assert resolver.asked == [("vllm.example", 8000)]


@pytest.mark.parametrize(
    ("hosts", "workers"),
    [
        (("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"), ["10.0.0.1", "10.0.0.2"]),
        (("fd00::2", "fd00::1", "10.0.0.1", "10.0.0.2"), ["fd00::1", "fd00::2"]),
    ],
)
async def test_pods_of_two_families_are_one_worker_each_at_the_address_that_the_system_prefers(
    hosts: Sequence[str], workers: Sequence[str]
) -> None:
    resolver = Resolver()
    resolver.hosts = hosts
    assert [each.host for each in await source_of(resolver).read()] == workers


async def test_workers_keep_their_family_while_their_name_has_any_of_it() -> None:
    resolver = Resolver()
    source = source_of(resolver)
    for hosts, workers in (
        (("fd00::1", "10.0.0.1"), ["fd00::1"]),
        (("10.0.0.1", "fd00::1", "fd00::2"), ["fd00::1", "fd00::2"]),
        (("10.0.0.1",), ["10.0.0.1"]),
        (("fd00::1", "10.0.0.1"), ["10.0.0.1"]),
        ((), []),
    ):
        resolver.hosts = hosts
        assert [each.host for each in await source.read()] == workers


@pytest.mark.parametrize("failure", [socket.gaierror(-2, "unknown"), OSError("no network")])
async def test_a_name_that_does_not_resolve_is_unreadable(failure: OSError) -> None:
    resolver = Resolver()
    resolver.hosts = failure
    with pytest.raises(Unreadable, match=r"vllm\.example"):
        await source_of(resolver).read()


async def test_a_resolver_that_does_not_answer_is_not_waited_for_nor_asked_again_until_it_does() -> None:
    resolver = Resolver()
    resolver.hosts = ("10.0.0.1",)
    resolver.speaks.clear()
    source = source_of(resolver, timeout_s=0.001)
    for _ in range(3):
        with pytest.raises(Unreadable, match="no answer within"):
            await source.read()
    resolver.speaks.set()
    await asyncio.sleep(0)
    for _ in range(2):
        assert [address.host for address in await source.read()] == ["10.0.0.1"]
    assert len(resolver.asked) == 2


async def test_whoever_no_longer_wants_to_know_leaves_no_question_behind() -> None:
    resolver = Resolver()
    resolver.speaks.clear()
    before = asyncio.all_tasks()
    reading = asyncio.create_task(source_of(resolver).read())
    while not resolver.asked:
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_name_really_resolves() -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)

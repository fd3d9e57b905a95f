"""Bytes that are not HTTP end in an answer of 4xx and the end of the connection; those that are but odd ones do not."""

from __future__ import annotations

import asyncio
import re

import pytest

from router.app.serve import Running
from tests.e2e.routed import connected, routed
from tests.server.malformed import INVALID, VALID, Case
from tests.upstream.scripted import scripted

SECOND = b"GET /ready HTTP/1.1\r\nHost: second\r\nX-Request-Id: second\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
REQUEST_ID = re.compile(rb"(?i)\r\nx-request-id: [A-Za-z0-9_-]+\r\n")


async def wrong_with(router: Running, case: Case, cut: int) -> str:
    """What of the answer to ``case``, cut in two, and a request behind it is not as it should be; empty if all is well."""
    async with connected(router) as client:
        await client.send(case.data[:cut], case.data[cut:] + SECOND)
        try:
            async with asyncio.timeout(5):
                answered = await client.reader.read()
        except TimeoutError:
            return "the connection stayed open"
    statuses = STATUS.findall(answered)
    if len(statuses) != 1 or not statuses[0].startswith(b"4"):
        return f"answered {statuses}"
    return "" if REQUEST_ID.search(answered) and b"second" not in answered else repr(answered)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
async def test_what_is_malformed_is_refused_and_nothing_behind_it_is_read(share: float) -> None:
    async with scripted() as worker, routed(worker.url) as router:
        found = {
            f"{case.name} ({case.section})": await wrong_with(router, case, int(len(case.data) * share))
            for case in INVALID
        }
        assert {name: wrong for name, wrong in found.items() if wrong} == {}
        assert worker.asked == []


async def test_what_is_merely_odd_is_served() -> None:
    async with scripted() as worker, routed(worker.url) as router:
        wrong = {}
        for case in VALID:
            async with connected(router) as client:
                await client.send(case.data)
                answer = await client.answer()
                if answer.status == 100:
                    answer = await client.answer()
                if answer.status != 200:
                    wrong[f"{case.name} ({case.section})"] = (answer.status, answer.body)
        assert wrong == {}
        assert len(worker.asked) == sum(case.data.startswith(b"POST") for case in VALID)


def test_the_set_is_large_and_its_names_are_unlike() -> None:
    assert len(INVALID) >= 49
    names = [case.name for case in (*INVALID, *VALID)]
    assert len(set(names)) == len(names)

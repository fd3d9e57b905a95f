"""A worker breaks a stream after its first event, in every way and at every event: what does the client see?"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.app.serve import Running
from router.simulator import Fault, SimulatedFleet, SimulatorSettings, start_fleet
from tests.e2e.faults import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    MESSAGES_PATH,
    Told,
    all_up,
    broken_stream,
    decisions_of,
    ejections_of,
    faulted,
    listen,
    metric,
    number_of,
)
from tests.e2e.routed import until

TOKENS = 40
TEXT = "say it in all scripts " * 8
CHAT: dict[str, Any] = {
    "model": "sim",
    "max_tokens": TOKENS,
    "temperature": 0,
    "messages": [{"role": "system", "content": "SECRET"}, {"role": "user", "content": TEXT}],
}
COMPLETION: dict[str, Any] = {"model": "sim", "max_tokens": TOKENS, "temperature": 0, "prompt": TEXT}
IDS = {"return_token_ids": True}
USAGE = {"stream_options": {"include_usage": True}}
AT_ONCE_AGAIN = {
    "policy__name": "prefix_ring",
    "policy__ring_bound": 0.0,
    "probes__ejection_s": 0.001,
    "probes__max_ejection_s": 0.001,
    "probes__interval_s": 0.01,
    "probes__ill_interval_s": 0.005,
}
"""One prompt goes to one worker as long as that is up, and a worker that broke a stream is up again soon."""


@asynccontextmanager
async def two_workers(tokens_per_event: int = 1, **settings: Any) -> AsyncIterator[tuple[SimulatedFleet, Running]]:
    simulated = SimulatorSettings(
        workers=2,
        base_port=0,
        block_tokens=32,
        time_scale=10_000.0,
        answers="bytes",
        stream_interval_ms=0.0,
        tokens_per_event=tokens_per_event,
    )
    async with await start_fleet(simulated) as fleet, faulted(*fleet.urls, **{**AT_ONCE_AGAIN, **settings}) as router:
        yield fleet, router


async def broken_at(
    events: int, fleet: SimulatedFleet, router: Running, path: str, body: dict[str, Any], fault: Fault = Fault.CUT
) -> Told:
    """The stream whose worker breaks it after so many events."""
    await until(lambda: all_up(router, 2))
    whole = await listen(router, path, body)
    fleet.set_fault(number_of(router, fleet, whole.worker), fault, after_events=events)
    return await listen(router, path, body)


ASKED: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": (CHAT_PATH, CHAT, 1),
    "chat, ids and usage": (CHAT_PATH, CHAT | IDS | USAGE, 1),
    "three tokens an event": (CHAT_PATH, CHAT | USAGE, 3),
    "seven tokens an event, ids": (CHAT_PATH, CHAT | IDS, 7),
    "completions": (COMPLETIONS_PATH, COMPLETION, 1),
    "completions, ids and usage": (COMPLETIONS_PATH, COMPLETION | IDS | USAGE, 2),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_a_stream_cut_at_any_event_goes_on_token_by_token(asked: str) -> None:
    path, body, tokens_per_event = ASKED[asked]
    async with two_workers(tokens_per_event) as (fleet, router):
        await until(lambda: all_up(router, 2))
        whole = await listen(router, path, body)
        assert whole.is_done
        assert whole.names == 1
        assert (len(whole.ids), len(whole.usage)) == (TOKENS * ("return_token_ids" in body), "stream_options" in body)
        first, last = (2 if path == CHAT_PATH else 1), whole.events - len(whole.usage)  # which is told with the end
        for events in range(first, last):
            assert await broken_at(events, fleet, router, path, body) == whole, f"cut at {events} of {last}"
        assert await metric(router, "warmroute_resumptions_total", cause="died") == last - first
        assert await metric(router, "warmroute_resumptions_total", outcome="failed") == 0


@pytest.mark.parametrize("tokens_per_event", [1, 4])
@pytest.mark.parametrize("keeps_stop", [False, True])
async def test_a_stop_string_ends_a_stream_that_was_cut_anywhere_where_it_would_have_ended(
    tokens_per_event: int, keeps_stop: bool
) -> None:
    async with two_workers(tokens_per_event) as (fleet, router):
        await until(lambda: all_up(router, 2))
        text = (await listen(router, CHAT_PATH, CHAT)).text
        stop = text[len(text) // 2 :][:5]
        body = {**CHAT, **USAGE, "stop": [stop, "never said"], "include_stop_str_in_output": keeps_stop}
        whole = await listen(router, CHAT_PATH, body)
        assert whole.text == text[: text.index(stop)] + (stop if keeps_stop else "")
        assert whole.ends == [("stop", stop)]
        for events in range(2, whole.events - 1):
            found = await broken_at(events, fleet, router, CHAT_PATH, body)
            assert (found.text, found.ends, found.is_done) == (whole.text, whole.ends, True), f"cut at {events}"


WAYS = [Fault.CUT, Fault.RESET, Fault.TRUNCATE, Fault.GARBAGE, Fault.DEAD, Fault.HANG]


@pytest.mark.parametrize("fault", WAYS)
async def test_however_a_worker_breaks_a_stream_the_client_sees_no_seam(fault: Fault) -> None:
    async with two_workers(timeouts__event_gap_s=0.05) as (fleet, router):
        await until(lambda: all_up(router, 2))
        for body in (CHAT, CHAT | IDS | USAGE):
            whole = await listen(router, CHAT_PATH, body)
            for events in (2, 17, 41):
                assert await broken_at(events, fleet, router, CHAT_PATH, body, fault) == whole
        decisions = await decisions_of(router)
        attempts = sum(decision["attempts"] for decision in decisions) - len(decisions)
        assert 4 <= attempts <= 6, "behind the reason for finishing nobody is needed, if the client has it already"
        assert {decision["outcome"] for decision in decisions} == {"ok"}


async def test_a_stream_outlives_two_workers() -> None:
    simulated = SimulatorSettings(
        workers=3, base_port=0, block_tokens=32, time_scale=10_000.0, answers="bytes", stream_interval_ms=0.0
    )
    async with (
        await start_fleet(simulated) as fleet,
        faulted(*fleet.urls, **AT_ONCE_AGAIN, retries__max_deaths=4) as router,
    ):
        await until(lambda: all_up(router, 3))
        whole = await listen(router, CHAT_PATH, CHAT | IDS)
        first = number_of(router, fleet, whole.worker)
        for worker in range(3):
            fleet.set_fault(worker, Fault.CUT, after_events=12 if worker == first else 9)
        assert await listen(router, CHAT_PATH, CHAT | IDS) == whole
        assert (await decisions_of(router))[0]["attempts"] >= 3


INELIGIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    "tools": (CHAT_PATH, {**CHAT, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
    "n": (CHAT_PATH, {**CHAT, "n": 2}),
    "json_schema": (CHAT_PATH, {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
    "presence_penalty": (CHAT_PATH, {**CHAT, "presence_penalty": 0.5}),
    "logprobs": (CHAT_PATH, {**CHAT, "logprobs": True}),
    "a seed": (CHAT_PATH, {**CHAT, "temperature": 1, "seed": 5}),
    "unknown": (CHAT_PATH, {**CHAT, "of_next_year": 1}),
    "echo": (COMPLETIONS_PATH, {**COMPLETION, "echo": True}),
    "messages": (MESSAGES_PATH, {"model": "sim", "max_tokens": TOKENS, "messages": CHAT["messages"][1:]}),
}


@pytest.mark.parametrize("why", INELIGIBLE)
async def test_a_stream_that_nobody_could_continue_rightly_ends_with_an_error_and_never_cleanly(why: str) -> None:
    path, body = INELIGIBLE[why]
    async with two_workers() as (fleet, router):
        for fault in (Fault.CUT, Fault.DEAD):
            await until(lambda: all_up(router, 2))
            for worker in range(2):
                fleet.set_fault(worker, fault, after_events=11)
            events = (await broken_stream(router, path, body)).split(b"\n\n")
            assert events.pop() == b""
            assert json.loads(events[-1].partition(b"data: ")[2])["error"]["type"] == "api_error"
            assert len(events) > 5, "it had begun"
            assert b"[DONE]" not in b"".join(events)
            assert b"message_stop" not in b"".join(events)
            for worker in range(2):
                fleet.set_fault(worker, Fault.NONE)
        assert await ejections_of(router) >= 1

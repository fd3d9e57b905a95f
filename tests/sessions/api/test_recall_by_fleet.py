"""A model that the fleet serves makes the vectors of recall, in a router that serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from router.core.request.routes import Route
from tests.e2e.faults import metric
from tests.e2e.routed import post, routed, until
from tests.server.keys import ACME, bearer, entry, keyed
from tests.sessions.api.test_context_metrics import LONG, RECALL, compacted, user
from tests.sessions.api.test_metrics import becomes, say, saying
from tests.upstream.scripted import Asked, Peer, ScriptedWorker, answer, scripted

BY_FLEET = {**RECALL, "context__embed_model": "bge", "context__embed_dimensions": 2}
SAID, ASKED = f"my cat is called Mimi {LONG}", "which pet lives here?"
"""Without a word in common."""


def vector(text: str) -> list[float]:
    """To which cats and pets are one, and all else another thing."""
    return [3.0, 0.0] if "cat" in text or "pet" in text else [0.0, 3.0]


async def embed(asked: Asked, peer: Peer) -> None:
    if asked.path != Route.EMBEDDINGS.path:
        await saying()(asked, peer)
        return
    body = json.loads(asked.body)
    data = [{"index": at, "embedding": vector(text)} for at, text in enumerate(body["input"])]
    await peer.send(answer(json.dumps({"data": data, "usage": {"prompt_tokens": 9}}).encode()))


def prompts(worker: ScriptedWorker) -> list[str]:
    return [asked.body.decode() for asked in worker.asked if asked.path == Route.CHAT.path]


async def test_what_was_said_in_other_words_is_found_by_a_model_of_the_fleet() -> None:
    async with scripted(embed, models=("m", "bge")) as worker, routed(worker.url, **BY_FLEET) as router:
        await say(router, **user(SAID))
        await compacted(router, "cut")
        await say(router, **user(ASKED))
        assert "Mimi" in prompts(worker)[-1]
        assert await metric(router, "warmroute_recalls_total", outcome="found") == 1
        assert await metric(router, "warmroute_recalls_by_words_alone_total") == 0
        # The second turn's own words may be on their way to the index still, asked for and not yet counted.
        await becomes(
            router,
            "requests_total",
            lambda counted: counted == len(worker.asked) - len(prompts(worker)) >= 2,
            route=Route.EMBEDDINGS.path,
            status="200",
        )


@pytest.mark.parametrize("question", ["the cat", ASKED])
async def test_until_some_worker_serves_the_model_words_alone_decide(question: str) -> None:
    async with scripted(embed) as worker, routed(worker.url, **BY_FLEET) as router:
        await say(router, **user(SAID))
        await compacted(router, "cut")
        await say(router, **user(question))
        assert ("Mimi" in prompts(worker)[-1]) == (question == "the cat")
        assert await metric(router, "warmroute_recalls_by_words_alone_total") == 1


async def test_what_could_not_be_embedded_is_embedded_after_the_next_cut() -> None:
    async with scripted(embed) as worker, routed(worker.url, **BY_FLEET) as router:
        await say(router, **user(SAID))
        await compacted(router, "cut")
        worker.models = ("m", "bge")
        await until(lambda: router.fleet.catalog.knows("bge"))
        await say(router, **user(f"something new {LONG}"))
        await compacted(router, "cut", 2)
        await say(router, **user(ASKED))
        assert "Mimi" in prompts(worker)[-1]


def limited(directory: Path) -> Mapping[str, Any]:
    listed = "[tenants.acme]\nmodels = ['m']\nrequests_per_minute = 2\n" + entry("acme-1", "acme", ACME)
    return keyed(directory / "keys.toml", listed)


async def test_no_tenants_limits_count_what_is_embedded_for_it(tmp_path: Path) -> None:
    settings = {**BY_FLEET, **limited(tmp_path)}
    async with scripted(embed, models=("m", "bge")) as worker, routed(worker.url, **settings) as router:
        await say(router, "s", bearer(ACME), **user(SAID))
        await compacted(router, "cut")
        assert (await say(router, "s", bearer(ACME), **user(ASKED))).status == 200
        assert "Mimi" in prompts(worker)[-1]
        assert await metric(router, "warmroute_tenant_requests_total", tenant="acme") == 2
        own = await post(router, Route.EMBEDDINGS.path, {"model": "bge", "input": "x"}, bearer(ACME))
        assert own.status == 404, "what the router may use, the tenant may not"

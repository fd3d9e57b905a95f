"""Who is let in, as what, and what becomes of a key on its way: nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from router.config.schema import ConfigError
from router.runtime.logs import AUDIT, AUDIT_READS
from router.server import key_file
from tests.e2e.routed import Answer, connected, get, get_admin, post, routed, until
from tests.e2e.streams import CHAT, MESSAGES, STREAMED, answering, stream
from tests.server.keys import (
    ACME,
    BETA,
    DISABLED,
    EXPIRED,
    SALT_SECRET,
    TWO_TENANTS,
    bearer,
    digest,
    entry,
    keyed,
    rewrite,
)
from tests.upstream.scripted import scripted

PATH = "/v1/chat/completions"
INFERENCE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
)
BODY: dict[str, Any] = {**CHAT, "prompt": "x", "input": "x"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def refused(answer: Answer) -> tuple[Any, ...]:
    """All that a client sees of a refusal, but the id of its request."""
    names = answer.headers.keys() - {"x-request-id", "date"}
    return answer.status, answer.body, sorted((name, answer.headers[name]) for name in names)


@pytest.mark.parametrize("path", INFERENCE)
async def test_every_inference_route_asks_for_a_key(path: str, file: Path) -> None:
    async with scripted(models=("m", "n")) as worker, routed(worker.url, **keyed(file)) as router:
        without = await post(router, path, BODY)
        assert without.status == 401
        assert without.headers["www-authenticate"] == "Bearer"
        if path.startswith("/v1/messages"):
            assert (without.json["type"], without.error["type"]) == ("error", "authentication_error")
        else:
            assert without.error["code"] == "invalid_api_key"
        assert worker.asked == []
        assert (await post(router, path, BODY, bearer(ACME))).status == 200


WRONG = {
    "absent": (),
    "empty": ("Authorization: ",),
    "no scheme": (f"Authorization: {ACME}",),
    "another scheme": (f"Authorization: Basic {ACME}",),
    "no key": ("Authorization: Bearer ",),
    "unknown": (bearer("wr-" + "x" * 43),),
    "cut short": (bearer(ACME[:-1]),),
    "longer": (bearer(ACME + "x"),),
    "its digest": (bearer(digest(ACME)),),
    "not ascii": (bearer(ACME + "\xe9\xff"),),
    "very long": (bearer("x" * 8000),),
    "expired": (bearer(EXPIRED),),
    "disabled": (bearer(DISABLED),),
    "two that open": (bearer(ACME), f"x-api-key: {BETA}"),
    "two that do not": (bearer("wr-x"), "x-api-key: wr-y"),
    "x-api-key unknown": ("x-api-key: wr-x",),
    "x-api-key empty": ("x-api-key: ",),
    "tenant named": ("X-Tenant-Id: acme", "X-Tenant: acme"),
}


async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            assert len({str(refused(await post(router, path, MESSAGES, *lines))) for lines in WRONG.values()}) == 1
        wrong = {
            name: lines for name, lines in WRONG.items() if name != "two that open"
        }  # there x-api-key says nothing
        assert {refused(await post(router, PATH, CHAT, *lines))[0] for lines in wrong.values()} == {401}
        assert len({str(refused(await post(router, PATH, CHAT, *lines))) for lines in wrong.values()}) == 1
        assert worker.asked == []
        text = (await get_admin(router, "/metrics")).body.decode()
        counts = {
            line.split('"')[1]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("warmroute_auth_refusals_total")
        }
        assert set(counts) == {"absent", "malformed", "unknown", "disabled", "expired"}
        assert sum(counts.values()) == 2 * len(WRONG) + 2 * len(wrong)
        assert (counts["disabled"], counts["expired"]) == (4, 4)


@pytest.mark.parametrize(
    "lines", [(bearer(ACME), bearer(ACME)), (f"x-api-key: {ACME}", f"x-api-key: {ACME}")], ids=repr
)
async def test_two_keys_in_fields_of_one_name_are_no_request_at_all(file: Path, lines: tuple[str, ...]) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        assert (await post(router, "/v1/messages", MESSAGES, *lines)).status == 400
        assert worker.asked == []


async def test_a_key_opens_by_either_header_where_anthropics_clients_call(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        for lines in ((bearer(ACME),), (f"x-api-key: {ACME}",), (f"authorization: bearer  {ACME} ",)):
            assert (await post(router, "/v1/messages", MESSAGES, *lines)).status == 200
        assert (await post(router, PATH, CHAT, f"x-api-key: {ACME}")).status == 401


WITH_ONE_THAT_OPENS = {
    "the same twice": (bearer(ACME), f"x-api-key: {ACME}"),
    "a bearer beside another's": (bearer(ACME), "x-api-key: sk-of-another-api"),
    "x-api-key beside another's": (bearer("sk-of-another-api"), f"x-api-key: {ACME}"),
    "beside one that expired": (bearer(EXPIRED), f"x-api-key: {ACME}"),
    "beside one that is disabled": (bearer(ACME), f"x-api-key: {DISABLED}"),
    "beside none": (bearer(ACME), "x-api-key: "),
    "beside another scheme": ("Authorization: Basic eDp5", f"x-api-key: {ACME}"),
}


@pytest.mark.parametrize("lines", WITH_ONE_THAT_OPENS.values(), ids=WITH_ONE_THAT_OPENS.keys())
async def test_of_two_headers_the_one_key_that_opens_is_taken(file: Path, lines: tuple[str, ...]) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            assert (await post(router, path, MESSAGES, *lines)).status == 200
        assert (await get(router, "/v1/models?limit=1000", *lines)).status == 200
        assert all(ACME not in f"{asked.line}{asked.headers}" for asked in worker.asked)


async def test_two_keys_that_open_are_refused_where_both_headers_count(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        lines = (bearer(ACME), f"x-api-key: {BETA}")
        assert (await post(router, "/v1/messages", MESSAGES, *lines)).status == 401
        assert (await get(router, "/v1/models", *lines)).status == 401
        assert (await post(router, PATH, CHAT, *lines)).status == 200


async def test_models_are_listed_by_either_header(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        for line in (bearer(ACME), f"x-api-key: {ACME}"):
            assert (await get(router, "/v1/models?limit=1000", line)).status == 200
        assert (await get(router, "/v1/models", "x-api-key: wr-x")).status == 401


async def test_a_client_is_refused_before_its_body_is_read(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router, connected(router) as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        await client.send(head.encode())
        assert (await client.answer()).status == 401


async def test_a_path_written_in_another_way_asks_for_a_key_as_well(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        assert (await get(router, "/v1/models?x=1")).status == 401
        assert (await get(router, "/v1/models?x=1", bearer(ACME))).status == 200
        assert (await post(router, PATH + "?x=1", CHAT)).status == 401
        for path in ("/v1/%6dodels", "/v1%2Fmodels"):
            assert (await get(router, path, bearer(ACME))).status == 404
        for path in ("/v1/chat/%63ompletions", "/v1/chat%2Fcompletions"):
            assert (await post(router, path, CHAT, bearer(ACME))).status == 404
        for path in ("//v1/models", "/v1/models/", "/V1/models", "/v1/../v1/models"):
            assert (await get(router, path)).status in (400, 401, 404)


async def test_health_and_readiness_ask_for_no_key(file: Path) -> None:
    async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
        assert (await get(router, "/health")).status == (await get(router, "/ready")).status == 200
        assert (await get(router, "/health", bearer("wrong"))).status == 200


async def test_a_key_sees_and_uses_its_own_models_only(file: Path) -> None:
    async with scripted(models=("m", "n")) as worker, routed(worker.url, **keyed(file)) as router:
        listed = {key: (await get(router, "/v1/models", bearer(key))).json["data"] for key in (ACME, BETA)}
        assert [[card["id"] for card in cards] for cards in listed.values()] == [["m", "n"], ["n"]]
        assert (await post(router, PATH, {**CHAT, "model": "n"}, bearer(BETA))).status == 200
        for path in ("/v1/chat/completions", "/v1/messages"):
            hidden = await post(router, path, {**CHAT, "model": "m"}, bearer(BETA))
            absent = await post(router, path, {**CHAT, "model": "q"}, bearer(BETA))
            nowhere = await post(router, path, {**CHAT, "model": "q"}, bearer(ACME))
            assert hidden.status == absent.status == nowhere.status == 404
            assert hidden.body.replace(b"'m'", b"'q'") == absent.body == nowhere.body
            assert hidden.headers.keys() == nowhere.headers.keys()
        assert len(worker.asked) == 1


async def test_a_tenant_that_sees_decisions_is_told_them_and_no_other(file: Path) -> None:
    async with scripted(models=("m", "n")) as worker, routed(worker.url, **keyed(file)) as router:
        for script, body in ((answering(), CHAT), (stream, STREAMED)):
            worker.script = script
            for key, sees in ((ACME, False), (BETA, True)):
                answer = await post(router, PATH, {**body, "model": "n"}, bearer(key))
                assert ("x-warmroute-reason" in answer.headers) is sees


async def test_no_key_of_a_client_reaches_a_worker(file: Path) -> None:
    async with (
        scripted(models=("m", "n")) as worker,
        routed(worker.url, **keyed(file), fleet__worker_key="s") as router,
    ):
        for path in INFERENCE:
            await post(router, path, BODY, bearer(ACME), "X-Tenant-Id: beta", "Cookie: wr-c", f"X-Session-ID: {ACME}")
        await post(router, "/v1/messages", MESSAGES, f"x-api-key: {ACME}", f"X-Request-Id: {ACME}")
        assert len(worker.asked) == len(INFERENCE) + 1
        for asked in worker.asked:
            assert asked.headers["authorization"] == "Bearer s"
            assert ACME not in f"{asked.line}{asked.headers}{asked.body!r}"
            assert not {"x-api-key", "x-tenant-id", "cookie"} & set(asked.headers)


async def test_the_tenants_salt_goes_to_the_worker_and_not_to_the_client(file: Path) -> None:
    text = "[tenants.acme]\nsharing_group = 'g'\n[tenants.beta]\nsharing_group = 'g'\n[tenants.gamma]\n" + "".join(
        entry(name, name, f"wr-{name}") for name in ("acme", "beta", "gamma")
    )
    async with scripted() as worker, routed(worker.url, **keyed(file, text)) as router:
        for name in ("acme", "beta", "gamma"):
            for own in ({}, {"cache_salt": "own"}):
                await post(router, PATH, {**CHAT, **own}, bearer(f"wr-{name}"))
        salts = [json.loads(asked.body)["cache_salt"] for asked in worker.asked]
        assert salts[:2] == salts[2:4]
        assert len(set(salts)) == 4

        for status in (200, 400):
            worker.script = answering(b'{"error": {"input": {"cache_salt": "%b"}}}' % salts[0].encode(), status)
            answer = await post(router, PATH, CHAT, bearer("wr-acme"))
            assert (salts[0].encode() in answer.body) == (status == 200)


class TestTheFileOfKeys:
    async def test_a_key_that_is_taken_out_is_refused_and_one_that_is_put_in_is_let_in(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, AUDIT)
        async with scripted(models=("m", "n")) as worker, routed(worker.url, **keyed(file)) as router:
            keys = router.keys
            assert keys is not None
            assert (await post(router, PATH, CHAT, bearer(ACME))).status == 200
            fresh = "wr-" + "f" * 43
            rewrite(file, f"[tenants.acme]\n{entry('fresh', 'acme', fresh)}".encode())
            await until(lambda: keys.loaded_keys == 1)
            assert (await post(router, PATH, CHAT, bearer(ACME))).status == 401
            assert (await post(router, PATH, CHAT, bearer(fresh))).status == 200
        (told,) = (record for record in caplog.records if record.message == "keys reloaded")
        assert vars(told)["added_ids"] == ["fresh"]
        assert vars(told)["revoked_ids"] == ["acme-1", "beta-1", "old"]

    @pytest.mark.parametrize(
        "bad", ["[[[", "\xff", entry("x", "nobody", "k"), None], ids=["toml", "utf-8", "tenant", "gone"]
    )
    async def test_a_bad_or_vanished_file_leaves_the_old_keys_and_shows(
        self, file: Path, bad: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with scripted() as worker, routed(worker.url, **keyed(file)) as router:
            keys = router.keys
            assert keys is not None
            rewrite(file, None if bad is None else bad.encode("latin-1"))
            await until(lambda: keys.failures >= 3)
            assert (await post(router, PATH, CHAT, bearer(ACME))).status == 200
            text = (await get_admin(router, "/metrics")).body.decode()
            assert "warmroute_keys_loaded 4.0" in text
            assert "warmroute_keys_reload_failures_total 0.0" not in text
            told = [record for record in caplog.records if record.message.startswith("keys not reloaded: the old")]
            assert len(told) == 1, "once for each failure, however often it is seen"
            rewrite(file, b"")
            await until(lambda: keys.loaded_keys == 0)
            assert (await post(router, PATH, CHAT, bearer(ACME))).status == 401

    async def test_a_call_makes_it_look_at_once(self, file: Path) -> None:
        settings = {**keyed(file), "auth__reload_s": 3600}
        async with scripted() as worker, routed(worker.url, **settings) as router:
            keys = router.keys
            assert keys is not None
            await asyncio.sleep(0)
            rewrite(file, b"")
            keys.wake()
            await until(lambda: keys.loaded_keys == 0)

    async def test_rules_change_with_the_file_though_the_key_stays(self, file: Path) -> None:
        async with scripted(models=("m", "n")) as worker, routed(worker.url, **keyed(file)) as router:
            rewrite(file, TWO_TENANTS.replace("models = ['n']", "models = ['m']").encode())

            async def may_use_m() -> bool:
                return (await post(router, PATH, CHAT, bearer(BETA))).status == 200

            async with asyncio.timeout(10):
                while not await may_use_m():
                    await asyncio.sleep(0.01)

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("[tenants.a]\nshare = 0", "keys.toml': tenants.a.share: Expected `float` > 0"),
            (TWO_TENANTS, "lists 4 keys, and 3 is the most"),
            (None, "keys.toml': cannot be read: No such file or directory"),
        ],
    )
    async def test_a_first_file_that_is_wrong_ends_the_start(
        self, file: Path, text: str | None, line: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key_file, "MAX_KEYS", 3)
        settings = keyed(file, text or "")
        if text is None:
            rewrite(file, None)
        with pytest.raises(ConfigError) as raised:
            async with routed(**settings):
                pytest.fail("it must not serve")
        assert line in str(raised.value)

    async def test_an_empty_file_lets_nobody_in(self, file: Path) -> None:
        async with scripted() as worker, routed(worker.url, **keyed(file, "")) as router:
            assert (await post(router, PATH, CHAT)).status == 401
            assert (await post(router, PATH, CHAT, bearer(""))).status == 401


async def test_keys_of_the_environment_open_without_a_file() -> None:
    settings = {
        "auth__keys": [f"acme:{digest(ACME)}"],
        "auth__salt_secret": SALT_SECRET,
        "server__insecure_no_auth": False,
    }
    async with scripted() as worker, routed(worker.url, **settings) as router:
        assert (await post(router, PATH, CHAT, bearer(ACME))).status == 200
        assert (await post(router, PATH, CHAT)).status == 401


async def test_without_keys_everybody_is_served_and_a_secret_salts_them_all() -> None:
    async with scripted() as worker, routed(worker.url, auth__salt_secret=SALT_SECRET) as router:
        for own in ({}, {}, {"cache_salt": "own"}):
            assert (await post(router, PATH, {**CHAT, **own})).status == 200
        one, again, parted = (json.loads(asked.body)["cache_salt"] for asked in worker.asked)
        assert one == again != parted != "own"


class TestTheAuditLog:
    async def test_a_flood_of_refusals_is_a_line_a_second_for_each_reason(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, AUDIT)
        async with scripted() as worker, routed(worker.url, **keyed(file)) as router, connected(router) as client:
            for _ in range(300):
                await client.post(PATH, CHAT, bearer("wr-" + "x" * 43))
                assert (await client.answer()).status == 401
        told = [vars(record) for record in caplog.records if record.message == "authentication refused"]
        assert sum(each["times"] for each in told) == 300
        assert len(told) <= 30
        assert {each["reason"] for each in told} == {"unknown"}
        assert told[0]["remotes"] == ["127.0.0.1"]

    async def test_calls_of_the_admin_port_are_told_by_page_and_status(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, AUDIT)
        token = "Authorization: Bearer s3cret"
        async with scripted() as worker, routed(worker.url, admin__token="s3cret") as router:
            for lines in ((token,), ("Authorization: Bearer wrong",), ("Authorization: s3cret",), (token, token), ()):
                await get_admin(router, "/workers", *lines)
            await get_admin(router, "/wr-secret-path", token)
            assert (
                await get_admin(router, "/health")
            ).status == 200  # every few seconds, by whoever looks after routers
        told = [vars(record) for record in caplog.records if record.message == "admin call"]
        times: dict[tuple[str, int], int] = {}
        for each in told:
            at = each["page"], each["status"]
            times[at] = times.get(at, 0) + each["times"]
        assert times == {("/workers", 200): 1, ("/workers", 401): 4, ("other", 404): 1}
        assert {each["name"] for each in told if each["status"] == 200} == {AUDIT_READS}
        assert {each["name"] for each in told if each["status"] != 200} == {AUDIT}

    async def test_a_scrape_is_told_where_it_was_refused_only(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, AUDIT)
        async with scripted() as worker, routed(worker.url, admin__token="s3cret") as router:
            for _ in range(3):
                assert (await get_admin(router, "/metrics", "Authorization: Bearer s3cret")).status == 200
            assert (await get_admin(router, "/metrics", "Authorization: Bearer wrong")).status == 401
        told = [vars(record) for record in caplog.records if record.message == "admin call"]
        assert [(each["page"], each["status"], each["times"]) for each in told] == [("/metrics", 401, 1)]

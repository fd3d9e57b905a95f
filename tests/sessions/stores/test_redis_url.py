"""URLs of session stores in Redis, and the errors of wrong ones."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from router.sessions.stores.redis.url import parse

SECRET = "hunter2-canary"


def test_one_server() -> None:
    target = parse("redis://ann:p%40ss@cache.local:6390/3")
    assert (target.kind, target.addresses, target.connection_class) == ("alone", (("cache.local", 6390),), Connection)
    assert target.options == {"username": "ann", "password": "p@ss", "db": 3}


def test_one_server_by_its_name_alone_has_the_usual_port() -> None:
    assert parse("redis://cache").addresses == (("cache", 6379),)


def test_one_server_over_tls() -> None:
    target = parse("rediss://h:1/0?ssl_ca_certs=/etc/ca.pem")
    assert target.connection_class is SSLConnection
    assert target.options["ssl_ca_certs"] == "/etc/ca.pem"


def test_a_socket_in_the_file_system() -> None:
    target = parse("unix:///run/redis.sock?db=2")
    assert (target.addresses, target.connection_class) == ((), UnixDomainSocketConnection)
    assert target.options == {"path": "/run/redis.sock", "db": 2}


def test_sentinels_a_service_and_a_database() -> None:
    target = parse("redis+sentinel://a:1,b,[::1]:3/mymaster/5")
    assert (target.kind, target.service) == ("sentinel", "mymaster")
    assert target.addresses == (("a", 1), ("b", 26379), ("::1", 3))
    assert target.options["db"] == 5


def test_sentinels_have_a_user_and_a_password_of_their_own() -> None:
    target = parse("redis+sentinel://ann:one@a:1/m?sentinel_username=bob&sentinel_password=two")
    assert (target.options["username"], target.options["password"]) == ("ann", "one")
    assert (target.sentinel_options["username"], target.sentinel_options["password"]) == ("bob", "two")
    assert "sentinel_password" not in target.options


def test_without_one_of_their_own_sentinels_are_told_no_password() -> None:
    assert parse("redis+sentinel://ann:one@a:1/m").sentinel_options["password"] is None


def test_tls_is_for_sentinels_as_well() -> None:
    target = parse("rediss+sentinel://a:1/m?ssl_ca_certs=/ca")
    assert target.connection_class is SSLConnection
    assert target.sentinel_options["ssl"] is True
    assert target.sentinel_options["ssl_ca_certs"] == "/ca"


def test_a_cluster() -> None:
    target = parse("rediss+cluster://ann:one@a:1,b")
    assert (target.kind, target.addresses) == ("cluster", (("a", 1), ("b", 6379)))
    assert target.connection_class is SSLConnection
    assert target.options["password"] == "one"


@pytest.mark.parametrize(
    ("url", "names"),
    [
        (f"{SECRET}", "scheme"),
        (f"http://ann:{SECRET}@h", "'http'"),
        (f"redis+ring://ann:{SECRET}@h", "'redis+ring'"),
        (f"redis://ann:{SECRET}@h:port/0", "port"),
        (f"redis://ann:{SECRET}@h:1/zero", "number of a database"),
        (f"redis+sentinel://ann:{SECRET}@a:1", "SERVICE"),
        (f"redis+sentinel://ann:{SECRET}@a:1/m/x", "number of a database"),
        (f"redis+sentinel://ann:{SECRET}@a:1,/m", "host:port"),
        (f"redis+sentinel://ann:{SECRET}@a:x/m", "host:port"),
        (f"redis+sentinel://ann:{SECRET}@a:99999/m", "99999"),
        (f"redis+cluster://ann:{SECRET}@a:1/3", "no databases"),
        (f"redis+cluster://ann:{SECRET}@", "host:port"),
        (f"unix://{SECRET}", "path of a socket"),
        (f"redis://ann:{SECRET}@h?retry_on_timeout=yes", "retry_on_timeout"),
        (f"redis://h?socket_timeout=3&password={SECRET}", "socket_timeout"),
        (f"redis+cluster://h?{SECRET}=1", "no option"),
    ],
)
def test_a_wrong_url_is_refused_by_what_is_wrong_and_without_its_password(url: str, names: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(url)
    assert names in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_it_was_parsed_into_does_not_show_the_password() -> None:
    assert SECRET not in repr(parse(f"redis+sentinel://ann:{SECRET}@a:1/m?sentinel_password={SECRET}"))

"""Wrong tokens of an address: bounded in each window, for every address that may be its, in bounded memory."""

from __future__ import annotations

import pytest

from router.server.failed_logins import MAX_ADDRESSES, MAX_WRONG, WINDOW_S, FailedLogins


def guess(guesses: FailedLogins, remote: str | None, times: int = MAX_WRONG) -> None:
    for _ in range(times):
        guesses.was_wrong(remote)


def test_an_address_may_be_wrong_so_often_in_a_window_and_again_in_the_next() -> None:
    now = 100.0
    guesses = FailedLogins(lambda: now)
    guess(guesses, "192.0.2.1", MAX_WRONG - 1)
    assert guesses.may_try("192.0.2.1")
    guess(guesses, "192.0.2.1", 1)
    assert not guesses.may_try("192.0.2.1")
    assert guesses.may_try("192.0.2.2")
    now += WINDOW_S
    assert guesses.may_try("192.0.2.1")
    assert guesses.addresses == 0


@pytest.mark.parametrize("other", ["2001:db8::2", "2001:db8:0:0:ffff::"])
def test_all_addresses_of_one_ipv6_network_are_one(other: str) -> None:
    guesses = FailedLogins(lambda: 0.0)
    guess(guesses, "2001:db8::1")
    assert not guesses.may_try(other)
    assert guesses.may_try("2001:db8:0:1::1")


def test_a_flood_of_addresses_fills_no_memory_and_keeps_nobody_else_out() -> None:
    guesses = FailedLogins(lambda: 0.0)
    for number in range(2 * MAX_ADDRESSES):
        guess(guesses, f"10.0.{number >> 8}.{number & 255}")
    assert guesses.addresses == MAX_ADDRESSES
    assert guesses.may_try("192.0.2.1")
    assert not guesses.may_try("10.0.0.0")


def test_who_has_no_address_is_one() -> None:
    guesses = FailedLogins(lambda: 0.0)
    guess(guesses, None)
    assert not guesses.may_try(None)

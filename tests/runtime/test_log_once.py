from __future__ import annotations

from router.runtime.log_once import LogOnce


def test_a_failure_is_logged_once_until_it_changes_or_ends() -> None:
    once = LogOnce()
    assert not once.succeeded()
    assert [once.failed("a"), once.failed("a"), once.failed("b")] == [True, False, True]
    assert [once.succeeded(), once.succeeded()] == [True, False]
    assert once.failed("b")
    assert once.failures == 4

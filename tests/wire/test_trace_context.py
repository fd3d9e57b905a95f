"""Which trace headers of a client go on to a worker."""

from __future__ import annotations

import pytest

from router.wire.trace_context import passed_on

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.upper(),
        GOOD[:-1],
        f"{GOOD}-more",
        f"{GOOD}\n",
        f"ff{GOOD[2:]}",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"cc{GOOD[2:]}more",
        f"cc{GOOD[2:]}-m\r\nX: y",
    ],
)
def test_what_is_no_traceparent_is_left_out(text: str) -> None:
    assert passed_on({"traceparent": text, "tracestate": "a=b"}) == ("", "")


@pytest.mark.parametrize("more", ["", "-more"])
def test_a_later_version_goes_on_with_what_it_says_more(more: str) -> None:
    assert passed_on({"traceparent": f"cc{GOOD[2:]}{more}"}) == (f"cc{GOOD[2:]}{more}", "")


@pytest.mark.parametrize("state", ["a=b", "a=b,c@d=e f", "a=b , c=d", "a=b,,c=d", f"a={'x' * 256}"])
def test_a_state_goes_with_its_parent(state: str) -> None:
    assert passed_on({"traceparent": GOOD, "tracestate": state}) == (GOOD, state)
    assert passed_on({"tracestate": state}) == ("", "")


@pytest.mark.parametrize(
    "state",
    ["a", "A=b", "a=b=c", "a=b\r\nX: y", "a=b\tc", "a=\xe9", f"a={'x' * 257}", ",".join(f"a{n}=b" for n in range(33))],
)
def test_a_state_that_is_none_is_left_out_and_its_parent_goes_on(state: str) -> None:
    assert passed_on({"traceparent": GOOD, "tracestate": state}) == (GOOD, "")

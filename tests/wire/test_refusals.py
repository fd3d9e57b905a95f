"""Workers' refusals, as clients read them."""

from __future__ import annotations

import json

import pytest

from router.wire.refusals import with_known_code

TOO_LONG = {"message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError", "code": 400}


def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for() -> None:
    body = json.dumps({"error": TOO_LONG | {"param": "input_tokens"}}).encode()
    assert json.loads(with_known_code(body)) == {
        "error": {
            "message": TOO_LONG["message"],
            "type": "invalid_request_error",
            "param": "input_tokens",
            "code": "context_length_exceeded",
        }
    }


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": TOO_LONG | {"param": "max_tokens"}}).encode(),
        json.dumps({"error": TOO_LONG | {"message": "input_tokens"}}).encode(),
        b'{"error": "input_tokens"}',
        b"input_tokens are no JSON",
        b"",
    ],
)
def test_any_other_refusal_stays_as_it_is(body: bytes) -> None:
    assert with_known_code(body) == body

"""Workers' refusals, as clients read them."""

from __future__ import annotations

import json

import pytest

from router.wire.refusals import MAX_REFUSAL_BYTES, says_no_model, with_known_code

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


@pytest.mark.parametrize(
    ("body", "is_so"),
    [
        (b'{"error":{"message":"x","type":"NotFoundError","param":"model","code":404}}', True),
        (b'{"object":"error","message":"The model `m` does not exist.","param":null,"code":404}', True),
        (b'{"type":"error","error":{"type":"not_found_error","message":"The model `m` does not exist."}}', True),
        (b'{"error":{"message":"The model `n` does not exist.","param":null}}', False),
        (b'{"detail":"Not Found"}', False),
        (b'{"error":"no"}', False),
        (b"[" * 10_000, False),
        (b"<html>", False),
        (b'{"error":{"param":"model","message":"' + b"x" * MAX_REFUSAL_BYTES + b'"}}', False),
    ],
)
def test_a_404_for_want_of_the_model_is_told_from_others(body: bytes, is_so: bool) -> None:
    assert says_no_model(body, "m") is is_so

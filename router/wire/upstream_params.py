"""Parameters that the router sets in a body for its own purposes, and what they mean for the answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from router.core.request.request import Request
from router.core.request.routes import PromptForm, Route
from router.core.tenants.tenant import Caller
from router.wire.continuation import COMPLETIONS_MAX_TOKENS, may_resume
from router.wire.prompts import Body, ChatBody, CompletionBody
from router.wire.strict_json import member_names, set_members

_ENGINES_OWN = {"priority": b"0", "stream_interval": b"1"}
"""Settings of the engine that clients may not choose: the router orders requests, and counts one token for each event. If a
client sets one, the worker gets the engine's own default."""


class UpstreamParams(NamedTuple):
    """The form of the answer, and the members of the body that the router sets for it."""

    stream: bool
    salt: str
    hides_usage: bool
    hides_ids: bool
    is_resumable: bool
    answers: int
    """Number of answers: the choices of all prompts."""
    max_answer_tokens: int | None
    """Most tokens of each answer; None: as many as the model's window leaves."""
    ours: dict[str, bytes]


def upstream_params(
    route: Route, typed: Body, members: Mapping[str, Any], caller: Caller, *, resumes: bool
) -> UpstreamParams:
    stream = bool(typed.stream) and route.spec.streams is not None
    salt = caller.salt_for(typed.cache_salt or "")
    usage = _usage_request(typed, members) if stream else None
    is_resumable = resumes and stream and route.spec.is_resumable and may_resume(members)
    hides_ids = is_resumable and not members.get("return_token_ids")
    ours = {"stream_options": usage} if usage else {}
    if hides_ids:
        ours["return_token_ids"] = b"true"
    if caller.salt_key and route.spec.is_salted:
        ours["cache_salt"] = b'"%b"' % salt.encode()
    if not _ENGINES_OWN.keys().isdisjoint(members):
        ours |= {name: value for name, value in _ENGINES_OWN.items() if name in members}
    return UpstreamParams(stream, salt, usage is not None, hides_ids, is_resumable, *_bounds(route, members), ours)


def _bounds(route: Route, members: Mapping[str, Any]) -> tuple[int, int | None]:
    """The number of answers and the most tokens of each, as vLLM reads them: the newer name overrides the older."""
    if not route.spec.generates:
        return 1, 0
    limit, answers = members.get("max_tokens"), _count(members.get("n"))
    if route.spec.prompt is PromptForm.MESSAGES:
        limit = members.get("max_completion_tokens") or limit
    elif route.spec.prompt is PromptForm.TEXT:
        if "max_tokens" not in members:  # a null asks for all that the window leaves
            limit = COMPLETIONS_MAX_TOKENS
        answers = max(answers, _count(members.get("best_of")))
        answers *= max(1, _prompts(members.get("prompt")) + _prompts(members.get("prompt_embeds")))
    return answers, limit if type(limit) is int and limit >= 0 else None


def _prompts(value: Any) -> int:
    """Number of prompts that a member holds, each of which is answered. A list of numbers is one prompt of token ids."""
    if type(value) is list and value and type(value[0]) is not int:
        return len(value)
    return int(bool(value))


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 1


def _usage_request(body: Body, members: Mapping[str, Any]) -> bytes | None:
    """``stream_options`` that ask for the usage chunk; None if the client's own do, or the API has no such option."""
    if not isinstance(body, ChatBody | CompletionBody) or (body.stream_options and body.stream_options.include_usage):
        return None
    return msgspec.json.encode({**(members.get("stream_options") or {}), "include_usage": True})


def with_shorter_answers(request: Request, most: int) -> Request:
    """The request, with at most ``most`` tokens for each answer. O(body), without reading it."""
    given = member_names(request.body)
    is_newer = (
        request.route.spec.prompt is PromptForm.MESSAGES
        and bytes(given.get("max_completion_tokens", b"null")) != b"null"
    )
    limit = b"%d" % most
    values = {"max_completion_tokens" if is_newer else "max_tokens": limit}
    if (least := bytes(given.get("min_tokens", b"0"))).isdigit() and int(least) > most:
        values["min_tokens"] = limit
    body = set_members(request.body, given, values)
    return msgspec.structs.replace(request, body=body, max_answer_tokens=most)

"""A client's body → Request: its model, its prompt, and the prompt's stable part. Pure; raises ClientError.

Only members that routing needs are typed. The worker judges all others, and gets them as the client wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from router.core.errors import InvalidRequest
from router.core.index.fingerprint import Fingerprint, anchor, fingerprint
from router.core.request.request import Request, SessionKey
from router.core.request.routes import PromptForm, Route
from router.core.tenants.tenant import Caller
from router.wire.body_limits import BodyLimits, check_body
from router.wire.media import check_everywhere, forbid_names
from router.wire.prompts import PROMPTS, ChatBody, convert
from router.wire.session import session_key
from router.wire.strict_json import Edit, apply_edits, decode_object, edits_of
from router.wire.trace_context import passed_on
from router.wire.upstream_params import UpstreamParams, upstream_params


class Parsed(NamedTuple):
    """A request without its body, and the changes to the client's body on its way to a worker."""

    request: Request
    edits: list[Edit]

    def of(self, body: bytes) -> Request:
        """The whole request. ``body``: the client's."""
        return msgspec.structs.replace(self.request, body=apply_edits(body, self.edits))


def parse_apart(
    body: bytes,
    route: Route,
    headers: Mapping[str, str],
    caller: Caller,
    request_id: str,
    *,
    limits: BodyLimits | None = None,
    resumes: bool = True,
) -> Parsed:
    """The request without its body, so that a process which parses it need not send the body back. ``limits``: None if whatever
    the worker takes may be asked. ``resumes``: another worker may continue its stream. Linear in the body.
    Raises InvalidJson, InvalidRequest."""
    members = decode_object(body)
    if limits is not None:
        check_body(members, body, limits)
        may_have_url = b"_url" in body or b"\\u" in body  # a key may be written with escapes
        if may_have_url and route.spec.prompt is PromptForm.NONE:
            check_everywhere(members, limits.media)
    if caller.salt_key and (b'"uuid"' in body or b"\\u" in body):
        forbid_names(members)
    shape, read_prompt = PROMPTS[route.spec.prompt]
    typed = convert(members, shape)
    try:
        prompt = read_prompt(typed)
    except UnicodeEncodeError:
        raise InvalidRequest("the prompt has a lone surrogate, which is not text") from None
    upstream = upstream_params(route, typed, members, caller, resumes=resumes)
    segments, model = prompt.segments, typed.model
    request = _request(
        route,
        upstream,
        model,
        b"",
        fingerprint(segments, model=model, cache_salt=upstream.salt, tenant=caller.scope)
        if segments
        else Fingerprint((), len(body)),
        anchor(segments[: prompt.anchor_segments], model=model, tenant=caller.scope),
        sum(map(len, segments[: prompt.earlier_segments])),
        session_key(headers, members, caller.rules.tenant),
        headers,
        caller,
        request_id,
    )
    return Parsed(request, edits_of(body, members, upstream.ours) if upstream.ours else [])


class TurnBody(NamedTuple):
    """A chat body but its messages, which the router has: its members as JSON, and ``shown`` without the cache salt."""

    params: bytes
    shown: bytes
    upstream: UpstreamParams


def read_params(members: Mapping[str, Any], model: str, caller: Caller, *, has_tools: bool, resumes: bool) -> TurnBody:
    """``members``: of a chat body, without messages and tools. Raises InvalidRequest."""
    members = {"model": model, **members}
    typed = convert({**members, "messages": []}, ChatBody)
    upstream = upstream_params(Route.CHAT, typed, {**members, "tools": has_tools}, caller, resumes=resumes)
    ours = {name: msgspec.Raw(value) for name, value in upstream.ours.items()}
    params = msgspec.json.encode({**members, **ours})
    shown = {name: value for name, value in {**members, **ours}.items() if name != "cache_salt"}
    return TurnBody(params, msgspec.json.encode(shown), upstream)


def turn_request(
    turn: TurnBody,
    model: str,
    body: bytes,
    prompt: Fingerprint,
    anchor_key: int,
    earlier_bytes: int,
    session: SessionKey | None,
    headers: Mapping[str, str],
    caller: Caller,
    request_id: str,
) -> Request:
    """A turn of a session, whose prompt was fingerprinted as it grew."""
    fields = (model, body, prompt, anchor_key, earlier_bytes, session, headers, caller, request_id)
    return _request(Route.CHAT, turn.upstream, *fields, is_entered=True)


def _request(
    route: Route,
    upstream: UpstreamParams,
    model: str,
    body: bytes,
    prompt: Fingerprint,
    anchor_key: int,
    earlier_bytes: int,
    session: SessionKey | None,
    headers: Mapping[str, str],
    caller: Caller,
    request_id: str,
    *,
    is_entered: bool = False,
) -> Request:
    traceparent, tracestate = passed_on(headers)
    return Request(
        route=route,
        model=model,
        stream=upstream.stream,
        body=body,
        fingerprint=prompt,
        anchor=anchor_key,
        earlier_bytes=earlier_bytes,
        session=session,
        tenant=caller.rules.tenant,
        hides_usage=upstream.hides_usage,
        hides_ids=upstream.hides_ids,
        is_entered=is_entered,
        is_resumable=upstream.is_resumable,
        answers=upstream.answers,
        max_answer_tokens=upstream.max_answer_tokens,
        request_id=request_id,
        traceparent=traceparent,
        tracestate=tracestate,
        hidden_salt=upstream.salt if "cache_salt" in upstream.ours else "",
    )

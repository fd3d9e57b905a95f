"""A client's body → Request: which model, which prompt, and what of the prompt is stable. Pure; raises ClientError.

Only what routing needs is typed. Everything else is the worker's to judge, and goes to it as the client wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from router.core.errors import InvalidRequest
from router.core.index.fingerprint import Fingerprint, anchor, fingerprint
from router.core.request.canonical import message_segments, text_bytes, tools_segments
from router.core.request.request import Request, SessionKey
from router.core.request.routes import PromptForm, Route
from router.core.tenants.tenant import Caller
from router.wire.body_limits import BodyLimits, check_body
from router.wire.continuation import COMPLETIONS_MAX_TOKENS, may_resume
from router.wire.media import check_everywhere, forbid_names
from router.wire.session import session_key
from router.wire.strict_json import Edit, apply_edits, decode_object, edits_of, member_names, set_members
from router.wire.trace_context import passed_on

JsonObject = dict[str, Any]
Shape = TypeVar("Shape", bound="Body")

_ENGINES_OWN = {"priority": b"0", "stream_interval": b"1"}
"""Knobs of the engine that one client would turn for all: whose request goes first is the router's to say, and several tokens
in an event could not be counted one by one. What a client sets is set to the engine's own default."""


class StreamOptions(Struct):
    include_usage: bool | None = None


class Body(Struct):
    """What every inference route has."""

    model: Annotated[str, Meta(max_length=256)]
    stream: bool | None = None
    cache_salt: Annotated[str, Meta(max_length=1024)] | None = None


class ChatBody(Body, kw_only=True):
    messages: list[JsonObject]
    tools: list[JsonObject] | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(Body, kw_only=True):
    prompt: str | list[Any] | None = None
    stream_options: StreamOptions | None = None


class MessagesBody(Body, kw_only=True):
    messages: list[JsonObject]
    system: str | list[JsonObject] | None = None
    tools: list[JsonObject] | None = None


class UpstreamParams(NamedTuple):
    """How an answer shall come, and the members of the body that the router sets for it."""

    stream: bool
    salt: str
    hides_usage: bool
    hides_ids: bool
    is_resumable: bool
    answers: int
    """How many the worker writes: choices of each prompt."""
    max_answer_tokens: int | None
    """Of each; None: as many as the model's window leaves."""
    ours: dict[str, bytes]


class Prompt(Struct, frozen=True):
    """Segments in the order that the chat template gives them, and the two marks that routing needs."""

    segments: Sequence[bytes] = ()
    anchor_segments: int = 0
    earlier_segments: int = 0


class Parsed(NamedTuple):
    """A request whose body is still the client's, and what has to be changed in it on the way to a worker."""

    request: Request
    edits: list[Edit]

    def of(self, body: bytes) -> Request:
        """``body``: the client's."""
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
    """All but the body, so that a process which reads it need not send it back. ``limits``: what may be asked; None: anything
    that the worker takes. ``resumes``: streams shall be kept so that another worker can go on with them. Linear in the body.
    Raises InvalidJson, InvalidRequest."""
    members = decode_object(body)
    if limits is not None:
        check_body(members, body, limits)
        if route.spec.prompt is PromptForm.NONE and (
            b"_url" in body or b"\\u" in body
        ):  # a key may be written by its numbers
            check_everywhere(members, limits.media)
    if caller.salt_key and (b'"uuid"' in body or b"\\u" in body):
        forbid_names(members)
    shape, read_prompt = _PROMPTS[route.spec.prompt]
    typed = convert(members, shape)
    try:
        prompt = read_prompt(typed)
    except UnicodeEncodeError:
        raise InvalidRequest("the prompt has a lone surrogate, which is not text") from None
    upstream = _upstream_params(route, typed, members, caller, resumes=resumes)
    segments, tenant = prompt.segments, caller.rules.tenant
    traceparent, tracestate = passed_on(headers)
    request = Request(
        route=route,
        model=typed.model,
        stream=upstream.stream,
        body=b"",
        fingerprint=fingerprint(segments, model=typed.model, cache_salt=upstream.salt, tenant=caller.scope)
        if segments
        else Fingerprint((), len(body)),
        anchor=anchor(segments[: prompt.anchor_segments], model=typed.model, tenant=caller.scope),
        earlier_bytes=sum(map(len, segments[: prompt.earlier_segments])),
        session=session_key(headers, members, tenant),
        tenant=tenant,
        hides_usage=upstream.hides_usage,
        hides_ids=upstream.hides_ids,
        is_resumable=upstream.is_resumable,
        answers=upstream.answers,
        max_answer_tokens=upstream.max_answer_tokens,
        request_id=request_id,
        traceparent=traceparent,
        tracestate=tracestate,
        hidden_salt=upstream.salt if "cache_salt" in upstream.ours else "",
    )
    return Parsed(request, edits_of(body, members, upstream.ours) if upstream.ours else [])


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


class TurnBody(NamedTuple):
    """A chat body whose messages the router has: ``params`` are all others, as JSON, ``shown`` without the cache salt."""

    params: bytes
    shown: bytes
    upstream: UpstreamParams


def read_params(members: Mapping[str, Any], model: str, caller: Caller, *, has_tools: bool, resumes: bool) -> TurnBody:
    """``members``: of a chat body, without messages and tools. Raises InvalidRequest."""
    members = {"model": model, **members}
    typed = convert({**members, "messages": []}, ChatBody)
    upstream = _upstream_params(Route.CHAT, typed, {**members, "tools": has_tools}, caller, resumes=resumes)
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
    """A session's, whose prompt was fingerprinted as it grew."""
    upstream = turn.upstream
    traceparent, tracestate = passed_on(headers)
    return Request(
        route=Route.CHAT,
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
        is_entered=True,
        is_resumable=upstream.is_resumable,
        answers=upstream.answers,
        max_answer_tokens=upstream.max_answer_tokens,
        request_id=request_id,
        traceparent=traceparent,
        tracestate=tracestate,
        hidden_salt=upstream.salt if "cache_salt" in upstream.ours else "",
    )


def _upstream_params(
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
    """How many answers, and the most tokens of each, as vLLM reads it: the newer name counts before the older."""
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
    """How many prompts a member holds, each of which is answered: a list of numbers is one prompt, in token ids."""
    if type(value) is list and value and type(value[0]) is not int:
        return len(value)
    return int(bool(value))


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 1


def convert(members: Mapping[str, Any], shape: type[Shape]) -> Shape:
    """Raises InvalidRequest, which names the member."""
    try:
        return msgspec.convert(members, shape)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        where = where.rstrip("`")
        raise InvalidRequest(f"{what}{' at ' + where if where else ''}", param=where or None) from None


def _usage_request(body: Body, members: Mapping[str, Any]) -> bytes | None:
    """``stream_options`` that ask for the usage chunk; None if the client's own do, or the API has no such option."""
    if not isinstance(body, ChatBody | CompletionBody) or (body.stream_options and body.stream_options.include_usage):
        return None
    return msgspec.json.encode({**(members.get("stream_options") or {}), "include_usage": True})


def _chat(body: ChatBody | MessagesBody) -> Prompt:
    """The stable prefix ends with the first user turn; an earlier turn ends with the last assistant's message."""
    segments = tools_segments(body.tools)
    system = getattr(body, "system", None)
    if system:
        segments.append(text_bytes(system))
    anchor = earlier = 0
    for message in body.messages:
        segments += message_segments(message)
        role = message.get("role")
        if role == "assistant":
            earlier = len(segments)
        elif role == "user" and not anchor:
            anchor = len(segments)
    return Prompt(segments, anchor or len(segments), earlier)


def _completion(body: CompletionBody) -> Prompt:
    """Several prompts are routed by the first, and weigh as much as all of them."""
    prompt = body.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        segments = [b"".join(token.to_bytes(4, "big", signed=True) for token in _token_ids(prompt))]
    elif isinstance(prompt, list):
        segments = list(map(text_bytes, prompt)) or [b""]
    else:
        segments = [text_bytes(prompt)]
    return Prompt(segments, 1, 0)


def _token_ids(prompt: list[Any]) -> list[int]:
    if not all(isinstance(token, int) and 0 <= token < 1 << 31 for token in prompt):
        raise InvalidRequest("a prompt of token ids must hold integers from 0 to 2147483647 only", param="prompt")
    return prompt


def _no_prompt(_: Body) -> Prompt:
    """Pooling routes: each input is read once, so no prefix is worth keeping."""
    return Prompt()


_PROMPTS: dict[PromptForm, tuple[type[Body], Callable[[Any], Prompt]]] = {
    PromptForm.MESSAGES: (ChatBody, _chat),
    PromptForm.ANTHROPIC: (MessagesBody, _chat),
    PromptForm.TEXT: (CompletionBody, _completion),
    PromptForm.NONE: (Body, _no_prompt),
}

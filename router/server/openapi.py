"""Describes the data port in OpenAPI 3.1: every route, its body, and its errors.

Bodies are described as loosely as they are checked. What only a worker checks is left open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from router.config.serving import LimitsConfig
from router.core.request.routes import Api, PromptForm, Route

Schema = dict[str, Any]
DescribePages = Callable[[LimitsConfig, Schema, Schema], Schema]
"""Returns paths. Takes the limits, the body of chat completions, and the errors by status."""

_TEXT: Schema = {"type": "string"}
_PARTS: Schema = {"type": "array", "items": {"type": "object"}}
_MESSAGES: Schema = {"type": "array", "items": {"type": "object"}}
_ERRORS = {
    400: "The router or the worker found the request invalid.",
    404: "No worker ever listed this model.",
    405: "The route does not accept this method.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is compressed.",
    421: "This host name is not served.",
    422: "The worker found the request invalid.",
    429: "A limit of the tenant or of the router is reached. Retry-After says when to retry.",
    431: "The head is too large.",
    502: "Every worker that was tried failed.",
    503: "No worker can serve this now. Retry-After says when to retry.",
    504: "No worker answered in time.",
}
_STATE_ERRORS = {
    404: "There is no such session, response, conversation, item or model.",
    409: "Another turn is running, or the name is taken.",
    500: "The stored data cannot be read.",
}


API_VERSION = "1"
"""Version of the routes (/v1). The program's own version would help attackers."""


def describe(limits: LimitsConfig, describe_pages: DescribePages | None = None) -> bytes:
    """The document in JSON. ``describe_pages`` adds routes that need no worker."""
    paths: Schema = {route.path: {"post": _inference(route, limits)} for route in Route}
    paths["/v1/models"] = {"get": _plain("The models that may be asked for", _json({"$ref": _named("Models")}))}
    paths["/health"] = {"get": _plain("Whether the process lives", _plain_text())}
    paths["/ready"] = {"get": _plain("Whether some worker can serve", _plain_text(), 503)}
    paths["/openapi.json"] = {"get": _plain("This document", _json({"type": "object"}))}
    if describe_pages is not None:
        paths |= describe_pages(limits, _body(Route.CHAT, limits), _errors({**_ERRORS, **_STATE_ERRORS}, "Error"))
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "warmroute", "version": API_VERSION, "description": "Routes requests to vLLM workers."},
            "paths": paths,
            "components": {"schemas": _SCHEMAS},
        }
    )


def _inference(route: Route, limits: LimitsConfig) -> Schema:
    answer = _json({})
    if route.spec.streams:
        answer["text/event-stream"] = {"schema": _TEXT}
    return {
        "summary": route.spec.title,
        "requestBody": {"required": True, "content": _json(_body(route, limits))},
        "responses": {
            "200": {"description": "The worker's answer.", "content": answer},
            **_errors(_ERRORS, "AnthropicError" if route.spec.errors is Api.ANTHROPIC else "Error"),
        },
    }


def _errors(texts: Mapping[int, str], schema: str) -> Schema:
    """Errors by status. A worker's own error for an invalid request has its own text."""
    error = _json({"$ref": _named(schema)})
    return {
        str(status): {"description": text, "content": {"application/json": {}} if status == 422 else error}
        for status, text in texts.items()
    }


def _body(route: Route, limits: LimitsConfig) -> Schema:
    properties: Schema = {
        "model": {"type": "string", "maxLength": 256},
        "stream": _or_null({"type": "boolean"}),
        "cache_salt": _or_null({"type": "string", "maxLength": 1024}),
        "n": _or_null({"type": "integer", "minimum": 1, "maximum": limits.max_choices}),
        "max_tokens": _or_null({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}),
        "stop": _or_null(_TEXT, {"type": "array", "items": _TEXT, "maxItems": limits.max_stops}),
    }
    required, prompt = ["model"], route.spec.prompt
    if prompt in (PromptForm.MESSAGES, PromptForm.ANTHROPIC):
        properties["messages"] = {**_MESSAGES, "maxItems": limits.max_messages}
        properties["tools"] = _or_null(_PARTS)
        required.append("messages")
    if prompt is PromptForm.ANTHROPIC:
        properties["system"] = _or_null(_TEXT, _PARTS)
    if prompt is PromptForm.TEXT:
        properties["prompt"] = _or_null(_TEXT, {"type": "array", "items": _TEXT, "maxItems": limits.max_inputs})
    if route.spec.streams is Api.OPENAI:
        usage = {"include_usage": _or_null({"type": "boolean"})}
        properties["stream_options"] = _or_null({"type": "object", "properties": usage})
    return {"type": "object", "required": required, "properties": properties}


def _plain(summary: str, content: Schema, *also: int) -> Schema:
    error = {"description": "The request is invalid.", "content": _json({"$ref": _named("Error")})}
    refusals = {str(status): error for status in (400, 405, 421, 431)}
    answers = {str(status): {"description": summary, "content": content} for status in (200, *also)}
    return {"summary": summary, "responses": {**answers, **refusals}}


def _or_null(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas, {"type": "null"}]}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _plain_text() -> Schema:
    return {"text/plain": {"schema": _TEXT}}


def _named(schema: str) -> str:
    return f"#/components/schemas/{schema}"


_SCHEMAS: Schema = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _or_null(_TEXT),
                    "code": _or_null(_TEXT, {"type": "integer"}),
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT},
            },
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"type": "object", "required": ["id"], "properties": {"id": _TEXT}}},
        },
    },
}

"""OpenAPI descriptions of the stateful routes, as loose as their checks."""

from __future__ import annotations

import re
from typing import Any

from router.config.serving import LimitsConfig
from router.core.tenants.tenant import MAX_CONTEXT_TOKENS
from router.sessions.context.strategies import STRATEGIES
from router.sessions.openai.objects import MAX_NEW_ITEMS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_ITEM: Schema = {"type": "object", "properties": {"type": _TEXT}}
_METADATA: Schema = {"type": ["object", "null"], "additionalProperties": {"type": "string", "maxLength": 512}}
_PAGING: tuple[Schema, ...] = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
    {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    {"name": "after", "in": "query", "schema": _TEXT},
)
_LIST: Schema = {
    "type": "object",
    "required": ["object", "data", "first_id", "last_id", "has_more"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"type": "object", "required": ["id", "type"]}},
        "first_id": _TEXT,
        "last_id": _TEXT,
        "has_more": {"type": "boolean"},
    },
}
_OBJECT: Schema = {"type": "object", "required": ["id", "object"], "properties": {"id": _TEXT, "object": _TEXT}}
_DELETED: Schema = {**_OBJECT, "required": ["id", "object", "deleted"]}

_TITLES = {
    ("post", "/v1/sessions/{session}/chat/completions"): "The next turn of a session: new messages only",
    ("get", "/v1/sessions/{session}"): "How much a session holds, and whether a turn is under way",
    ("delete", "/v1/sessions/{session}"): "Forget a session",
    ("get", "/v1/sessions/{session}/items"): "A session's log",
    ("post", "/v1/sessions/{session}/items"): "Add to a session without asking a model",
    ("post", "/v1/sessions/{session}/fork"): "A copy of a session, whole or up to an item",
    ("get", "/v1/sessions/{session}/context"): "What of a session's history is sent, and what stands for the rest",
    ("post", "/v1/sessions/{session}/context"): "How a session's history is kept within its model's window",
    ("get", "/v1/sessions/{session}/turns/{turn}/prompt"): "The body that a turn sent to its worker",
    ("post", "/v1/responses"): "A response, with the history that it follows kept by the router",
    ("get", "/v1/responses/{response}"): "A response that was kept",
    ("delete", "/v1/responses/{response}"): "Forget a response",
    ("post", "/v1/responses/{response}/cancel"): "Refused: nothing runs in the background",
    ("get", "/v1/responses/{response}/input_items"): "What a response's request brought",
    ("post", "/v1/conversations"): "A new conversation",
    ("get", "/v1/conversations/{conversation}"): "A conversation",
    ("post", "/v1/conversations/{conversation}"): "Change a conversation's metadata",
    ("delete", "/v1/conversations/{conversation}"): "Forget a conversation",
    ("get", "/v1/conversations/{conversation}/items"): "A conversation's items",
    ("post", "/v1/conversations/{conversation}/items"): "Add items to a conversation",
    ("get", "/v1/conversations/{conversation}/items/{item}"): "One item",
    ("delete", "/v1/conversations/{conversation}/items/{item}"): "Delete an item",
}


def describe_state(limits: LimitsConfig, chat: Schema, errors: Schema) -> Schema:
    """Paths. ``chat``: the body of chat completions; ``errors``: answers by status."""
    paths: Schema = {}
    bodies = _bodies(limits, chat)
    for (method, path), title in _TITLES.items():
        names = re.findall(r"{(\w+)}", path)
        parameters = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
            }
            for name in names
        ]
        is_list = method == "get" and path.endswith("items")
        operation = {
            "summary": title,
            "parameters": [*parameters, *(_PAGING if is_list else ())],
            "responses": {"200": {"description": title, "content": _answer(method, path)}, **errors},
        }
        if (method, path) in bodies:
            operation["requestBody"] = {"required": True, "content": {"application/json": bodies[method, path]}}
        paths.setdefault(path, {})[method] = operation
    return paths


def _answer(method: str, path: str) -> Schema:
    if path.endswith(("/chat/completions", "/v1/responses")):
        return {"application/json": {"schema": {}}, "text/event-stream": {"schema": _TEXT}}
    if path.endswith(("/items", "/input_items")):
        schema = _LIST
    elif path.endswith(("/prompt", "/{item}")):
        schema = {"type": "object"}
    else:
        schema = _DELETED if method == "delete" else _OBJECT
    return {"application/json": {"schema": schema}}


def _bodies(limits: LimitsConfig, chat: Schema) -> dict[tuple[str, str], Schema]:
    def items(most: int) -> Schema:
        return {"type": "array", "items": _ITEM, "minItems": 1, "maxItems": most}

    def body(*required: str, **properties: Schema) -> Schema:
        return {"schema": {"type": "object", "required": list(required), "properties": properties}}

    name_or_null: Schema = {"type": ["string", "null"]}
    flag: Schema = {"type": ["boolean", "null"]}
    tokens: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_CONTEXT_TOKENS}
    changes = body("metadata", metadata=_METADATA)
    conversation = "/v1/conversations/{conversation}"
    return {
        ("post", "/v1/sessions/{session}/chat/completions"): {"schema": chat},
        ("post", "/v1/sessions/{session}/items"): body("items", items=items(limits.max_messages)),
        ("post", "/v1/sessions/{session}/fork"): body("session_id", session_id=_TEXT, after=name_or_null),
        ("post", "/v1/sessions/{session}/context"): body(
            strategy={"enum": [*STRATEGIES, None]}, high_tokens=tokens, low_tokens=tokens, max_tokens=tokens
        ),
        ("post", "/v1/responses"): body(
            "model",
            model={"type": "string", "minLength": 1, "maxLength": 256},
            input={"anyOf": [_TEXT, {"type": "array", "items": _ITEM, "maxItems": limits.max_messages}]},
            instructions=name_or_null,
            previous_response_id=name_or_null,
            conversation={"anyOf": [name_or_null, {"type": "object", "required": ["id"], "properties": {"id": _TEXT}}]},
            store=flag,
            stream=flag,
            metadata=_METADATA,
            tools={"type": ["array", "null"], "items": {"type": "object"}},
            max_output_tokens={"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1},
        ),
        ("post", "/v1/conversations"): body(
            items={"type": ["array", "null"], "items": _ITEM, "maxItems": MAX_NEW_ITEMS}, metadata=_METADATA
        ),
        ("post", conversation): changes,
        ("post", f"{conversation}/items"): body("items", items=items(MAX_NEW_ITEMS)),
    }

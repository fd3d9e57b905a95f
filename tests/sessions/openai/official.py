"""What the official client takes for an answer: its own types, read strictly."""

from __future__ import annotations

import json
from typing import Any, get_args

import pydantic
from openai.types.conversations import ConversationItemList
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent

from router.sessions.openai.shapes import Head

EVENTS: dict[str, type[pydantic.BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}

ECHO: dict[str, Any] = {
    "background": False,
    "conversation": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": "m",
    "parallel_tool_calls": True,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}
UNTYPED = {"store"}
"""Members that the service sends and the client's types do not have."""


def make_head(**changes: Any) -> Head:
    members = {"id": "resp_1", "created_at": 100, "echo": ECHO, "item_id": lambda part: f"item_{part}", **changes}
    return Head(**members)


def check(kind: type[pydantic.BaseModel], value: object) -> pydantic.BaseModel:
    """Through JSON, as a client gets it; strict, and without members that the type does not know."""
    model = kind.model_validate_json(json.dumps(value), strict=True)
    assert not (model.model_extra or {}).keys() - UNTYPED, model.model_extra
    return model


def check_response(value: dict[str, Any]) -> Response:
    model = check(Response, value)
    assert isinstance(model, Response)
    for item, given in zip(model.output, value["output"], strict=True):
        assert item.type == given["type"]
        assert not item.model_extra, item.model_extra
    return model


def check_item(value: dict[str, Any]) -> None:
    """As both lists know items."""
    for item_list in (ConversationItemList, ResponseItemList):
        page = {"object": "list", "data": [value], "first_id": "", "last_id": "", "has_more": False}
        item: Any = item_list.model_validate_json(json.dumps(page), strict=True).data[0]
        assert item.type == value["type"]
        assert not item.model_extra, item.model_extra


def read_events(stream: bytes) -> list[dict[str, Any]]:
    """Each checked against its own type, and numbered without a gap."""
    events = []
    for number, block in enumerate(stream.decode().split("\n\n")[:-1]):
        name, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        check(EVENTS[event["type"]], event)
        if "response" in event:
            check_response(event["response"])
        events.append(event)
    return events

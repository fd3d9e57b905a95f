"""Tools, tool choice and text format, for responses and for chat completions. Pure; raises InvalidRequest."""

from __future__ import annotations

from typing import Any

from router.sessions.openai.values import JsonObject, read_choice, read_flag, read_list, read_object, read_text, refuse

_CHOICES = frozenset({"none", "auto", "required"})
_FORMATS = frozenset({"text", "json_object", "json_schema"})
_VERBOSITIES = frozenset({"low", "medium", "high"})


def read_tools(value: object) -> tuple[list[JsonObject], list[JsonObject]]:
    """Tools for the response and for chat, in the client's order."""
    public, chat = [], []
    for number, each in enumerate(read_list(value, "tools")):
        where = f"tools[{number}]"
        tool = read_object(each, where)
        kind = str(tool.get("type"))[:64]
        if kind != "function":
            refuse(f"{where} is of type {kind!r}, which is not supported here: only functions are", where)
        function = _function(tool, where)
        public.append({"type": "function", "description": None, "parameters": None, "strict": None, **function})
        chat.append({"type": "function", "function": function})
    return public, chat


def _function(tool: JsonObject, where: str) -> JsonObject:
    function: JsonObject = {"name": read_text(tool.get("name"), f"{where}.name")}
    for name, read in (("description", read_text), ("parameters", read_object), ("strict", read_flag)):
        if tool.get(name) is not None:
            function[name] = read(tool[name], f"{where}.{name}")
    return function


def read_tool_choice(value: object, *, has_tools: bool) -> tuple[Any, Any]:
    """The choice for the response and for chat. The latter is None without tools, since workers refuse it then."""
    param = "tool_choice"
    if isinstance(value, dict):
        kind = str(value.get("type"))[:64]
        if kind != "function":
            refuse(f"{param} of type {kind!r} is not supported here", param)
        name = read_text(value.get("name"), f"{param}.name")
        public: Any = {"type": "function", "name": name}
        chat: Any = {"type": "function", "function": {"name": name}}
    else:
        public = chat = read_choice(value, param, _CHOICES)
    if not has_tools:
        if public not in ("none", "auto"):
            refuse(f"{param} demands a call, but there are no tools", param)
        chat = None
    return public, chat


def read_text_options(value: object) -> tuple[JsonObject, JsonObject | None]:
    """The options for the response, and chat's response_format if there is one. Verbosity is repeated, and means nothing to
    workers."""
    options = read_object(value, "text")
    public: JsonObject = {"format": {"type": "text"}}
    response_format = None
    if options.get("format") is not None:
        public["format"], response_format = _format(read_object(options["format"], "text.format"))
    if options.get("verbosity") is not None:
        public["verbosity"] = read_choice(options["verbosity"], "text.verbosity", _VERBOSITIES)
    return public, response_format


def _format(given: JsonObject) -> tuple[JsonObject, JsonObject | None]:
    where = "text.format"
    kind = read_choice(given.get("type"), f"{where}.type", _FORMATS)
    if kind == "text":
        return {"type": kind}, None
    if kind == "json_object":
        return {"type": kind}, {"type": kind}
    schema: JsonObject = {
        "name": read_text(given.get("name"), f"{where}.name"),
        "schema": read_object(given.get("schema"), f"{where}.schema"),
    }
    for name, read in (("description", read_text), ("strict", read_flag)):
        if given.get(name) is not None:
            schema[name] = read(given[name], f"{where}.{name}")
    return {"type": kind, **schema}, {"type": kind, "json_schema": schema}

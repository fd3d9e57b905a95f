"""Reads the configuration from TOML, environment and flags, and checks all of it once.

Flags win over the environment, the environment over the file, the file over the defaults of the sections; nowhere else are
there defaults. A key ``a.b`` is ``WARMROUTE_A__B`` in the environment; lists are separated by commas there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from router.config.checks import check_across
from router.config.reference import PREFIX, sections, settings
from router.config.schema import ANY_MODEL, MODELS, Config, ConfigError
from router.config.section import Section
from router.config.sessions import ModelConfig

_S = TypeVar("_S", bound="Section")

_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT\w*=.*|PORT_\d+_\w+=.*|PORT=\w+://.*)")
"""Variables that Kubernetes sets in every container for a Service called ``warmroute``, without the prefix."""


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Merges file, environment and flags (``"a.b"`` → value; None: not given) and checks the result.

    Raises ConfigError, whose text is one line.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read_toml(file)
    for key, value in _from_environment(environment).items():
        _put(tree, key, value)
    for key, value in flags.items():
        if value is not None:
            _put(tree, key, value)
    models = tree.pop(MODELS, {})
    if not isinstance(models, dict):
        raise ConfigError(f"{MODELS}={_shown(models)}: must be table")
    config = msgspec.structs.replace(
        _convert(tree, Config), models={name: _convert(table, ModelConfig, name) for name, table in models.items()}
    )
    check_across(config)
    return config


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {setting.variable: setting for setting in settings()}
    found: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or _SERVICE_LINK.fullmatch(f"{name.removeprefix(PREFIX)}={text}"):
            continue
        template, key = _key_of(name)
        if template not in known:
            raise ConfigError(_unknown(name, known))
        setting = known[template]
        is_list = setting.type.startswith("list")
        value = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        found[key or setting.key] = value
    return found


def _key_of(variable: str) -> tuple[str, str]:
    """The variable as the reference has it, and for a model's variable its key, else an empty key."""
    prefix = f"{PREFIX}{MODELS.upper()}__"
    model, separator, name = variable.removeprefix(prefix).rpartition("__")
    if not (variable.startswith(prefix) and model and separator):
        return variable, ""
    return f"{prefix}{ANY_MODEL}__{name}", f"{MODELS}.{model}.{name.lower()}"


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value by its key. The name of a model may contain dots."""
    section, _, rest = key.partition(".")
    model, _, name = rest.rpartition(".")
    table = tree
    for part in (section, model) if section == MODELS else (section,):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section}={_shown(table)}: must be a table")
    table[name if section == MODELS else rest] = value


def _convert(tree: Any, kind: type[_S], model: str = "") -> _S:
    """``model``: name of the model whose table it is. Raises ConfigError."""
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), tree, model)) from None


def _explain(error: str, tree: Any, model: str) -> str:
    """msgspec's ``what - at `$.a.b` `` → ``a.b=value: what``."""
    what, _, where = error.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    prefix, template = (f"{MODELS}.{model}", f"{MODELS}.{ANY_MODEL}.") if model else ("", "")
    if what.startswith("Object contains unknown field"):
        name = what.split("`")[1]
        keys = [setting.key.replace(ANY_MODEL, model or ANY_MODEL) for setting in settings()]
        return _unknown(".".join(filter(None, (prefix, path, name))), (*keys, *dict(sections())))
    value: Any = tree
    path = path.split("[")[0]
    for part in filter(None, path.split(".")):
        value = value.get(part) if isinstance(value, dict) else value
    setting = next((setting for setting in settings() if setting.key == template + path), None)
    rule = f"{setting.type} {setting.bound}".strip() if setting else "table"
    shown = _shown(value) if setting is None else "***" if setting.is_secret else repr(value)
    return f"{'.'.join(filter(None, (prefix, path)))}={shown}: must be {rule}"


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _shown(table: object) -> str:
    """A value that should be a table, without its text, which may hold secrets."""
    return "***" if isinstance(table, str | list | dict) else repr(table)

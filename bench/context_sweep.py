"""The high mark swept, against the one that the square-root rule names for what the worker counted."""

from __future__ import annotations

from typing import Any

from bench.context_runs import Plan


async def sweep(plan: Plan, ways: list[str] | None) -> tuple[dict[str, Any], dict[str, bool]]:
    raise NotImplementedError

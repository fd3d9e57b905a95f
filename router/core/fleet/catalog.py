"""Which models the workers serve, and which workers may be tried for a model. Never which worker is best."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from router.core.errors import ModelNotFound, ModelUnavailable, NoWorkerAvailable
from router.core.fleet.health import WorkerState
from router.core.fleet.member import Member, ModelCard

MAX_KNOWN_MODELS = 10_000
"""Names that are remembered, beyond those that are served now."""


@dataclass(frozen=True, slots=True)
class Eligible:
    """Workers that may be tried for a model. ``panic``: all of them are ejected, and are tried since no other is left."""

    positions: Sequence[int]
    panic: bool


class Catalog:
    """``members``: the fleet's own collection. ``declared``: models that exist whether or not a worker lists them.

    What is found out is kept until ``forget_states`` or ``forget_lists``; names that clients make up are never kept.
    """

    def __init__(self, members: Collection[Member], declared: frozenset[str]) -> None:
        self._members = members
        self._declared = declared
        self._eligible: dict[str, Eligible] = {}
        self._windows: dict[str, int] = {}
        self._served: dict[str, ModelCard] | None = None
        self._known: dict[str, None] = {}
        """Names that some worker listed, the newest last."""

    def __repr__(self) -> str:
        return f"Catalog({len(self._members)} workers, {len(self.served_models())} models served, {len(self._known)} known)"

    def __len__(self) -> int:
        """Names that are remembered."""
        return len(self._known)

    # Eligible workers

    def eligible(self, model: str) -> Eligible:
        """Raises ModelNotFound, ModelUnavailable, NoWorkerAvailable."""
        found = self._eligible.get(model)
        if found is None:
            found = self._find_eligible(model)
        if found.positions:
            self._eligible[model] = found
            return found
        if self.knows(model):
            raise ModelUnavailable(f"no worker serves the model {model!r} at the moment", retry_after_s=2)
        if not self._known:
            raise NoWorkerAvailable("no worker has come up yet", retry_after_s=1)
        if not all(member.models for member in self._members):
            text = f"no worker that is up serves the model {model!r}, and others have not come up yet"
            raise ModelUnavailable(text, retry_after_s=2)
        raise ModelNotFound.of(model)

    def _find_eligible(self, model: str) -> Eligible:
        serving = self._awake_with(model)
        up = sorted(member.position for member in serving if member.state is WorkerState.UP)
        return Eligible(up or sorted(member.position for member in serving), panic=not up)

    def _awake_with(self, model: str) -> list[Member]:
        awake = (member for member in self._members if member.state is not WorkerState.ASLEEP)
        return [member for member in awake if model in member.models]

    def window(self, model: str) -> int:
        """Tokens of a prompt and its answer together, by the workers that may be tried for the model; 0: none says.

        It is the upper median: one wrong worker among many changes nothing for the requests of the others, and of two that
        differ the larger counts, since a prompt that fits there must be neither refused nor cut.
        """
        if (found := self._windows.get(model)) is not None:
            return found
        serving = self._awake_with(model)
        tried = [member for member in serving if member.state is WorkerState.UP] or serving
        lengths = sorted(length for member in tried if (length := member.max_model_len(model)))
        window = lengths[len(lengths) // 2] if lengths else 0
        if tried:
            self._windows[model] = window
        return window

    def is_ready(self) -> bool:
        return any(member.models and member.state is WorkerState.UP for member in self._members)

    # Served models

    def serves(self, model: str) -> bool:
        """True if some worker lists it now."""
        return any(model in member.models for member in self._members)

    def knows(self, model: str) -> bool:
        """True if some worker ever listed it, or the configuration declares it."""
        return model in self._known or model in self._declared

    def was_listed(self, model: str) -> bool:
        return model in self._known

    def served_models(self) -> dict[str, ModelCard]:
        """By name, in order; a model of several workers with the card of the first."""
        if self._served is None:
            cards: dict[str, ModelCard] = {}
            for member in self._members:
                for model, card in member.models.items():
                    cards.setdefault(model, card)
            self._served = dict(sorted(cards.items()))
        return self._served

    def remember(self, models: Iterable[str]) -> list[str]:
        """A broken worker may list other names at each look. Beyond the bound those are forgotten, and returned, that no worker
        serves, the oldest first."""
        for model in models:
            self._known.pop(model, None)
            self._known[model] = None
        if (surplus := len(self._known) - MAX_KNOWN_MODELS) <= 0:
            return []
        served = self.served_models()
        forgotten = [model for model in self._known if model not in served][:surplus]
        for model in forgotten:
            del self._known[model]
        return forgotten

    def forget_states(self) -> None:
        """A worker came up, was ejected, fell asleep or woke."""
        self._eligible.clear()
        self._windows.clear()

    def forget_lists(self) -> None:
        """A worker joined, left, or lists other models."""
        self.forget_states()
        self._served = None

"""Learns from workers' answers and polls: prefill rates, bytes per token, and the size of caches."""

from __future__ import annotations

from router.core.fleet.capacity import LearntCapacity
from router.core.fleet.catalog import Catalog
from router.core.fleet.figures import Figures
from router.core.fleet.member import Lease, Member
from router.core.fleet.rates import DecayedRatio, believed
from router.core.fleet.rules import FleetRules
from router.core.index.fingerprint import BLOCK_BYTES
from router.core.index.prefix_index import PrefixIndex

OWN_SAMPLES = 10.0
"""With more (decayed) samples, a worker's rate is its own and no longer follows the fleet's."""

MIN_BYTES_PER_TOKEN, MAX_BYTES_PER_TOKEN = 0.5, 64.0
"""A prompt beyond these is not text, or badly counted: an image says nothing of how a tokenizer cuts."""

BELIEVED_TOKENS = 256.0
"""Weight of the configured bytes per token against the first measurements, in tokens."""

CAPACITY_STEP = 0.02
"""A cache's size in index blocks follows the learnt bytes per token; smaller changes than this are not worth the work."""


class Learning:
    def __init__(self, rules: FleetRules, figures: Figures, catalog: Catalog, index: PrefixIndex) -> None:
        self._rules = rules
        self._figures = figures
        self._catalog = catalog
        self._index = index
        self._bytes_per_token: dict[str, DecayedRatio] = {}
        self._prefills = believed(rules.initial_prefill_rate)
        self._unproven: set[Member] = set()
        self.mean_uncached_tokens = 1000.0
        """Mean over this router's requests: the estimate for a request of another router."""

    def add(self, member: Member) -> None:
        self._unproven.add(member)
        self._figures.reset(member.position, member.name, member.prefills.seconds_per_token(self._prefills))
        member.cache_blocks = self._capacity_blocks(member)
        self._index.add(member.position, member.cache_blocks)

    def remove(self, member: Member) -> None:
        self._unproven.discard(member)

    # Rates

    def learn_rate(self, lease: Lease, uncached_tokens: float) -> None:
        """The worker computed ``uncached_tokens`` within the lease's time.

        Workers with few samples of their own follow the fleet's mean.
        """
        self.mean_uncached_tokens += 0.05 * (max(uncached_tokens, 0.0) - self.mean_uncached_tokens)
        if uncached_tokens <= 0 or lease.service_s <= 0 or lease.member.removed:
            return
        lease.member.prefills.add(uncached_tokens, lease.service_s)
        self._prefills.add(uncached_tokens, lease.service_s)
        if lease.member.prefills.samples > OWN_SAMPLES:
            self._unproven.discard(lease.member)
        for member in (lease.member, *self._unproven):
            self._figures.seconds_per_token[member.position] = member.prefills.seconds_per_token(self._prefills)

    # Tokens

    def knows(self, model: str) -> bool:
        """True if some worker ever listed the model, or the configuration declares it."""
        return self._catalog.knows(model)

    def bytes_per_token(self, model: str) -> float:
        """Prompt bytes per token, as the model's tokenizer was seen to make them."""
        ratio = self._bytes_per_token.get(model)
        return self._rules.initial_bytes_per_token if ratio is None else ratio.value

    def learn_bytes_per_token(self, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        if not MIN_BYTES_PER_TOKEN * prompt_tokens <= prompt_bytes <= MAX_BYTES_PER_TOKEN * prompt_tokens:
            return
        ratio = self._bytes_per_token.get(model)
        if ratio is None:
            if not self._catalog.was_listed(model):
                return
            ratio = DecayedRatio(self._rules.initial_bytes_per_token * BELIEVED_TOKENS, BELIEVED_TOKENS)
            self._bytes_per_token[model] = ratio
        ratio.add(prompt_bytes, prompt_tokens)

    def forget(self, model: str) -> None:
        self._bytes_per_token.pop(model, None)

    # Caches

    def learns_capacity(self, member: Member) -> bool:
        """True if the worker does not say how large its cache is."""
        return not member.removed and (member.load is None or member.load.cache_tokens is None)

    def learn_capacity(self, member: Member, age_blocks: float, *, was_held: bool) -> None:
        """For a worker that ``learns_capacity``: a prompt was held, or gone although it was expected. ``age_blocks``: blocks
        that were used on the worker since the prompt was."""
        if member.learnt_capacity is None:
            member.learnt_capacity = LearntCapacity(member.cache_blocks)
        if was_held:
            member.learnt_capacity.on_held(age_blocks)
        else:
            member.learnt_capacity.on_gone(age_blocks)
        self.follow_capacity(member)

    def follow_capacity(self, member: Member) -> None:
        """Tell the index the size of the worker's cache, if it changed by more than a little."""
        blocks = self._capacity_blocks(member)
        if abs(blocks - member.cache_blocks) > member.cache_blocks * CAPACITY_STEP:
            member.cache_blocks = blocks
            self._index.resize(member.position, blocks)

    def _capacity_blocks(self, member: Member) -> int:
        reported = member.load.cache_tokens if member.load else None
        if reported is None and member.learnt_capacity is not None:
            return max(1, int(member.learnt_capacity.blocks))
        tokens = self._rules.default_cache_tokens if reported is None else reported
        ratios = [self.bytes_per_token(model) for model in member.models]
        mean = sum(ratios) / len(ratios) if ratios else self._rules.initial_bytes_per_token
        return max(1, int(tokens * mean / BLOCK_BYTES))

"""Continuous batching with chunked prefill, in virtual time: decides when each request gets its first and last token.

Pure: the caller passes the time as integer nanoseconds, and nothing is awaited. A step processes at most
`max_num_batched_tokens` tokens: one for each decoding request and the rest in prefill chunks, first come first served.
A step lasts

    step_overhead + (itl if anything decodes)
                  + Σ over chunks: chunk / prefill_rate + attention_cost · chunk · (context + chunk / 2)

Every decoding request gets a token in every step, so a request ends at a known step number. Without prefill all steps
last equally long, and any number of them is one operation for any number of requests. Integer time keeps this exact.
Must never loop over the decoding requests in a step, and never depend on how often `advance` is called.

    front end ──ready──▶ waiting ──admitted: seat and blocks──▶ prefilling ──last chunk──▶ decoding ──last token──▶ done
        └──────────────────── abort: at once, blocks freed ─────────────────────────────────────────▶ done
"""

from collections import OrderedDict
from heapq import heappop, heappush

from router.simulator.front_end import FrontEnd
from router.simulator.generation import EngineLimits, Event, Generation, State
from router.simulator.prefix_cache import PrefixCache
from router.simulator.stats import EngineStats

NS_PER_S = 1_000_000_000


__all__ = ["NS_PER_S", "Engine", "EngineLimits", "Event", "Generation"]


class Engine:
    """One worker's scheduler. `advance` moves it to a time and returns the events until then.

    Time must not go back between calls. `submit` and `abort` advance as well; the next `advance` returns those events.
    """

    def __init__(self, limits: EngineLimits, cache: PrefixCache, *, request_latency_ns: int = 0) -> None:
        self.cache = cache
        self.stats = EngineStats()
        self._limits = limits
        self._front_end = FrontEnd(request_latency_ns)
        self._waiting: OrderedDict[Generation, None] = OrderedDict()
        self._prefilling: dict[Generation, None] = {}
        self._decoding = 0
        self._events: list[Event] = []
        # A heap of steps at which a decoding request ends or needs a block. Entries of aborted requests are skipped.
        self._due: list[tuple[int, int, Generation]] = []
        self._pushes = 0
        self._step = 0
        # The span in progress: `_span_steps` equal steps from `_now_ns`. A span with prefill chunks has one step.
        self._now_ns = 0
        self._step_ns = 0
        self._span_steps = 0
        self._chunks: list[tuple[Generation, int]] = []

    @property
    def running(self) -> int:
        return len(self._prefilling) + self._decoding

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._front_end)

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether an empty cache could hold the request. `submit` refuses a request that does not fit."""
        return self._blocks(prompt_tokens + max(output_tokens - 1, 0)) <= self.cache.blocks

    def submit(self, generation: Generation, now_ns: int, work_ns: int = 0) -> None:
        """Queue a generation. It reaches the scheduler after `work_ns` of the front end's work.

        Raises ValueError if it does not fit into the cache.
        """
        if not self.fits(generation.prompt_tokens, generation.output_tokens):
            raise ValueError("the cache is smaller than the request")
        self._advance(now_ns)
        self._front_end.take(generation, now_ns, work_ns)
        self._begin_batches(now_ns)

    def abort(self, generation: Generation, now_ns: int) -> None:
        """Drop a generation and free its blocks now. The step in progress keeps its length. Idempotent."""
        self._advance(now_ns)
        if generation.state is State.DONE:
            return
        if generation.state is State.WAITING:
            if not self._front_end.drop(generation):
                del self._waiting[generation]
        elif generation.state is State.PREFILLING:
            del self._prefilling[generation]
        else:
            self._decoding -= 1
        self._span_steps = min(self._span_steps, 1)
        self._end(generation, "abort")

    def advance(self, now_ns: int) -> list[Event]:
        """Complete every step that ends by `now_ns`. Returns the events since the last call, in order of time."""
        self._advance(now_ns)
        events, self._events = self._events, []
        return events

    def next_event_ns(self) -> int | None:
        """The time of the next event; None when idle. The caller advances the engine then."""
        if self._events:
            return self._now_ns
        if self._span_steps:
            return self._or_batch(self._now_ns + self._span_steps * self._step_ns)
        return self._or_batch(next(iter(self._waiting)).ready_ns if self._waiting else None)

    def next_step_ns(self) -> int | None:
        """The end of the step in progress, which is the next time at which a token can come; None when idle."""
        return self._or_batch(self._now_ns + self._step_ns) if self._span_steps else self.next_event_ns()

    def generated(self, generation: Generation) -> int:
        """How many tokens the generation had at the last advance."""
        if generation.first_ns == 0:
            return 0
        return min(generation.output_tokens, 1 + self._step - generation.first_step)

    def _advance(self, now_ns: int) -> None:
        self._begin_batches(now_ns)
        self._take_steps_until(now_ns)

    def _begin_batches(self, now_ns: int) -> None:
        """Begin each front-end batch that is due by `now_ns`, at its own time, and queue its generations."""
        while (batch_ns := self._front_end.next_batch_ns()) is not None and batch_ns <= now_ns:
            self._take_steps_until(batch_ns)
            for generation in self._front_end.begin_batch():
                self._waiting[generation] = None
                if self._span_steps > 1 and len(self._waiting) == 1:
                    self._span_steps = min(self._span_steps, self._steps_until(generation.ready_ns))

    def _or_batch(self, at_ns: int | None) -> int | None:
        """The earlier of `at_ns` and the start of the front end's next batch."""
        batch_ns = self._front_end.next_batch_ns()
        return at_ns if batch_ns is None or (at_ns is not None and at_ns < batch_ns) else batch_ns

    def _take_steps_until(self, now_ns: int) -> None:
        while True:
            if not self._span_steps:
                if not self._waiting:
                    return
                start_ns = max(self._now_ns, next(iter(self._waiting)).ready_ns)
                if start_ns > now_ns:
                    return
                self._now_ns = start_ns
                self._plan()
            steps = min(self._span_steps, (now_ns - self._now_ns) // self._step_ns)
            if steps == 0:
                return
            self._take(steps)
            if self._span_steps:
                return
            self._plan()

    def _take(self, steps: int) -> None:
        """Complete some steps of the span, and then all that is due at the last of them."""
        self._now_ns += steps * self._step_ns
        self._span_steps -= steps
        self._step += steps
        self.stats.steps += steps
        if self._decoding:
            self.stats.generation_tokens += steps * self._decoding
            self.stats.itl_s.observe(self._step_ns / NS_PER_S, steps * self._decoding)
        due = self._due
        while due and due[0][0] <= self._step:
            generation = heappop(due)[2]
            if generation.state is not State.DECODING:
                continue
            if generation.finish_step <= self._step:
                self._decoding -= 1
                self._finish(generation)
            elif generation.holding is not None:
                self.cache.grow(generation.holding)
                self._push(generation)
        chunks, self._chunks = self._chunks, []
        for generation, tokens in chunks:
            if generation.state is State.PREFILLING:
                self._complete_chunk(generation, tokens)

    def _complete_chunk(self, generation: Generation, tokens: int) -> None:
        block_tokens, before = self._limits.block_tokens, generation.computed_tokens
        after = generation.computed_tokens = before + tokens
        if generation.holding is not None:
            self.cache.commit(generation.holding, generation.hashes[before // block_tokens : after // block_tokens])
        if after < generation.prompt_tokens:
            return
        del self._prefilling[generation]
        generation.first_ns, generation.first_step = self._now_ns, self._step
        generation.finish_step = self._step + generation.output_tokens - 1
        self.stats.prompt_tokens += generation.prompt_tokens
        self.stats.computed_prompt_tokens += generation.prompt_tokens - generation.cached_tokens
        self.stats.prefill_s.observe((self._now_ns - generation.scheduled_ns) / NS_PER_S)
        self.stats.ttft_s.observe((self._now_ns - generation.ready_ns) / NS_PER_S)
        self.stats.generation_tokens += min(generation.output_tokens, 1)
        if generation.output_tokens:
            self._events.append(Event(generation, self._now_ns, is_last=False))
        if generation.output_tokens <= 1:
            self._finish(generation)
        else:
            self._decoding += 1
            generation.state = State.DECODING
            self._push(generation)

    def _push(self, generation: Generation) -> None:
        """Note the step at which this generation next needs a block, or else the step at which it ends."""
        holding = generation.holding
        step = generation.finish_step
        if holding is not None and holding.reserved:
            grown = self._blocks(generation.prompt_tokens + generation.output_tokens - 1) - holding.reserved
            full = generation.first_step + grown * self._limits.block_tokens - generation.prompt_tokens + 1
            step = min(step, full)
        self._pushes += 1
        heappush(self._due, (step, self._pushes, generation))

    def _finish(self, generation: Generation) -> None:
        if generation.holding is not None:
            self.cache.commit(generation.holding, generation.output_hashes)
        self._events.append(Event(generation, self._now_ns, is_last=True))
        self.stats.e2e_s.observe((self._now_ns - generation.ready_ns) / NS_PER_S)
        self._end(generation, generation.finish_reason)

    def _end(self, generation: Generation, reason: str) -> None:
        generation.state = State.DONE
        self.stats.finished[reason] += 1
        if generation.holding is not None:
            self.cache.close(generation.holding)
            generation.holding = None

    def _plan(self) -> None:
        """Begin the next span at `_now_ns`: one step with prefill chunks, or decode steps until something is due."""
        limits = self._limits
        budget = limits.max_num_batched_tokens - self._decoding
        chunks: list[tuple[Generation, int]] = []
        for generation in self._prefilling:
            tokens = min(budget, generation.prompt_tokens - generation.computed_tokens)
            if tokens == 0:
                break
            chunks.append((generation, tokens))
            budget -= tokens
        while budget and self._waiting and (admitted := self._admit()) is not None:
            tokens = min(budget, admitted.prompt_tokens - admitted.computed_tokens)
            chunks.append((admitted, tokens))
            budget -= tokens
        self._chunks = chunks
        self._step_ns = limits.step_overhead_ns + (limits.itl_ns if self._decoding else 0)
        if chunks:
            self._step_ns = max(1, self._step_ns + sum(self._chunk_ns(*chunk) for chunk in chunks))
            self._span_steps = 1
        elif self._decoding:
            while self._due[0][2].state is not State.DECODING:
                heappop(self._due)
            self._span_steps = self._due[0][0] - self._step
            if self._waiting and (ready_ns := next(iter(self._waiting)).ready_ns) > self._now_ns:
                self._span_steps = min(self._span_steps, self._steps_until(ready_ns))

    def _admit(self) -> Generation | None:
        """Start the first generation of the queue. None if it is not ready, or if no seat or too few blocks are free."""
        generation = next(iter(self._waiting))
        if generation.ready_ns > self._now_ns or self.running >= self._limits.max_num_seqs:
            return None
        prompt_blocks = self._blocks(generation.prompt_tokens)
        total_blocks = self._blocks(generation.prompt_tokens + max(generation.output_tokens - 1, 0))
        generation.holding = self.cache.open(
            generation.hashes,
            prompt_blocks=prompt_blocks,
            growth_blocks=total_blocks - prompt_blocks,
            # vLLM computes at least one token of each prompt.
            max_cached=(generation.prompt_tokens - 1) // self._limits.block_tokens,
        )
        if generation.holding is None:
            return None
        del self._waiting[generation]
        self._prefilling[generation] = None
        generation.state = State.PREFILLING
        generation.scheduled_ns = self._now_ns
        generation.cached_tokens = generation.computed_tokens = generation.holding.cached * self._limits.block_tokens
        self.stats.prefix_queries += generation.prompt_tokens
        self.stats.prefix_hits += generation.cached_tokens
        self.stats.queue_s.observe((self._now_ns - generation.ready_ns) / NS_PER_S)
        return generation

    def _chunk_ns(self, generation: Generation, tokens: int) -> int:
        limits = self._limits
        attention_s = limits.attention_cost * tokens * (generation.computed_tokens + tokens / 2)
        return round((tokens / limits.prefill_rate + attention_s) * NS_PER_S)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_tokens)

    def _steps_until(self, at_ns: int) -> int:
        """Steps from now to the first step that ends at or after `at_ns`; at least 1, the step in progress."""
        return max(1, -(-(at_ns - self._now_ns) // self._step_ns))

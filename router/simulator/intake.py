"""Turns a request's body into a plan for the engine and the wire, or into the error that vLLM would answer.

Pure. It decides limits, prompts and answers before anything is queued, so that no client error can appear later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from router.simulator.answers import BOOK_TOKENS, Book
from router.simulator.engine import Generation
from router.simulator.requests import (
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    Message,
    MessagesRequest,
    render_chat,
    render_messages,
)
from router.simulator.script import Script, Stops, leaked, write_script
from router.simulator.settings import SimulatorSettings
from router.simulator.tokenizer import Vocabulary, cut_blocks, cut_more_blocks, hash_blocks, root_hash
from router.simulator.wire import ChatWire, CompletionWire, MessagesWire, Wire

T = TypeVar("T")
COMPLETIONS_MAX_TOKENS = 16
UNDECODABLE = "Bad Request"  # vLLM's error type for a body that does not decode; other refusals have other types
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Prompt = tuple[bytes, Sequence[int] | None]  # the text, and its token ids if the client sent ids


class Refusal(Exception):
    """A request that gets an error as its answer. The route decides the error's shape."""

    def __init__(self, status: int, message: str, kind: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param


def refuse(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> NoReturn:
    raise Refusal(status, message, kind, param)


@dataclass(slots=True, eq=False)
class PlannedChoice:
    """One generation, and its place in the book. Its script, if it has one, replaces the plain text from there."""

    generation: Generation
    place: int
    prompt_ids: Sequence[int] | None
    script: Script | None = None


@dataclass(slots=True, eq=False)
class Plan:
    """A whole request: its choices in order, and how to answer."""

    wire: Wire
    choices: list[PlannedChoice]
    is_stream: bool
    wants_ids: bool
    n: int
    tokens_per_event: int = 1


def _stops(request: GenerateRequest) -> Stops | None:
    """The request's stop strings and ids; None without any."""
    strings = [request.stop] if isinstance(request.stop, str) else request.stop or []
    strings = [string for string in strings if string]
    if not strings and not request.stop_token_ids:
        return None
    return Stops(strings, request.stop_token_ids or (), request.min_tokens, request.include_stop_str_in_output)


def _wants_usage(request: GenerateRequest) -> bool:
    """Whether the stream sends its usage. Refuses stream options in a request that does not stream."""
    options = request.stream_options
    if options is None or options.include_usage is None:
        return False
    if not request.stream:
        refuse(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    return options.include_usage


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        refuse(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")


class Intake:
    """The decoders and checks of one worker."""

    def __init__(self, settings: SimulatorSettings, vocabulary: Vocabulary, book: Book) -> None:
        self.vocabulary = vocabulary
        self._settings = settings
        self._book = book
        self._decoders: dict[type, msgspec.json.Decoder[Any]] = {}
        self._capacity_tokens = settings.cache_blocks * settings.block_tokens

    def decode(self, body: bytes, shape: type[T]) -> T:
        decoder = self._decoders.get(shape)
        if decoder is None:
            decoder = self._decoders[shape] = msgspec.json.Decoder(shape)
        try:
            decoded: T = decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            refuse(400, str(error), UNDECODABLE)
        return decoded

    def model_of(self, requested: str | None) -> tuple[str, str]:
        """The model's name in the answer, and the name that its KV is kept under. An adapter has a KV of its own."""
        settings = self._settings
        if requested is None or requested in settings.models:
            return requested or settings.models[0], settings.models[0]
        if requested not in settings.adapters:
            refuse(404, f"The model `{requested}` does not exist.", "NotFoundError", "model")
        return requested, requested

    def plan_chat(self, body: bytes, request_id: str, created_s: int) -> Plan:
        request = self.decode(body, ChatRequest)
        wants_usage = _wants_usage(request)
        model, kv_name = self.model_of(request.model)
        if request.add_generation_prompt and request.continue_final_message:
            refuse(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        _check_messages(request.messages)
        prompt = render_chat(
            request.messages,
            bytes(request.tools),
            add_generation_prompt=request.add_generation_prompt,
            continue_final=request.continue_final_message,
        )
        limit = request.max_completion_tokens or request.max_tokens
        wire = ChatWire(request_id, model, created_s, wants_usage=wants_usage)
        return self._plan(request, wire, [(prompt, None)], kv_name, limit)

    def plan_completion(self, body: bytes, request_id: str, created_s: int) -> Plan:
        request = self.decode(body, CompletionRequest)
        wants_usage = _wants_usage(request)
        model, kv_name = self.model_of(request.model)
        limit = COMPLETIONS_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        prompts = self._prompts(request.prompt)
        wire = CompletionWire(request_id, model, created_s, wants_usage=wants_usage)
        return self._plan(request, wire, prompts, kv_name, limit)

    def plan_messages(self, body: bytes, request_id: str) -> Plan:
        request = self.decode(body, MessagesRequest)
        if request.max_tokens is None:
            refuse(400, "max_tokens: Field required", UNDECODABLE, "body.max_tokens")
        if request.max_tokens < 1:
            refuse(400, "max_tokens must be positive", UNDECODABLE, "body.max_tokens")
        if request.cache_salt == "":
            refuse(400, "cache_salt: String should have at least 1 character", UNDECODABLE, "body.cache_salt")
        model, kv_name = self.model_of(request.model)
        _check_messages(request.messages)
        plain = GenerateRequest(stream=request.stream, stop=request.stop_sequences, cache_salt=request.cache_salt)
        wire, prompt = MessagesWire(request_id, model), render_messages(request)
        return self._plan(plain, wire, [(prompt, None)], kv_name, request.max_tokens)

    def pool(self, text: bytes, kv_name: str, salt: str = "") -> Generation:
        """A generation that ends with its prefill."""
        total, ends = cut_blocks(text, self._settings.block_tokens)
        self._check_length(total, None)
        hashes = hash_blocks(text, ends, root_hash(kv_name, salt))
        return Generation(prompt_tokens=max(total, 1), output_tokens=0, hashes=hashes, finish_reason="stop")

    def _prompts(self, prompt: Any) -> list[_Prompt]:
        """The prompts of `prompt`: one text or many, or one list of token ids or many."""
        if isinstance(prompt, str):
            return [(prompt.encode("utf-8", "surrogatepass"), None)]
        if prompt == []:
            refuse(400, "You must pass at least one prompt")
        if not isinstance(prompt, list):
            refuse(400, "prompt must be a string, a list of strings or lists of token ids", UNDECODABLE, "body.prompt")
        try:
            if isinstance(prompt[0], int):
                prompt = [prompt]
            if isinstance(prompt[0], str):
                return [(text.encode("utf-8", "surrogatepass"), None) for text in msgspec.convert(prompt, list[str])]
            return [(self.vocabulary.decode(ids), ids) for ids in msgspec.convert(prompt, list[list[_TokenId]])]
        except msgspec.ValidationError as error:
            refuse(400, str(error), param="prompt")

    def _plan(
        self, request: GenerateRequest, wire: Wire, prompts: list[_Prompt], kv_name: str, limit: int | None
    ) -> Plan:
        n = request.n or 1
        if not 1 <= n <= self._settings.max_num_seqs:
            refuse(400, f"n must be from 1 to {self._settings.max_num_seqs}", param="n")
        if limit is not None and limit < 1:
            refuse(400, f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
        if limit is not None and request.min_tokens > limit:
            refuse(400, f"min_tokens must be at most max_tokens={limit}, got {request.min_tokens}.", param="min_tokens")
        if request.cache_salt == "":
            refuse(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")
        root = root_hash(kv_name, request.cache_salt or "")
        choices = [choice for prompt in prompts for choice in self._choices(request, prompt, root, limit, n)]
        return Plan(
            wire,
            choices,
            is_stream=bool(request.stream),
            wants_ids=bool(request.return_token_ids),
            n=n,
            tokens_per_event=max(request.stream_interval or 1, self._settings.tokens_per_event),
        )

    def _choices(
        self, request: GenerateRequest, prompt: _Prompt, root: int, limit: int | None, n: int
    ) -> list[PlannedChoice]:
        text, given_ids = prompt
        total, ends = self._blocks(text, given_ids)
        if not total:
            refuse(400, "The decoder prompt cannot be empty", param="prompt")
        if limit is not None and limit == self._settings.max_model_len - total:
            limit = None  # a limit that fills the context length equals no limit
        self._check_length(total, limit)
        hashes = hash_blocks(text, ends, root)
        place = self._book.place(text, given_ids[-1] if given_ids else -1)
        prompt_ids = (given_ids or self.vocabulary.encode(text)) if request.return_token_ids else None
        output_tokens, reason = self._length(request, text, place, total, limit)
        stops, held = _stops(request), leaked(text) if given_ids else b""
        choices = []
        for index in range(n):
            at = self._book.place_of_choice(place, index)
            tokens, why, script = output_tokens, reason, None
            if stops or held or self._book.first_id is not None:
                script = self._script(at, output_tokens, held, stops or Stops(), reason)
                tokens, why = len(script.ids), script.finish_reason
            generation = Generation(
                prompt_tokens=total,
                output_tokens=tokens,
                hashes=hashes,
                output_hashes=self._output_hashes(text, ends, hashes[-1] if hashes else root, at, total, tokens),
                finish_reason=why,
            )
            choices.append(PlannedChoice(generation, at, prompt_ids, script))
        return choices

    def _blocks(self, text: bytes, ids: Sequence[int] | None) -> tuple[int, list[int]]:
        """A prompt's number of tokens, and the byte offset of each full block's end.

        Blocks end between the given ids if the tokenizer would cut the text elsewhere.
        """
        block_tokens = self._settings.block_tokens
        total, ends = cut_blocks(text, block_tokens)
        if ids is None or (self._book.first_id is None and total == len(ids)):
            return total, ends
        offsets = list(accumulate(map(len, self.vocabulary.tokens_of(ids))))
        return len(ids), offsets[block_tokens - 1 :: block_tokens]

    def _script(self, place: int, tokens: int, held: bytes, stops: Stops, reason: str) -> Script:
        """The text and the end of a choice, token by token."""
        book, words = self._book, self._book.read_tokens(place, 0, tokens)
        if book.first_id is None:
            ids = self.vocabulary.ids_of(words)
        else:
            ids = [book.first_id + (place + at) % BOOK_TOKENS for at in range(tokens)]
        if reason == "stop" and book.eos_id is not None:
            ids[-1], words[-1] = book.eos_id, b""
        return write_script(ids, words, held, stops, reason)

    def _check_length(self, prompt_tokens: int, limit: int | None) -> None:
        bound = self._settings.max_model_len
        if prompt_tokens + (limit is None) > bound:
            message = f"This model's maximum context length is {bound} tokens, and the request has {prompt_tokens}."
            refuse(400, message, param="input_tokens")
        if limit is not None and prompt_tokens + limit > bound:
            message = f"max_tokens={limit} and {prompt_tokens} input tokens exceed the context length of {bound}."
            refuse(400, message, param="input_tokens" if prompt_tokens >= bound else "max_tokens")
        if prompt_tokens + (limit or 1) - 1 > self._capacity_tokens:
            message = f"The KV cache holds {self._capacity_tokens} tokens, and the request needs more."
            refuse(400, message, param="input_tokens")

    def _length(
        self, request: GenerateRequest, text: bytes, place: int, prompt_tokens: int, limit: int | None
    ) -> tuple[int, str]:
        """The answer's number of tokens and its finish reason: the limit, or without a limit its natural end."""
        if limit is not None:
            return limit, "length"
        room = min(self._settings.max_model_len, self._capacity_tokens) - prompt_tokens
        natural = max(self._book.natural_tokens(text, place), request.min_tokens)
        if request.ignore_eos or natural > room:
            return max(room, 1), "length"
        return natural, "stop"

    def _output_hashes(
        self, text: bytes, ends: list[int], parent: int, place: int, prompt_tokens: int, output_tokens: int
    ) -> list[int]:
        """Hashes of the blocks that the answer fills. The cache never holds the last token."""
        block_tokens = self._settings.block_tokens
        blocks = (prompt_tokens + output_tokens - 1) // block_tokens - len(ends)
        if blocks <= 0:
            return []
        answer = self._book.read(place, 0, output_tokens - 1)
        if self._book.first_id is None:
            rest, further = cut_more_blocks(text, ends, answer, block_tokens)
            return hash_blocks(rest, further[:blocks], parent)
        begin = ends[-1] if ends else 0
        firsts = range((len(ends) + 1) * block_tokens - prompt_tokens, output_tokens, block_tokens)
        further = [len(text) - begin + len(self._book.read(place, 0, first)) for first in firsts]
        return hash_blocks(text[begin:] + answer, further, parent)

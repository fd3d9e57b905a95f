"""Chat requests as clients send them: a system prompt, a conversation so far, a newest message that is never the same.

The conversations are made once from a seed, so that every router meets the same bytes in the same order; a request
number in the newest message keeps any cache of whole requests, and any match of whole prompts, from answering.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cpu.replies import MODEL

SYSTEM = "You are a careful assistant for the staff of a library.\nAnswer briefly, and say when you do not know. "
SYLLABLES = ("ka", "lo", "mi", "re", "tu", "son", "ver", "an", "ble", "ques", "tion", "port", "er", "in", "the", "of")
# Prose has quotes, line ends and letters beyond ASCII; each costs a JSON parser something.
MARKS = (". ", ", ", "\n", ' "', "é ", " — ", "? ")
NUMBER = b"#000000000#"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One session's request, split where the request number goes."""

    session: str
    before: bytes
    after: bytes

    def request(self, number: int, stream_events: int) -> bytes:
        """The whole HTTP request, head and body. ``stream_events``: content events to ask for; 0: not streamed."""
        how = b',"stream":true,"max_tokens":%d}' % stream_events if stream_events else b',"max_tokens":100}'
        length = len(self.before) + len(NUMBER) + len(self.after) + len(how)
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nUser-Agent: bench\r\nAccept: */*\r\n"
            b"Content-Type: application/json\r\nX-Session-ID: %s\r\nContent-Length: %d\r\n\r\n"
        ) % (self.session.encode(), length)
        return b"".join((head, self.before, b"#%09d#" % number, self.after, how))


def make_conversations(count: int, body_bytes: int, messages: int, seed: int) -> Sequence[Conversation]:
    """``count`` sessions with bodies of about ``body_bytes`` bytes: a system prompt and ``messages`` messages."""
    draw = random.Random(seed)
    overhead = len(SYSTEM) + 60 + 40 * messages
    share = max(40, (body_bytes - overhead) // messages)
    return [_conversation(draw, index, share, messages) for index in range(count)]


def _conversation(draw: random.Random, index: int, message_bytes: int, messages: int) -> Conversation:
    roles = ["user" if turn % 2 == 0 else "assistant" for turn in range(messages - 1)] + ["user"]
    turns = [{"role": role, "content": _prose(draw, message_bytes)} for role in roles]
    turns[-1]["content"] = NUMBER.decode() + turns[-1]["content"]
    turns.insert(0, {"role": "system", "content": SYSTEM})
    body = json.dumps({"model": MODEL, "messages": turns}, separators=(",", ":"), ensure_ascii=False).encode()
    before, _, after = body[:-1].partition(NUMBER)
    return Conversation(f"session-{index:04d}", before, after)


def _prose(draw: random.Random, size: int) -> str:
    words: list[str] = []
    length = 0
    while length < size:
        mark = draw.choice(MARKS) if draw.random() < 0.1 else " "
        word = "".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) + mark
        words.append(word)
        length += len(word)
    return "".join(words)

"""Loads tokenizers from files: a model's tokenizer.json, or a vocabulary of tiktoken. Never fetches anything. Loading takes a
second, in a thread, at the start."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from router.sessions.tokens.local import CountText, guarded

CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"


class Unusable(Exception):
    """The tokenizer is missing or broken. The message says what is missing and how to get it."""


class Vocabulary(NamedTuple):
    """A vocabulary file, as tiktoken names and checks it."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        return hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()


_ORIGIN = "https://openaipublic.blob.core.windows.net/encodings"
_CL100K = Vocabulary(
    f"{_ORIGIN}/cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
)
_O200K = Vocabulary(
    f"{_ORIGIN}/o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
)

ENCODINGS = {"cl100k_base": _CL100K, "o200k_base": _O200K, "o200k_harmony": _O200K}


def load_tokenizer_json(path: Path) -> CountText:
    """A special token in a text counts as one, as on the worker. Raises Unusable."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise Unusable("needs the package tokenizers: warmroute[tokenizers]") from None
    try:
        data = path.read_text("utf-8")
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable("is no tokenizer.json") from None
    try:
        tokenizer = Tokenizer.from_str(data)
    except Exception as error:  # the library raises no narrower class
        raise Unusable(f"is no tokenizer.json: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return guarded(lambda text: len(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]))


def load_tiktoken(encoding: str, directory: Path | None) -> CountText:
    """``encoding``: one of ENCODINGS. ``directory``: of its vocabulary; None: tiktoken's own variable names it. Special tokens
    in a text count as text. Raises Unusable."""
    try:
        import tiktoken
    except ImportError:
        raise Unusable("needs the package tiktoken: warmroute[tiktoken]") from None
    vocabulary = ENCODINGS[encoding]
    if directory is None:
        named = os.environ.get(CACHE_VARIABLE)
        if not named:
            raise Unusable(f"needs tokens.vocabulary_dir, or {CACHE_VARIABLE}, with {_wanted(vocabulary)}")
        directory = Path(named)
    _check(directory, vocabulary)
    os.environ[CACHE_VARIABLE] = str(
        directory
    )  # the only way to set it; tiktoken does not fetch a file that it finds there
    try:
        counter = tiktoken.get_encoding(encoding)
    except (ValueError, OSError) as error:
        raise Unusable(f"tiktoken cannot load it: {error}") from None
    return guarded(lambda text: len(counter.encode_ordinary(text)))


def _check(directory: Path, vocabulary: Vocabulary) -> None:
    """Raises Unusable for a wrong file, which tiktoken would delete and fetch anew."""
    try:
        data = (directory / vocabulary.file_name).read_bytes()
    except OSError as error:
        raise Unusable(f"needs {_wanted(vocabulary)} in {directory}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != vocabulary.sha256:
        raise Unusable(f"{directory / vocabulary.file_name} is not {vocabulary.url}: its SHA-256 is another")


def _wanted(vocabulary: Vocabulary) -> str:
    return f"the file {vocabulary.file_name}, which is {vocabulary.url} (docs/tokenizers.md says how to get it offline)"

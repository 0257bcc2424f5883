"""A model small enough to compute by hand: what follows depends on the two last tokens and the position."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from bitconv.errors import InputError

EOG = 0
BOS = 1


class FakeTokenizer:
    """One token per byte; ids 0 and 1 are end and begin."""

    def encode(self, text: str) -> list[int]:
        return [BOS, *text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i > 1).decode(errors="replace")

    def stream(self, after: Sequence[int] = ()) -> FakeStream:
        return FakeStream()


class FakeStream:
    def __init__(self) -> None:
        self._pending = b""

    def push(self, token: int) -> str:
        self._pending += bytes([token])
        try:
            text, self._pending = self._pending.decode(), b""
        except UnicodeDecodeError:
            return ""
        return text

    def flush(self) -> str:
        text, self._pending = self._pending.decode(errors="replace"), b""
        return text


class FakeContext:
    def __init__(self, model: FakeModel, n_ctx: int) -> None:
        self.model, self.n_ctx, self.ids = model, n_ctx, list[int]()
        self.passes: list[int] = []

    @property
    def n_past(self) -> int:
        return len(self.ids)

    def truncate(self, n: int) -> None:
        del self.ids[n:]

    def forward(self, ids: Sequence[int], *, logits: Literal["last", "all", "none"] = "last") -> np.ndarray:
        if self.n_past + len(ids) > self.n_ctx:
            raise InputError("past the context")
        self.passes.append(len(ids))
        rows = []
        for token in ids:
            self.ids.append(token)
            rows.append(self.model.row(self.ids))
        keep = {"last": rows[-1:], "all": rows, "none": []}[logits]
        return np.array(keep, dtype=np.float32).reshape(len(keep), self.model.vocab_size)


class FakeModel:
    """Logits are random but fixed by what precedes; with `script`, its bytes come one after another."""

    vocab_size = 256
    n_ctx_train = 64
    path = "fake.gguf"

    def __init__(self, script: bytes | None = None, seed: int = 0) -> None:
        self.script, self.seed = script, seed
        self.tokenizer = FakeTokenizer()
        self.vocabulary: Any = SimpleNamespace(eog_ids=frozenset({EOG}), bos_id=BOS, add_bos=True)
        self.contexts: list[FakeContext] = []
        self.prompt_length = 0

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def context(self, n_ctx: int | None = None) -> FakeContext:
        self.contexts.append(FakeContext(self, n_ctx or self.n_ctx_train))
        return self.contexts[-1]

    def row(self, ids: list[int]) -> np.ndarray:
        if self.script is not None:
            row = np.zeros(self.vocab_size, np.float32)
            at = len(ids) - self.prompt_length
            row[self.script[at] if 0 <= at < len(self.script) else EOG] = 20
            return row
        key = [self.seed, len(ids), ids[-1], ids[-2] if len(ids) > 1 else 0]
        return np.random.default_rng(key).normal(size=self.vocab_size).astype(np.float32)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return np.array([self.row(list(ids[: i + 1])) for i in range(len(ids))], dtype=np.float32)


def scripted(text: str, prompt: str = "ab") -> FakeModel:
    """A model that, after `prompt`, says `text` and then ends."""
    model = FakeModel(script=text.encode())
    model.prompt_length = len(model.tokenize(prompt))
    return model

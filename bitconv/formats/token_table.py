"""Tokens by id while a vocabulary is being collected from the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bitconv.errors import FormatError
from bitconv.formats.vocabulary import TokenType


@dataclass
class TokenTable:
    """What a tokenizer file says, before special ids and padding.

    texts, types, scores: by id, in any order and with holes. pre: None where it is not known. prefix and
    suffix: the tokens put before and after a text; None where the file does not say.
    unlike: why a tokenizer rebuilt from the table would not be the file's, in words for the user; remarks:
    the same for rare texts only. odd: whether tokenizer.json uses what GGUF's keys do not express, though without
    consequence for ordinary texts.
    """

    model: str
    where: str
    texts: dict[int, str] = field(default_factory=dict)
    types: dict[int, TokenType] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    merges: list[str] = field(default_factory=list)
    pre: str | None = None
    prefix: list[int] | None = None
    suffix: list[int] | None = None
    unk_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    add_space_prefix: bool = False
    json_text: str | None = None
    unlike: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    odd: bool = False

    def add(self, token_id: int, text: str, kind: TokenType, score: float = 0.0) -> None:
        """Enter a token; FormatError when the id already belongs to another text."""
        if self.texts.setdefault(token_id, text) != text:
            raise FormatError(f"{self.where}: token {token_id} is both {self.texts[token_id][:80]!r} and {text[:80]!r}")
        self.types[token_id] = kind
        self.scores.setdefault(token_id, score)

    def ids(self) -> dict[str, int]:
        """Return text to id; where two tokens share a text, a special one comes before a normal one."""
        ordered = sorted(self.texts, key=lambda i: self.types[i] != TokenType.NORMAL)
        return {self.texts[i]: i for i in ordered}

    def padded(self, size: int) -> tuple[Sequence[str], np.ndarray, np.ndarray]:
        """Return tokens, types int32 [size] and scores float32 [size]; holes become unused tokens.

        Raises FormatError when a token's id does not fit.
        """
        largest = max(self.texts, default=-1)
        if largest >= size:
            raise FormatError(
                f"{self.where}: token {largest} is {self.texts[largest][:80]!r}, but the model has only "
                f"{size} embedding rows (vocab_size); tokenizer and model do not belong together"
            )
        tokens = [self.texts.get(i, f"[PAD{i}]") for i in range(size)]
        types = [self.types.get(i, TokenType.UNUSED) for i in range(size)]
        scores = [self.scores.get(i, 0.0) for i in range(size)]
        return tokens, np.array(types, np.int32), np.array(scores, np.float32)

"""SentencePiece's byte-pair encoding, from the pieces and scores that a GGUF file holds.

Why not the `tokenizers` library: it ranks merges one by one, SentencePiece compares the scores of the
results, and where scores are equal the two differ. Here the rule itself is executed, and no merge list has
to be made up when a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from bitconv.formats.vocabulary import TokenType

SPACE = "\u2581"
"""What stands for a space inside pieces."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_CACHED_WORDS = 1 << 16
_LONGEST_CACHED = 64


def byte_value(token: str) -> int | None:
    """Return the byte that a token written as <0xE2> stands for, or None."""
    match = _BYTE.match(token)
    return int(match[1], 16) if match else None


class SentencePieceEncoder:
    """Text without control tokens to ids, as SentencePiece does it for BPE with identity normalisation.

    tokens, scores (float32 [tokens]) and types (int32 [tokens]) in the order of the ids. unk_id stands for
    characters outside the vocabulary where it has no byte tokens; None drops them.
    """

    def __init__(self, tokens: Sequence[str], scores: np.ndarray, types: np.ndarray, unk_id: int | None) -> None:
        kinds = types.tolist()
        usable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        self._ids = {token: i for i, token in enumerate(tokens) if kinds[i] in usable and token}
        user = [token for token, i in self._ids.items() if kinds[i] == TokenType.USER_DEFINED]
        for token in user:  # text is matched after its spaces have become SPACE
            self._ids.setdefault(token.replace(" ", SPACE), self._ids[token])
        self._user = alternatives(token.replace(" ", SPACE) for token in user)
        # a heap pops the smallest, SentencePiece merges the pair of the highest score first
        costs = (-scores).tolist()
        self._costs = {token: costs[i] for token, i in self._ids.items()}
        self._unused = {token for token, i in self._ids.items() if kinds[i] == TokenType.UNUSED}
        found = ((byte_value(token), i) for i, token in enumerate(tokens) if kinds[i] == TokenType.BYTE)
        self._bytes = {value: i for value, i in found if value is not None}
        self._unk_id = unk_id
        self._words = self._word_pattern()
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode text whose spaces are still spaces; a prefix must already be in place."""
        text = text.replace(" ", SPACE)
        ids: list[int] = []
        for part, is_user in split_by(self._user, text):
            if is_user:
                ids.append(self._ids[part])
            elif self._words is None:
                ids += self._merge(part)
            else:
                for word in self._words.findall(part):
                    ids += cached(self._cache, word, self._merge)
        return ids if self._bytes else self._join_unknown(ids)

    def _word_pattern(self) -> re.Pattern[str] | None:
        """A cut before each run of spaces is exact, and fast, if no piece can reach across one."""
        inner = re.compile(f"[^{SPACE}]{SPACE}")
        if any(inner.search(piece) for piece in self._ids):
            return None
        if any(not piece.startswith("[PAD") for piece in self._unused):
            return None  # how an unused piece falls apart may depend on text far away
        return re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")

    def _merge(self, text: str) -> list[int]:
        """Merge the neighbours that form the best piece, leftmost first among equals, until none does."""
        pieces = list(text)
        count = len(pieces)
        costs, unused = self._costs, self._unused
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        halves: dict[str, tuple[str, str]] = {}
        heap: list[tuple[float, int, int, int]] = []

        def propose(left: int, right: int) -> None:
            if left < 0 or right >= count:
                return
            piece = pieces[left] + pieces[right]
            cost = costs.get(piece)
            if cost is not None:
                heappush(heap, (cost, left, right, len(piece)))
                if piece in unused:
                    halves[piece] = pieces[left], pieces[right]

        for left in range(count - 1):
            propose(left, left + 1)
        heapify(heap)
        while heap:
            _, left, right, length = heappop(heap)
            if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
                continue  # one of the two has been merged with another meanwhile
            pieces[left] += pieces[right]
            pieces[right] = ""
            after[left] = after[right]
            if after[right] < count:
                before[after[right]] = left
            propose(before[left], left)
            propose(left, after[left])
        return [i for piece in pieces if piece for i in self._piece_ids(piece, halves)]

    def _piece_ids(self, piece: str, halves: dict[str, tuple[str, str]]) -> Iterator[int]:
        """Unused pieces fall apart again; a character outside the vocabulary becomes its UTF-8 bytes."""
        stack = [piece]
        while stack:
            piece = stack.pop()
            token = self._ids.get(piece)
            if piece in self._unused and piece in halves:
                stack += reversed(halves[piece])
            elif token is not None:
                yield token
            elif self._bytes:
                yield from (self._bytes[b] for b in piece.encode("utf-8") if b in self._bytes)
            elif self._unk_id is not None:
                yield self._unk_id

    def _join_unknown(self, ids: list[int]) -> list[int]:
        """A run of unknown characters is one unknown token."""
        unk = self._unk_id
        return [token for i, token in enumerate(ids) if token != unk or i == 0 or ids[i - 1] != unk]


def cached(cache: dict[str, list[int]], word: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Return the ids of a word, which are computed once unless it is long."""
    ids = cache.get(word)
    if ids is None:
        ids = encode(word)
        if len(word) <= _LONGEST_CACHED:
            if len(cache) >= _CACHED_WORDS:
                cache.clear()
            cache[word] = ids
    return ids


def alternatives(texts: Iterator[str] | Sequence[str]) -> re.Pattern[str] | None:
    """Compile a pattern that finds the leftmost, then longest, of some texts; None when there are none."""
    ordered = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def split_by(pattern: re.Pattern[str] | None, text: str) -> Iterator[tuple[str, bool]]:
    """Cut text into (part, whether the pattern matched it), without empty parts."""
    start = 0
    if pattern is not None:
        for match in pattern.finditer(text):
            if match.start() > start:
                yield text[start : match.start()], False
            yield match[0], True
            start = match.end()
    if start < len(text):
        yield text[start:], False

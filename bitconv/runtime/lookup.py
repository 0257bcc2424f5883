"""Prompt lookup: guesses the next tokens from what followed the same tokens before, and checks them in one pass.

Nothing but speed depends on the guesses. The logits of a position are the same bits whatever the batch, so the sampler
sees what it would see without them; a guess is used only where it is the token that the sampler chose.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from bitconv.errors import FormatError

if TYPE_CHECKING:
    from bitconv.runtime.generate import Session, Timings

NGRAM = 3
"""Tokens that must have stood together before."""

# (at least so many tokens agree with earlier ones, draft so many). A pass begins with the token that is already
# certain, so these are passes of 3 and 12. Measured in decode steps with the logits of all tokens (0.7B layout, one and
# two threads, I2_S and TL2 on AVX2 and AVX-512): up to 7 tokens the engine multiplies token by token while the weights
# are in the cache; 3 cost 1.8 to 2.6, 4 cost 2.2 to 3.1, 6 cost 3.2 to 4.8. From 8 on it unpacks panels: 12 cost 5.1 to
# 7.6. Where tokens share passes (I2_S and TQ2_0) 3 cost 1.5 to 1.6, 4 cost 1.9 to 2.2, 12 cost 4.8 to 5.4 on AVX-512,
# and on AVX2, with the logits of the last alone, 1.4 to 1.6, 1.6 to 1.9 and 4.4 to 4.6.
# A draft must be right for the better part to gain; the long one pays where nearly all of it is, which a long
# agreement foretells.
DRAFTS = ((4, 2), (24, 11))


class Drafts:
    """Guesses how a growing sequence of tokens goes on: as it went on after the last occurrence of its end.

    ids: the sequence so far. ends: tokens that end a text; a guess stops before them, as nothing follows.
    The place found is followed while it is right, whether its guesses are used or not; so a draft needs no trial and
    grows with the agreement, and a wrong token begins a new search.
    """

    def __init__(self, ids: Iterable[int], ends: Collection[int]) -> None:
        self._ids: list[int] = []
        self._ends = ends
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its last occurrence is
        self._at = 0  # where the token is that is expected next
        self._agree = 0  # tokens before it that agree with the end of the sequence, as far as they were counted
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token. The n-gram before it is entered now, not earlier, so that the end never finds itself."""
        expected = self._agree > 0 and self._ids[self._at] == token
        self._after[tuple(self._ids[-NGRAM:])] = len(self._ids)
        self._ids.append(token)
        if expected:
            self._at, self._agree = self._at + 1, self._agree + 1
        else:
            self._search()

    def _search(self) -> None:
        ids, at = self._ids, self._after.get(tuple(self._ids[-NGRAM:]))
        self._agree = 0
        if at is not None:
            self._at, most = at, min(at, DRAFTS[-1][0])
            self._agree = next((n for n in range(NGRAM, most) if ids[at - 1 - n] != ids[-1 - n]), most)

    def draft(self, room: int) -> list[int]:
        """Guess at most room tokens; none where too few agree."""
        lengths = [length for agree, length in DRAFTS if agree <= self._agree and length <= room]
        period = len(self._ids) - self._at  # a guess that reaches the end of the sequence goes on with itself
        guess = [self._ids[self._at + i % period] for i in range(max(lengths, default=0))]
        useful = next((i for i, token in enumerate(guess) if token in self._ends), len(guess))
        return guess[: max((length for length in lengths if length <= useful), default=0)]


class Decoder:
    """Gives the logits after one token at a time; with drafts, one forward pass serves as many tokens as were right."""

    def __init__(self, session: Session, timings: Timings, drafts: Drafts | None) -> None:
        self._session, self._timings, self._drafts = session, timings, drafts
        self._draft: list[int] = []  # what the last pass assumed; the first _right of it has come true
        self._right = 0
        self._rows = np.empty((0, 0), np.float32)

    def after(self, token: int, room: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Append a token to the text; float32 [vocab], the logits after it.

        room: how many more tokens may be appended after this one; a draft is no longer.
        """
        start = time.perf_counter()
        if self._drafts is not None:
            self._drafts.append(token)
        if self._draft[self._right : self._right + 1] == [token]:
            self._right += 1
            self._timings.accepted_tokens += 1
        else:
            self.settle()
            self._pass(token, room)
        self._timings.decode_seconds += time.perf_counter() - start
        self._timings.decode_tokens += 1
        return self._rows[self._right]

    def settle(self) -> None:
        """Take what was guessed and has not come true out of the session."""
        if self._draft:
            self._session.truncate(len(self._session.ids) - len(self._draft) + self._right)
            self._draft, self._right = [], 0

    def _pass(self, token: int, room: int) -> None:
        context = self._session.context
        draft = [] if self._drafts is None else self._drafts.draft(min(room, context.n_ctx - context.n_past - 1))
        try:
            self._rows = self._session.feed([token, *draft], logits="all")
        except FormatError:
            if not draft:
                raise
            draft = []  # the numbers may overflow in the draft alone, which is no part of the text yet
            self._rows = self._session.feed([token], logits="all")
        self._draft = draft
        self._timings.drafted_tokens += len(draft)

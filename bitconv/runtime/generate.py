"""Turns a prompt into text, one piece at a time: prefill, sample, decode, until a reason to stop."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bitconv.errors import InputError
from bitconv.runtime.lookup import Decoder, Drafts
from bitconv.runtime.sampler import Sampler, SamplerParams

if TYPE_CHECKING:
    from bitconv.runtime.model import Context, Model

PREFILL_TOKENS = 256
"""Tokens of a prompt given to one forward pass; between two passes a generation can be cancelled."""


def generate(
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    n_ctx: int | None = None,
    session: Session | None = None,
    batch: int = PREFILL_TOKENS,
    lookup: bool = False,
    **sampling: Any,
) -> Generation:
    """Start to continue a prompt; iterate over the result to get the text piece by piece.

    prompt: text, or token ids (taken as they are). max_tokens None or negative: until the end of the text or
    of the context. stop: strings that end the text and are not part of it. n_ctx None or 0: the model's
    context. session: continue in its KV cache, computing only what it does not hold. batch: tokens per pass.
    lookup: guess tokens from earlier ones and check several in one pass, which changes the speed and nothing else.
    sampling: the fields of `SamplerParams`.
    InputError when the prompt is empty, longer than the context or holds ids outside the vocabulary.
    """
    sampler = Sampler(SamplerParams(**sampling), model.vocabulary.eog_ids if ignore_eos else ())
    ids = model.tokenize(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
    if not ids:
        raise InputError("the prompt is empty and this model adds no token of its own\ngive some text")
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        raise InputError(
            f"the prompt holds a token id from {min(ids)} to {max(ids)}\n"
            f"the ids of this model are 0 to {model.vocab_size - 1}"
        )
    if batch < 1:
        raise InputError(f"batch is {batch}\nuse at least 1 token")
    session = session or Session(model.context(n_ctx or None))
    if len(ids) > session.context.n_ctx:
        raise InputError(
            f"the prompt has {len(ids)} tokens and the context holds {session.context.n_ctx}\n"
            "shorten the prompt or raise the context size (-c)"
        )
    limit = session.context.n_ctx if max_tokens is None or max_tokens < 0 else max_tokens
    drafts = Drafts(ids, model.vocabulary.eog_ids) if lookup else None
    return Generation(model, ids, session, sampler, limit, StopStrings(stop), batch, drafts)


class Session:
    """A KV cache that knows which tokens it holds, so that a common beginning is computed once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.ids: list[int] = []

    def keep_common(self, ids: Sequence[int]) -> int:
        """Forget what differs from `ids`; returns how many of them are already computed.

        The last one never counts, because its logits are needed.
        """
        common = 0
        while common < min(len(self.ids), len(ids) - 1) and self.ids[common] == ids[common]:
            common += 1
        self.truncate(common)
        return common

    def truncate(self, n: int) -> None:
        """Forget everything after the first n tokens."""
        self.context.truncate(n)
        del self.ids[n:]

    def feed(
        self, ids: Sequence[int], *, logits: Literal["last", "all", "none"] = "last"
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Append ids to the cache; float32 [1, vocab] after the last, [ids, vocab] for all, [0, vocab] for none."""
        rows = self.context.forward(ids, logits=logits)
        self.ids.extend(ids)
        return rows


@dataclass
class Timings:
    """What a generation cost so far.

    A decode token is a generated token after which the logits were needed. It took a forward pass, unless it is one of
    accepted_tokens: those of drafted_tokens (of lookup) that the sampler chose. So there were decode_tokens -
    accepted_tokens passes; decode_seconds counts them in full, and the making of the drafts.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Generation(Iterator[str]):
    """A running generation: an iterator over pieces of text.

    Complete after the iteration: `text`; `ids`, the sampled tokens without an end-of-generation token;
    `finish_reason`, "stop" (end token or stop string), "length" (max_tokens or context) or "cancelled";
    `timings`; `n_prompt`, tokens of the prompt; `seed`, the one in use.
    """

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        session: Session,
        sampler: Sampler,
        limit: int,
        stop: StopStrings,
        batch: int,
        drafts: Drafts | None,
    ) -> None:
        self.n_prompt = len(prompt)
        self.seed = sampler.seed
        self.text = ""
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.timings = Timings()
        self._model, self._session, self._sampler = model, session, sampler
        self._limit, self._stop, self._batch = limit, stop, batch
        self._decoder = Decoder(session, self.timings, drafts)
        self._pieces = self._run(prompt)

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """End after the forward pass that is running; a signal handler or another thread may call it."""
        self.finish_reason = self.finish_reason or "cancelled"

    def _run(self, prompt: list[int]) -> Iterator[str]:
        stream = self._model.tokenizer.stream(prompt)
        for token in self._tokens(prompt):
            yield from self._emit(self._stop.push(stream.push(token)))
            if self._stop.found:
                break
        self._decoder.settle()
        rest = self._stop.push(stream.flush())
        if self._stop.found:
            self.finish_reason = "stop"
        yield from self._emit(rest + self._stop.flush())

    def _emit(self, piece: str) -> Iterator[str]:
        if piece:
            self.text += piece
            yield piece

    def _tokens(self, prompt: list[int]) -> Iterator[int]:
        """Sample until something ends it, and say in finish_reason what."""
        logits = self._prefill(prompt)
        self._sampler.accept(prompt)
        ends: Collection[int] = self._model.vocabulary.eog_ids
        while self.finish_reason is None and logits is not None:
            if len(self.ids) >= self._limit:
                self.finish_reason = "length"
                return
            token = self._sampler.sample(logits)
            if token in ends:
                self.finish_reason = "stop"
                return
            self._sampler.accept([token])
            self.ids.append(token)
            yield token
            if len(self.ids) >= self._limit or self.n_prompt + len(self.ids) > self._session.context.n_ctx:
                self.finish_reason = self.finish_reason or "length"
            if self.finish_reason is None:
                logits = self._decoder.after(token, room=self._limit - len(self.ids) - 1)

    def _prefill(self, prompt: list[int]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        start = time.perf_counter()
        first = self._session.keep_common(prompt)
        self.timings.prompt_tokens = len(prompt) - first
        logits = None
        for begin in range(first, len(prompt), self._batch):
            if self.finish_reason is not None:
                return None
            end = min(begin + self._batch, len(prompt))
            logits = self._session.feed(prompt[begin:end], logits="last" if end == len(prompt) else "none")
        self.timings.prompt_seconds = time.perf_counter() - start
        return None if logits is None else logits[-1]


class StopStrings:
    """Cuts a text at the first stop string to be completed, and never lets a part of one out.

    push() takes the next piece and returns what may be shown; it holds back an end that could still become
    a stop string. How the text is cut into pieces changes nothing in the whole.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise InputError("a stop string is empty\ngive at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add a piece; returns the text that is certain. After `found` there is no more."""
        if self.found:
            return ""
        self._held += piece
        hits = [(self._held.find(s) + len(s), self._held.find(s)) for s in self._stops if s in self._held]
        if hits:
            self.found = True
            certain, self._held = self._held[: min(hits)[1]], ""
            return certain
        keep = max((_overlap(self._held, s) for s in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))

"""Chooses the next token from logits: penalties, top-k, top-p, min-p, temperature, one draw."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitconv.errors import FormatError, InputError

if TYPE_CHECKING:
    F64Array = np.ndarray[Any, np.dtype[np.float64]]
    FloatArray = F64Array | np.ndarray[Any, np.dtype[np.float32]]
    IntArray = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True)
class SamplerParams:
    """The settings of one sampler; the defaults are those of llama.cpp.

    temperature 0 is greedy. top_k <= 0, top_p 1, min_p 0, repeat_penalty 1 and the other penalties 0 are off.
    repeat_last_n counts tokens, prompt included: 0 is none, -1 is all. seed -1 is a random one.
    InputError when a value is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0.0, math.inf),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repeat_penalty": (5e-324, math.inf),
            "presence_penalty": (-math.inf, math.inf),
            "frequency_penalty": (-math.inf, math.inf),
            "repeat_last_n": (-1, math.inf),
            "seed": (-1, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high or math.isinf(value):
                limits = "greater than 0" if name == "repeat_penalty" else f"from {low} to {high}"
                raise InputError(f"{name} is {value}\nuse a finite number {limits}")

    @property
    def penalises(self) -> bool:
        """Whether tokens that stand in the text have other scores than their logits."""
        return self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Sampler:
    """Draws one token after another; the same seed and logits give the same tokens.

    Every call of `sample` consumes exactly one random number, so that token i always sees the i-th one.
    `seed` is the one in use, also when a random one was asked for. `banned` ids are never chosen.
    """

    def __init__(self, params: SamplerParams, banned: Collection[int] = ()) -> None:
        self.params = params
        self._banned = np.fromiter(sorted(banned), dtype=np.intp, count=len(banned))
        self._recent: deque[int] = deque(maxlen=None if params.repeat_last_n < 0 else params.repeat_last_n)
        self.seed = params.seed
        if params.temperature > 0:
            from numpy.random import PCG64, Generator, SeedSequence  # greedy runs start without it

            if self.seed < 0:
                self.seed = int(SeedSequence().generate_state(1)[0])
            self._random = Generator(PCG64(self.seed))

    def accept(self, ids: Iterable[int]) -> None:
        """Tell the penalties which tokens stand in the text: the prompt, then each token that is kept."""
        self._recent.extend(ids)

    def sample(self, logits: np.ndarray[Any, np.dtype[np.float32]]) -> int:
        """Choose a token id.

        logits: float32 [vocab], left unchanged. FormatError when one is not finite.
        Ties go to the lowest id.
        """
        if not np.isfinite(logits).all():
            token = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise FormatError(
                f"the model computed {logits[token]} as the logit of token {token}\n"
                "the file is damaged or its weights overflow; convert it again from the checkpoint"
            )
        scores: FloatArray
        if self.params.penalises:
            scores = logits.astype(np.float64)
            penalise(scores, self._recent, self.params)
        else:
            scores = logits.copy()
        scores[self._banned] = -np.inf
        if self.params.temperature == 0:
            return int(scores.argmax())
        ids, probabilities = candidates(scores, self.params)
        cumulative = np.cumsum(probabilities)
        total = cumulative[-1]
        index = np.searchsorted(cumulative, self._random.random() * total, side="right")
        last_possible = np.searchsorted(cumulative, total, side="left")  # the product may round up to the total
        return int(ids[min(index, last_possible)])


def penalise(scores: F64Array, recent: Iterable[int], params: SamplerParams) -> None:
    """Lower, in place, the scores [vocab] of the tokens in `recent`.

    A positive score is divided by repeat_penalty, another multiplied by it; then count * frequency_penalty
    and presence_penalty are subtracted.
    """
    if not params.penalises:
        return
    counts = Counter(recent)
    if not counts:
        return
    ids = np.fromiter(counts, dtype=np.intp, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
    seen = scores[ids]
    seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    scores[ids] = seen - times * params.frequency_penalty - params.presence_penalty


def candidates(scores: FloatArray, params: SamplerParams) -> tuple[IntArray, F64Array]:
    """The tokens that may be drawn, best first, and their probabilities at the temperature.

    scores: float32 or float64 [vocab] -> ids [n], probabilities float64 [n]. The best token always stays. top-p and
    min-p judge the distribution at temperature 1 of what top-k left, as llama.cpp does.
    """
    ids = _best_first(scores, params.top_k)
    kept = scores[ids].astype(np.float64)
    if params.top_p < 1.0:
        cumulative = np.cumsum(_softmax(kept))
        kept = kept[: int(np.searchsorted(cumulative, params.top_p, side="left")) + 1]
    if params.min_p > 0.0:
        kept = kept[kept >= kept[0] + math.log(params.min_p)]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, which is meant
        return ids[: len(kept)], _softmax((kept - kept[0]) / params.temperature)


def _best_first(scores: FloatArray, top_k: int) -> IntArray:
    """The ids of the top_k highest scores (all of them when top_k <= 0), ties by id."""
    if not 0 < top_k < len(scores):
        return np.argsort(-scores, kind="stable")
    columns = 16 * top_k
    rows = len(scores) // columns
    if rows > 1:  # the maxima of columns leave few candidates, in a tenth of the time that partitioning all takes
        best = scores[: rows * columns].reshape(rows, columns).max(axis=0)
        ids = np.flatnonzero(scores >= np.partition(best, -top_k)[-top_k])
    else:
        ids = np.arange(len(scores))
    return ids[np.argsort(-scores[ids], kind="stable")][:top_k]


def _softmax(scores: F64Array) -> F64Array:
    """Probabilities [n] of scores sorted best first."""
    weights = np.exp(scores - scores[0])
    return weights / weights.sum()

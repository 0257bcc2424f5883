"""Perplexity of a model on a text, measured in chunks as llama.cpp does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitconv.errors import BitconvError, BitconvWarning, InputError

if TYPE_CHECKING:
    from bitconv.runtime.model import Context, Model

_ROWS = 64
"""Positions whose logits exist at the same time: 64 x 128256 float32 are 33 MB."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood, its standard error, and how much was scored."""

    perplexity: float
    stderr: float
    tokens: int
    chunks: int
    ctx: int


def perplexity(
    model: Model,
    text: str,
    ctx: int = 512,
    *,
    chunks: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Measure how well the model predicts a text.

    The whole text is tokenised once and cut into floor(n / ctx) chunks, each with an empty cache; where the
    model adds BOS, BOS replaces the first token of a chunk. Positions ctx//2 to ctx-2 predict the token after
    them. chunks: only the first so many. progress(done, total) counts chunks. `tokens` of the result: those
    scored.
    InputError when ctx is out of range or the text has fewer than 2 * ctx tokens.
    """
    if ctx < 4:
        raise InputError(f"the context is {ctx}\nuse at least 4 tokens, usually 512")
    if chunks is not None and chunks < 1:
        raise InputError(f"chunks is {chunks}\nuse at least 1")
    if ctx > model.n_ctx_train:
        warnings.warn(f"ctx {ctx} exceeds the model's {model.n_ctx_train}", BitconvWarning, stacklevel=2)
    ids = model.tokenize(text)
    if len(ids) < 2 * ctx:
        raise InputError(
            f"the text has {len(ids)} tokens and perplexity with -c {ctx} needs at least {2 * ctx}\n"
            "give a longer text or a smaller context"
        )
    total = min(len(ids) // ctx, chunks or len(ids) // ctx)
    bos = model.vocabulary.bos_id if model.vocabulary.add_bos else None
    context = model.context(ctx)
    losses: list[float] = []
    for index in range(total):
        chunk = ids[index * ctx : (index + 1) * ctx]
        if bos is not None:
            chunk[0] = bos
        context.truncate(0)
        losses.extend(_chunk_losses(context, chunk))
        if progress is not None:
            progress(index + 1, total)
    return _summary(np.array(losses), total, ctx)


def _chunk_losses(context: Context, chunk: Sequence[int]) -> Iterator[float]:
    """Negative log likelihood of chunk[p + 1] for each scored position p."""
    first, last = len(chunk) // 2, len(chunk) - 2
    context.forward(chunk[:first], logits="none")
    for begin in range(first, last + 1, _ROWS):
        end = min(begin + _ROWS, last + 1)
        rows = context.forward(chunk[begin:end], logits="all")
        for row, target in zip(rows, chunk[begin + 1 : end + 1], strict=True):
            yield _loss(row, target)


def _loss(logits: np.ndarray[Any, np.dtype[np.float32]], target: int) -> float:
    scores = logits.astype(np.float64)
    top = scores.max()
    return float(math.log(np.exp(scores - top).sum()) + top - scores[target])


def _summary(losses: np.ndarray[Any, np.dtype[np.float64]], chunks: int, ctx: int) -> Perplexity:
    """Standard error of the mean loss, carried through exp to first order."""
    mean = float(losses.mean())
    if not math.isfinite(mean):
        raise BitconvError(
            "the model computed logits that are not finite\nconvert it again from the checkpoint"
        )
    spread = math.sqrt(float(losses.var()) / (len(losses) - 1)) if len(losses) > 1 else math.nan
    value = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(value, spread * value, len(losses), chunks, ctx)

"""Perplexity against a short independent computation on the logits of whole chunks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import bitconv
from bitconv.errors import BitconvWarning, InputError
from bitconv.runtime.perplexity import perplexity
from tests.conftest import TINY
from tests.fake_model import BOS, FakeModel

TEXT = "The quick brown fox jumps over the lazy dog; " * 6


def plain_perplexity(model, text: str, ctx: int, bos: int | None) -> tuple[float, float, int]:
    """NumPy on model.logits: every chunk in one pass, its second half scored."""
    ids = model.tokenize(text)
    losses = []
    for start in range(0, len(ids) - ctx + 1, ctx):
        chunk = list(ids[start : start + ctx])
        if bos is not None:
            chunk[0] = bos
        logits = model.logits(chunk).astype(np.float64)
        log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        positions = np.arange(ctx // 2, ctx - 1)
        losses.append(log_z[positions] - logits[positions, np.array(chunk)[positions + 1]])
    nll = np.concatenate(losses)
    value = math.exp(nll.mean())
    return value, value * math.sqrt(nll.var() / (len(nll) - 1)), len(nll)


@pytest.mark.parametrize("ctx", [4, 7, 16, 64])
@pytest.mark.parametrize("add_bos", [True, False])
def test_equals_a_plain_numpy_computation(ctx: int, add_bos: bool) -> None:
    model = FakeModel(seed=3)
    model.vocabulary.add_bos = add_bos
    result = perplexity(model, TEXT, ctx)  # type: ignore[arg-type]
    value, stderr, tokens = plain_perplexity(model, TEXT, ctx, BOS if add_bos else None)
    # the same float64 sums in the same order up to numpy's pairwise grouping
    assert result.perplexity == pytest.approx(value, rel=1e-12)
    assert result.stderr == pytest.approx(stderr, rel=1e-9)
    assert result.tokens == tokens == result.chunks * (ctx - 1 - ctx // 2)
    assert result.chunks == len(model.tokenize(TEXT)) // ctx


def test_equals_a_plain_numpy_computation_on_the_bundled_model(tiny_gguf: Path) -> None:
    model = bitconv.load(tiny_gguf)
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")[:8000]
    result = bitconv.perplexity(model, text, 256)
    value, stderr, tokens = plain_perplexity(model, text, 256, model.vocabulary.bos_id)
    assert (result.tokens, result.chunks) == (tokens, tokens // 127)
    # logits are the same bits however they are asked for, so only the float64 sums differ
    assert result.perplexity == pytest.approx(value, rel=1e-12)
    assert result.stderr == pytest.approx(stderr, rel=1e-9)


def test_chunks_limits_the_work_and_progress_counts_it() -> None:
    seen: list[tuple[int, int]] = []
    result = perplexity(FakeModel(), TEXT, 16, chunks=3, progress=lambda *a: seen.append(a))  # type: ignore[arg-type]
    assert result.chunks == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_too_short_a_text_says_how_many_tokens_are_needed() -> None:
    with pytest.raises(InputError, match=r"31 tokens .* 32"):
        perplexity(FakeModel(), "x" * 30, 16)  # type: ignore[arg-type]
    assert perplexity(FakeModel(), "x" * 31, 16).chunks == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("ctx", "chunks"), [(3, None), (0, None), (16, 0)])
def test_impossible_sizes_are_refused(ctx: int, chunks: int | None) -> None:
    with pytest.raises(InputError):
        perplexity(FakeModel(), TEXT, ctx, chunks=chunks)  # type: ignore[arg-type]


def test_context_beyond_the_training_length_is_a_warning() -> None:
    with pytest.warns(BitconvWarning, match="100 .* 64"):
        perplexity(FakeModel(), TEXT, 100)  # type: ignore[arg-type]

"""The bundled model's perplexity is transformers' float32 figure on the same chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest

import bitconv
from tests.paths import REPOSITORY

TINY = REPOSITORY / "models" / "tiny"
CTX = 512
SCORED = CTX - 1 - CTX // 2  # positions CTX // 2 to CTX - 2
# Rounding flips move single losses both ways; over thousands of tokens they leave less than 1e-3 of the figure.
WITHIN = 1e-3

pytestmark = pytest.mark.skipif(not (TINY / "config.json").exists(), reason="models/tiny is not there")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    bitconv.convert(TINY, out, type="i2_s", embedding_type="f32")
    return out


def reference_perplexity(text: str, chunks: int) -> float:
    """exp of the mean loss by transformers in float32, chunked here from its own tokenizer's ids."""
    pytest.importorskip("transformers")
    import torch
    import transformers

    from tests.transformers_oracle import Reference

    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer(text, verbose=False).input_ids
    begins_with_bos = ids[0] == tokenizer.bos_token_id
    assert len(ids) // CTX >= chunks
    reference = Reference(TINY)
    losses = []
    for start in range(0, chunks * CTX, CTX):
        chunk = ids[start : start + CTX]
        if begins_with_bos:
            chunk[0] = tokenizer.bos_token_id
        scores = torch.from_numpy(reference.logits(chunk)).double().log_softmax(-1).numpy()
        losses.extend(-scores[p, chunk[p + 1]] for p in range(CTX // 2, CTX - 1))
    assert len(losses) == chunks * SCORED
    return math.exp(np.mean(losses))


def test_perplexity_on_twenty_thousand_scored_tokens_equals_transformers(gguf):
    chunks = -(-20_000 // SCORED)
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")
    expected = reference_perplexity(text, chunks)
    ours = bitconv.perplexity(bitconv.load(gguf, cache_type="f32"), text, CTX, chunks=chunks)
    halved = bitconv.perplexity(bitconv.load(gguf, cache_type="f16"), text, CTX, chunks=chunks)
    eighth = bitconv.perplexity(bitconv.load(gguf, cache_type="q8_0"), text, CTX, chunks=chunks)
    print(f"\n{ours.tokens} tokens scored of {chunks * CTX}: transformers {expected:.4f}, F32 cache "
          f"{ours.perplexity:.4f} ({ours.perplexity / expected - 1:+.1e}), F16 cache {halved.perplexity:.4f} "
          f"({halved.perplexity / expected - 1:+.1e}), Q8_0 cache {eighth.perplexity:.4f} "
          f"({eighth.perplexity / expected - 1:+.1e})")  # fmt: skip
    assert ours.tokens == chunks * SCORED
    assert abs(ours.perplexity / expected - 1) <= WITHIN
    # f16 keys and values carry 2^-12 relative noise, which flips more codes but favours no direction either
    assert abs(halved.perplexity / expected - 1) <= WITHIN
    # a Q8_0 cache: half a code, 1/254 of the largest of 32, which averages out over dimensions and keys
    assert abs(eighth.perplexity / expected - 1) <= WITHIN


def test_a_q8_0_cache_moves_logits_about_as_much_as_an_f16_cache(gguf):
    ids = bitconv.load(gguf).tokenize((TINY / "heldout.txt").read_text(encoding="utf-8"))[:CTX]
    f32, f16, q8_0 = (bitconv.load(gguf, cache_type=kind).logits(ids) for kind in ("f32", "f16", "q8_0"))
    halved, eighth = (float(np.sqrt(np.mean((logits - f32) ** 2)) / f32.std()) for logits in (f16, q8_0))
    print(f"\nroot mean square of the difference from an F32 cache: F16 {halved:.4f}, Q8_0 {eighth:.4f} deviations")
    # Any disturbance flips activation codes, 1/127 of a row's largest activation each, and these outweigh it: a few
    # thousandths of the deviation for either type. The rounding of Q8_0 itself is no more than one such code.
    assert 0 < eighth <= 2 * halved and eighth <= 2 / 127

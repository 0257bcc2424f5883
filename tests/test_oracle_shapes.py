"""Models of any legal shape compute what the NumPy pass computes with the same codes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bitconv
from tests.checkpoints import make_checkpoint
from tests.numpy_forward import PINNED, forward, read_network

WIDTHS = st.sampled_from([128, 256, 384, 640])


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Options of make_checkpoint: what I2_S and the family allow, nothing rounder than that."""
    family = draw(st.sampled_from(["bitnet", "bitnet_silu", "llama"]))
    forms = ["packed_bitlinear", "packed_autobitlinear", "online", "dequantised" if family == "llama" else "master"]
    hidden = draw(WIDTHS)
    if family == "llama":
        head_dim = 2 * draw(st.integers(1, 80))
        n_heads = 128 // math.gcd(head_dim, 128)  # the fewest that make o_proj's columns a multiple of 128
        if n_heads * head_dim < 512:
            n_heads *= draw(st.integers(1, 3))
    else:
        n_heads = draw(st.sampled_from([d for d in range(1, 65) if hidden % (2 * d) == 0]))
        head_dim = hidden // n_heads
    return {
        "family": family,
        "form": draw(st.sampled_from(forms)),
        "n_layers": draw(st.integers(1, 2)),
        "hidden": hidden,
        "ffn": draw(WIDTHS),
        "n_heads": n_heads,
        "n_kv_heads": draw(st.sampled_from([d for d in range(1, n_heads + 1) if n_heads % d == 0])),
        "head_dim": head_dim,
        "vocab": draw(st.integers(5, 420)),
        "dtype": draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        "shards": draw(st.integers(1, 4)),
        "tied": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([1e4, 5e5, 1000042.0])),
        "rms_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "seed": draw(st.integers(0, 1000)),
    }


def check(shape: dict[str, Any], tokens: int, isa: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder) / "model", **shape)
        gguf = Path(folder) / "model.gguf"
        bitconv.convert(checkpoint, gguf, embedding_type="f32")
        model = bitconv.load(gguf, cache_type="f32", threads=1, isa=isa)
        ids = np.random.default_rng(shape["seed"]).integers(0, shape["vocab"], tokens).tolist()
        codes = {site: pair[0] for site, pair in model.trace(ids).items()}
        theirs, activations = forward(read_network(checkpoint), ids, pinned=codes)
        logits = model.logits(ids)
    assert logits.shape == (tokens, shape["vocab"])
    assert np.abs(logits - theirs).max() <= PINNED * theirs.std()
    for site, values in activations.unrounded.items():
        assert np.abs(codes[site] - values).max() <= 0.5 + 1e-3, site


ANY = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large], "deadline": None}


@pytest.mark.filterwarnings("ignore::bitconv.errors.BitconvWarning")  # untied heads of sub-norm models
@given(shapes(), st.integers(1, 90), st.sampled_from(["scalar", None]))
@settings(max_examples=25, **ANY)
def test_any_shape(shape, tokens, isa):
    check(shape, tokens, isa)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bitconv.errors.BitconvWarning")
@given(shapes(), st.integers(1, 200), st.sampled_from(["scalar", None]))
@settings(max_examples=200, **ANY)
def test_many_shapes(shape, tokens, isa):
    check(shape, tokens, isa)

"""Logits are the same bits for every thread count, instruction set and way to cut a sequence into batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import bitconv
from bitconv import _kernels
from bitconv.runtime.model import Model
from tests.checkpoints import make_checkpoint

TOKENS = 290  # past one attention segment of 256 keys and past a block of 264 tokens of the panel GEMM

MODELS = {
    "bitnet": {"family": "bitnet", "form": "packed_autobitlinear"},
    "bitnet_silu": {"family": "bitnet_silu", "form": "master"},
    "llama": {"family": "llama", "form": "packed_bitlinear"},
}


@pytest.fixture(scope="module", params=MODELS)
def path(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    make_checkpoint(directory / "hf", **MODELS[request.param])
    bitconv.convert(directory / "hf", directory / "model.gguf")
    return directory / "model.gguf"


def sequence(model: Model, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.vocab_size, TOKENS).tolist()


def bits(logits: np.ndarray) -> bytes:
    assert logits.dtype == np.float32
    return logits.tobytes()


@pytest.fixture(scope="module", params=_kernels.CACHE_TYPES)
def reference(request, path):
    """(path, cache type, logits of one prefill on one thread with scalar kernels)."""
    model = bitconv.load(path, threads=1, isa="scalar", cache_type=request.param)
    return path, request.param, bits(model.logits(sequence(model)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _kernels.isas())
def test_threads_and_isa_do_not_change_a_bit(reference, isa, threads):
    path, cache_type, expected = reference
    model = bitconv.load(path, threads=threads, isa=isa, cache_type=cache_type)
    context = model.context(TOKENS)
    assert bits(context.forward(sequence(model), logits="all")) == expected
    assert context.team == (threads if _kernels.has_openmp() else 1)


def test_more_threads_than_shares_do_not_change_a_bit(path):
    one, many = (bitconv.load(path, threads=threads) for threads in (1, 37))
    assert bits(many.logits(sequence(many))) == bits(one.logits(sequence(one)))


def test_single_steps_give_the_bits_of_one_prefill(reference):
    path, cache_type, expected = reference
    model = bitconv.load(path, threads=2, cache_type=cache_type)
    context = model.context(TOKENS)
    steps = [context.forward([token]) for token in sequence(model)]
    assert bits(np.concatenate(steps)) == expected


@pytest.mark.parametrize("seed", range(6))
def test_random_splits_give_the_bits_of_one_prefill(reference, seed):
    path, cache_type, expected = reference
    rng = np.random.default_rng(seed)
    isas = itertools.cycle(_kernels.isas())
    model = bitconv.load(path, threads=int(rng.integers(1, 4)), isa=next(isas), cache_type=cache_type)
    ids, context, parts = sequence(model), model.context(TOKENS), []
    while context.n_past < TOKENS:
        size = int(rng.integers(1, 98))
        parts.append(context.forward(ids[context.n_past : context.n_past + size], logits="all"))
    assert bits(np.concatenate(parts)) == expected


def test_the_last_logits_are_those_of_all(reference):
    path, cache_type, expected = reference
    model = bitconv.load(path, cache_type=cache_type)
    ids = sequence(model)
    assert expected.endswith(bits(model.context(TOKENS).forward(ids)))
    context = model.context(TOKENS)
    assert context.forward(ids[:-1], logits="none").shape == (0, model.vocab_size)
    assert expected.endswith(bits(context.forward(ids[-1:])))


def test_a_truncated_cache_computes_as_a_fresh_one(reference):
    path, cache_type, expected = reference
    model = bitconv.load(path, cache_type=cache_type)
    ids, context = sequence(model), model.context(TOKENS)
    context.forward(sequence(model, seed=1))  # leaves keys of another text behind
    context.truncate(0)
    first = context.forward(ids[:70], logits="all")
    context.forward(ids[:50])
    context.truncate(70)
    assert bits(np.concatenate([first, context.forward(ids[70:], logits="all")])) == expected


def test_a_callers_floating_point_mode_does_not_leak_in(reference):
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        path, cache_type, expected = reference
        model = bitconv.load(path, threads=1, cache_type=cache_type)
        assert bits(model.logits(sequence(model))) == expected
        assert torch.tensor([1e-40]).mul(0.5).item() == 0  # the caller's mode is back
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("threads", [1, 3])  # three threads take segments of keys as tasks, one takes whole sequences
def test_sequences_that_decode_together_compute_as_alone(path, cache_type, threads):
    model = bitconv.load(path, threads=threads, cache_type=cache_type)
    cache = _kernels.Cache(model.engine, TOKENS, _kernels.CACHE_TYPES[cache_type], model.inv_freq, n_sequences=3)
    texts = np.random.default_rng(5).integers(0, model.vocab_size, (3, TOKENS)).astype(np.int32)
    together = []
    for position in range(TOKENS):
        every = np.arange(3, dtype=np.int32)
        logits, _, _, _ = cache.forward(
            np.ascontiguousarray(texts[:, position]), np.full(3, position, np.int32), every, every, threads
        )
        together.append(logits)
    for i, text in enumerate(texts):
        assert np.array_equal(np.stack(together)[:, i], model.logits(text.tolist()))

"""The sampler against a naive one, and its promises: order, ties, determinism, one random number a token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv.errors import FormatError, InputError
from bitconv.runtime.sampler import Sampler, SamplerParams, candidates, penalise

logits_lists = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40)
params_strategy = st.builds(
    SamplerParams,
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repeat_penalty=st.sampled_from([0.7, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    repeat_last_n=st.sampled_from([-1, 0, 3]),
    seed=st.integers(0, 2**63),
)


def naive_softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def naive_candidates(logits: list[float], history: list[int], p: SamplerParams) -> dict[int, float]:
    """The documented order of steps, one token at a time, in plain Python."""
    window = {-1: history, 0: []}.get(p.repeat_last_n, history[-p.repeat_last_n :])
    scores = {}
    for token, x in enumerate(logits):
        if token in window:
            x = x / p.repeat_penalty if x > 0 else x * p.repeat_penalty
            x -= window.count(token) * p.frequency_penalty + p.presence_penalty
        scores[token] = x
    left = sorted(scores, key=lambda t: (-scores[t], t))
    if p.top_k > 0:
        left = left[: p.top_k]
    if p.top_p < 1:
        total, keep = 0.0, []
        for token, probability in zip(left, naive_softmax([scores[t] for t in left]), strict=True):
            keep.append(token)
            total += probability
            if total >= p.top_p:
                break
        left = keep
    if p.min_p > 0:
        left = [t for t in left if scores[t] >= scores[left[0]] + math.log(p.min_p)]
    return dict(zip(left, naive_softmax([scores[t] / p.temperature for t in left]), strict=True))


@given(logits_lists, st.lists(st.integers(0, 39), max_size=8), params_strategy)
@settings(max_examples=300, deadline=None)
def test_candidates_equal_a_naive_sampler(logits: list[float], history: list[int], p: SamplerParams) -> None:
    history = [t for t in history if t < len(logits)]
    scores = np.array(logits, dtype=np.float64)
    window = {-1: history, 0: []}.get(p.repeat_last_n, history[-p.repeat_last_n :])
    penalise(scores, window, p)
    ids, probabilities = candidates(scores, p)
    expected = naive_candidates(logits, history, p)
    if list(ids) != list(expected):
        # the naive sum and the cumulative sum may cross top_p one token apart; nothing else may differ
        assert p.top_p < 1 and abs(len(ids) - len(expected)) <= 1
        return
    # both are float64 softmaxes of at most 40 terms: a few ulp
    assert np.allclose(probabilities, list(expected.values()), rtol=1e-12, atol=0)


@given(logits_lists, params_strategy)
@settings(max_examples=100, deadline=None)
def test_same_seed_same_tokens_and_only_candidates_are_drawn(logits: list[float], p: SamplerParams) -> None:
    array = np.array(logits, dtype=np.float32)
    draws = []
    for _ in range(2):
        sampler = Sampler(p)
        tokens = []
        for _ in range(5):
            token = sampler.sample(array)
            scores = array.astype(np.float64)
            window = {-1: tokens, 0: []}.get(p.repeat_last_n, tokens[-p.repeat_last_n :])
            penalise(scores, window, p)
            assert token in candidates(scores, p)[0]
            tokens.append(token)
            sampler.accept([token])
        draws.append(tokens)
    assert draws[0] == draws[1]


@pytest.mark.parametrize("vocab", [639, 640, 1279, 1280, 1281, 32003])
@pytest.mark.parametrize("levels", [3, 30, 10**9])  # many, some and no ties
@pytest.mark.parametrize("top_k", [1, 2, 40, 600])
def test_top_k_of_a_large_vocabulary_is_the_head_of_a_sort(vocab: int, levels: int, top_k: int) -> None:
    rng = np.random.default_rng(vocab + levels + top_k)
    scores = rng.integers(-levels, 1, vocab).astype(np.float64) / levels
    scores[rng.integers(0, vocab, vocab // 3)] = -np.inf  # banned
    params = SamplerParams(temperature=1, top_k=top_k, top_p=1, min_p=0)
    ids, _ = candidates(scores, params)
    assert ids.tolist() == sorted(range(vocab), key=lambda token: (-scores[token], token))[:top_k]


@given(logits_lists)
@settings(max_examples=100, deadline=None)
def test_greedy_is_the_lowest_id_of_the_maximum(logits: list[float]) -> None:
    array = np.array(logits, dtype=np.float32)
    assert Sampler(SamplerParams(temperature=0)).sample(array) == logits.index(max(logits))


def test_token_i_consumes_the_ith_random_number() -> None:
    """A step with a single candidate must not shift the later draws: speculative decoding relies on it."""
    flat, peaked = np.zeros(50, np.float32), np.zeros(50, np.float32)
    peaked[7] = 90
    params = SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=5)
    one, two = Sampler(params), Sampler(params)
    first = [one.sample(x) for x in (flat, flat, flat)]
    second = [two.sample(x) for x in (flat, peaked, flat)]
    assert second == [first[0], 7, first[2]]


def test_draws_follow_the_probabilities() -> None:
    params = SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)
    sampler = Sampler(params)
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=3)
    # five standard deviations of a binomial with 4000 draws: 5 * sqrt(4000 * 0.5 * 0.5) = 158
    assert np.abs(counts - [2000, 1200, 800]).max() < 158


def test_penalties_count_the_prompt_and_apply_to_greedy() -> None:
    logits = np.array([2.0, 1.9, -1.0], dtype=np.float32)
    sampler = Sampler(SamplerParams(temperature=0, repeat_penalty=1.5))
    sampler.accept([0])
    assert sampler.sample(logits) == 1


def test_banned_tokens_are_never_chosen() -> None:
    logits = np.array([50.0, 1.0, 0.0], dtype=np.float32)
    assert Sampler(SamplerParams(temperature=0), banned={0}).sample(logits) == 1
    sampler = Sampler(SamplerParams(temperature=5, top_k=0, top_p=1, min_p=0, seed=3), banned={0})
    assert {sampler.sample(logits) for _ in range(200)} == {1, 2}


def test_random_seed_is_reported_and_reproduces() -> None:
    logits = np.zeros(1000, np.float32)
    params = SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0)
    sampler = Sampler(params)
    tokens = [sampler.sample(logits) for _ in range(8)]
    again = Sampler(SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=sampler.seed))
    assert [again.sample(logits) for _ in range(8)] == tokens
    assert Sampler(params).seed != sampler.seed


def test_tiny_temperature_is_greedy_not_nan() -> None:
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    assert Sampler(SamplerParams(temperature=1e-300, seed=0)).sample(logits) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logit_names_the_token(bad: float) -> None:
    logits = np.zeros(9, np.float32)
    logits[4] = bad
    with pytest.raises(FormatError, match="token 4"):
        Sampler(SamplerParams(temperature=0)).sample(logits)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repeat_penalty": 0.0},
        {"repeat_last_n": -2},
        {"seed": -2},
        {"presence_penalty": math.nan},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        SamplerParams(**bad)  # type: ignore[arg-type]

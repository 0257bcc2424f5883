"""Generation: reasons to stop, stop strings, UTF-8, cancelling, and the reuse of a KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import InputError
from bitconv.runtime.generate import Session, StopStrings, generate
from tests.fake_model import BOS, FakeModel, scripted


def start(model: FakeModel, prompt: Any = "ab", **options: Any):  # the real Model is a larger type
    options.setdefault("temperature", 0)
    return generate(model, prompt, **options)  # type: ignore[arg-type]


def naive_stop(text: str, stops: list[str]) -> str:
    """Read one character at a time and look back: the first stop string to be complete ends the text."""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_stop_strings_cut_the_same_place_however_the_text_arrives(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopStrings(stops)
    shown = ""
    expected = naive_stop("".join(pieces), stops)
    for piece in pieces:
        shown += matcher.push(piece)
        assert expected.startswith(shown), "a part of a stop string was shown"
    assert shown + matcher.flush() == expected


def test_end_token_stops_and_is_not_part_of_the_result() -> None:
    generation = start(scripted("hello"))
    assert list(generation) == list("hello")
    assert generation.text == "hello"
    assert bytes(generation.ids) == b"hello"
    assert generation.finish_reason == "stop"
    assert generation.n_prompt == 3
    assert (generation.timings.prompt_tokens, generation.timings.decode_tokens) == (3, 5)


def test_max_tokens_ends_with_length_and_costs_no_extra_pass() -> None:
    model = scripted("hello")
    generation = start(model, max_tokens=2)
    assert "".join(generation) == "he"
    assert generation.finish_reason == "length"
    assert model.contexts[0].passes == [3, 1]


def test_zero_tokens_computes_the_prompt_only() -> None:
    generation = start(scripted("hello"), max_tokens=0)
    assert list(generation) == []
    assert generation.finish_reason == "length"


def test_reaching_the_context_ends_with_length() -> None:
    generation = start(scripted("x" * 99), n_ctx=10, max_tokens=-1)
    assert len(list(generation)) == 8  # 3 + 7 fill the context, and one more follows from its last position
    assert generation.finish_reason == "length"


def test_prompt_as_long_as_the_context_still_gives_one_token() -> None:
    generation = start(scripted("xyz"), n_ctx=3)
    assert "".join(generation) == "x"
    assert generation.finish_reason == "length"


def test_prompt_longer_than_the_context_names_both_numbers() -> None:
    with pytest.raises(InputError, match=r"12 tokens .* 10"):
        start(FakeModel(), "x" * 11, n_ctx=10)


def test_stop_string_is_cut_off_and_not_half_shown() -> None:
    generation = start(scripted("one\nUser: two"), stop=["\nUser:", "zzz"])
    pieces = list(generation)
    assert "".join(pieces) == "one" == generation.text
    assert generation.finish_reason == "stop"


def test_held_back_text_appears_when_the_end_comes_first() -> None:
    generation = start(scripted("one\nUse"), stop=["\nUser:"])
    assert "".join(generation) == "one\nUse"


def test_pieces_are_whole_characters() -> None:
    generation = start(scripted("é€😀"))
    assert list(generation) == ["é", "€", "😀"]


def test_cut_character_at_the_limit_becomes_a_replacement() -> None:
    generation = start(scripted("a😀"), max_tokens=3)
    assert "".join(generation) == "a\ufffd"


def test_ignore_eos_goes_on() -> None:
    generation = start(scripted("hi"), ignore_eos=True, max_tokens=5)
    assert len(list(generation)) >= 2
    assert len(generation.ids) == 5
    assert 0 not in generation.ids
    assert generation.finish_reason == "length"


def test_cancel_between_tokens_and_between_prefill_passes() -> None:
    generation = start(scripted("hello"))
    assert next(generation) == "h"
    generation.cancel()
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    before = start(scripted("hello"))
    before.cancel()
    assert list(before) == []
    assert before.ids == []


@pytest.mark.parametrize("batch", [1, 2, 3, 50])
def test_prefill_batches_change_nothing(batch: int) -> None:
    model = FakeModel(seed=4)
    generation = start(model, "some prompt", batch=batch, max_tokens=9, temperature=1.0, seed=7)
    text = "".join(generation)
    assert max(model.contexts[0].passes) <= max(batch, 1)
    assert text == "".join(start(FakeModel(seed=4), "some prompt", max_tokens=9, temperature=1.0, seed=7))


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_session_gives_what_a_fresh_cache_gives(prompts: list[str]) -> None:
    model = FakeModel(seed=2)
    session = Session(model.context(64))  # type: ignore[arg-type]
    for prompt in prompts:
        shared = start(model, prompt, session=session, max_tokens=4)
        fresh = start(FakeModel(seed=2), prompt, max_tokens=4)
        assert list(shared) == list(fresh)
        assert session.ids == session.context.ids  # type: ignore[attr-defined]


def test_a_session_computes_only_what_is_new() -> None:
    model = FakeModel(seed=2)
    session = Session(model.context(64))  # type: ignore[arg-type]
    list(start(model, "abc", session=session, max_tokens=0))
    again = start(model, "abcde", session=session, max_tokens=0)
    list(again)
    assert again.timings.prompt_tokens == 2
    same = start(model, "abcde", session=session, max_tokens=1)
    list(same)
    assert same.timings.prompt_tokens == 1  # the last token is computed again, for its logits


def test_random_seed_is_reported() -> None:
    first = start(FakeModel(), temperature=2.0, max_tokens=8)
    text = "".join(first)
    assert text == "".join(start(FakeModel(), temperature=2.0, max_tokens=8, seed=first.seed))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "empty"),
        ([5, 256], {}, "0 to 255"),
        ([-1], {}, "0 to 255"),
        ("a", {"batch": 0}, "batch"),
        ("a", {"stop": [""]}, "stop string"),
        ("a", {"top_p": 2}, "top_p"),
    ],
)
def test_wrong_arguments_are_named(prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(FakeModel(), prompt, **options)


def test_ids_are_taken_as_they_are() -> None:
    model = scripted("ok", prompt="a")
    generation = start(model, [BOS, 97])
    assert "".join(generation) == "ok"


PROMPT = "Return a new list of the items in the iterable"


def test_greedy_text_of_the_bundled_model_is_the_argmax_of_its_logits(tiny_gguf: Path) -> None:
    model = bitconv.load(tiny_gguf)
    generation = model.generate(PROMPT, max_tokens=24, temperature=0, ignore_eos=True)
    pieces = list(generation)
    ids = model.tokenize(PROMPT)
    expected: list[int] = []
    banned = list(model.vocabulary.eog_ids)
    for _ in range(24):
        row = model.logits([*ids, *expected])[-1].copy()
        row[banned] = -np.inf
        expected.append(int(row.argmax()))
    assert generation.ids == expected
    assert "".join(pieces) == generation.text == model.detokenize(expected)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 3}, {"n_ctx": 40}])
def test_sampled_text_of_the_bundled_model_depends_on_the_seed_alone(
    tiny_gguf: Path, options: dict[str, int]
) -> None:
    plain = bitconv.load(tiny_gguf).generate(PROMPT, max_tokens=16, seed=11)
    other = bitconv.load(tiny_gguf, threads=1).generate(PROMPT, max_tokens=16, seed=11, **options)
    assert list(plain) == list(other)


def test_a_session_of_the_bundled_model_gives_what_a_fresh_cache_gives(tiny_gguf: Path) -> None:
    model = bitconv.load(tiny_gguf)
    session = Session(model.context(128))
    for prompt in (PROMPT, PROMPT + " and raise", PROMPT[:20], "Something else"):
        shared = generate(model, prompt, session=session, max_tokens=8, temperature=0)
        fresh = generate(model, prompt, max_tokens=8, temperature=0)
        assert list(shared) == list(fresh)
        assert session.context.n_past == len(session.ids)

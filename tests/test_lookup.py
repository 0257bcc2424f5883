"""Prompt lookup: the output is the one without it, to the token, and forward passes are fewer where text repeats."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import FormatError
from bitconv.runtime.generate import Generation, Session, generate
from bitconv.runtime.lookup import DRAFTS, Drafts
from tests.fake_model import EOG, FakeContext, scripted


def start(model: Any, prompt: Any = "ab", **options: Any) -> Generation:
    return generate(model, prompt, **{"temperature": 0, "lookup": True, **options})


def outcome(generation: Generation) -> tuple[list[str], list[int], str | None]:
    """Everything that may not depend on lookup; the pieces, because a reader sees their boundaries too."""
    return list(generation), generation.ids, generation.finish_reason


def same_with_and_without(model: Any, prompt: Any, n_ctx: int, **options: Any) -> Generation:
    """Run twice, compare, and return the run with lookup."""
    sessions = [Session(model.context(n_ctx)) for _ in range(2)]
    plain, guessed = (
        generate(model, prompt, session=session, lookup=lookup, **options)
        for session, lookup in zip(sessions, (False, True), strict=True)
    )
    assert outcome(guessed) == outcome(plain)
    assert sessions[1].ids == sessions[0].ids
    assert [s.context.n_past for s in sessions] == [len(s.ids) for s in sessions]
    assert guessed.timings.decode_tokens == plain.timings.decode_tokens
    assert plain.timings.drafted_tokens == plain.timings.accepted_tokens == 0
    assert guessed.timings.accepted_tokens <= guessed.timings.drafted_tokens
    return guessed


# Drafts

SHORT, LONG = (length for _, length in DRAFTS)
FEW, MANY = (agree for agree, _ in DRAFTS)


def agreement(ids: list[int], at: int) -> int:
    """How many tokens before position `at` agree with the end of ids."""
    return next((n for n in range(at) if ids[at - 1 - n] != ids[-1 - n]), at)


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_a_draft_is_what_followed_an_earlier_place_that_agrees(ids: list[int], split: int) -> None:
    drafts = Drafts(ids[:split], ends=())
    for token in ids[split:]:
        drafts.append(token)
    draft = drafts.draft(99)
    assert len(draft) in (0, SHORT, LONG)
    places = [at for at in range(len(ids)) if agreement(ids, at) >= (FEW if len(draft) < LONG else MANY)]
    continued = [[*ids[at:], *draft][: len(draft)] for at in places]  # one that reaches the end copies itself
    assert not draft or draft in continued


def test_the_last_of_several_places_is_taken() -> None:
    assert Drafts([1, 2, 3, 4, 5, 5, 1, 2, 3, 4, 6, 6, 1, 2, 3, 4], ends=()).draft(99) == [6, 6]


def test_a_draft_may_copy_itself() -> None:
    assert Drafts([7, *[1, 2, 3] * 9], ends=()).draft(99) == ([1, 2, 3] * 4)[:LONG]


def test_too_few_tokens_that_agree_give_no_draft() -> None:
    assert Drafts([1, 2, 3, 5, 5, 1, 2, 3], ends=()).draft(99) == []
    assert Drafts([], ends=()).draft(99) == []


@pytest.mark.parametrize("room", range(-1, 14))
def test_a_draft_fits_the_room_and_is_never_of_a_length_that_loses(room: int) -> None:
    draft = Drafts([1, 2] * MANY, ends=()).draft(room)
    assert len(draft) == (LONG if room >= LONG else SHORT if room >= SHORT else 0)


def test_a_draft_ends_before_an_end_token() -> None:
    def draft(*repeated: int) -> list[int]:
        long = list(range(10, 10 + MANY))
        return Drafts([*long, *repeated, *range(50, 70), *long], ends={EOG}).draft(99)

    assert draft(1, 2, 3, EOG) == [1, 2]
    assert draft(1, 2, EOG) == [1, 2]
    assert draft(1, EOG) == []
    assert draft(EOG) == []
    assert len(draft(*[1] * LONG, EOG)) == LONG


def test_drafts_grow_while_they_are_right_and_begin_anew_after_a_wrong_one() -> None:
    text = [*range(MANY + LONG)]
    drafts, lengths = Drafts([*text, 99], ends=()), []
    for token in text[: MANY + 1]:
        drafts.append(token)
        lengths.append(len(drafts.draft(99)))
    assert lengths == [0] * (FEW - 1) + [SHORT] * (MANY - FEW) + [LONG] * 2
    drafts.append(98)
    assert drafts.draft(99) == []


# Forward passes, on a model that says what it is told


def test_repetitive_text_takes_fewer_passes() -> None:
    text = "the cat sat. " * 8
    model = scripted(text)
    generation = same_with_and_without(model, "ab", 256, temperature=0)
    assert generation.text == text
    plain, guessed = (len(context.passes) for context in model.contexts)
    assert plain == 1 + len(text)
    assert guessed < 1 + len(text) / 3
    timings = generation.timings
    assert guessed == 1 + timings.decode_tokens - timings.accepted_tokens
    assert set(model.contexts[1].passes[1:]) == {1, 1 + SHORT, 1 + LONG}
    assert sum(model.contexts[1].passes[1:]) == len(text) - timings.accepted_tokens + timings.drafted_tokens


@pytest.mark.parametrize("count", range(1, 60))
def test_no_pass_computes_what_max_tokens_forbids(count: int) -> None:
    model = scripted("xyz" * 20)  # every draft is right, so no token is computed twice
    assert same_with_and_without(model, "ab", 256, temperature=0, max_tokens=count).finish_reason == "length"
    assert sum(model.contexts[1].passes) == 3 + count - 1


def test_text_that_never_repeats_is_never_guessed() -> None:
    model = scripted("cdefghijklmnopqrstuvwxyz")
    generation = same_with_and_without(model, "ab", 64, temperature=0)
    assert generation.timings.drafted_tokens == 0
    assert model.contexts[0].passes == model.contexts[1].passes


def test_drafts_that_are_always_wrong_change_nothing() -> None:
    text = "".join(f"same{chr(i)}" for i in range(ord("A"), ord("A") + 30))  # what follows is always new
    model = scripted(text)
    generation = same_with_and_without(model, "ab", 256, temperature=0)
    assert generation.text == text
    assert generation.timings.accepted_tokens == 0
    assert generation.timings.drafted_tokens == SHORT * 29
    assert len(model.contexts[0].passes) == len(model.contexts[1].passes)


def test_a_draft_that_overflows_is_no_error_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FakeContext, ids: Sequence[int], **options: Any) -> np.ndarray:
        if bytes([*self.ids, *ids]).count(b"same!?") > 1:  # the draft says it again, the text does not
            failures.append(len(ids))
            raise FormatError("overflow")
        return original(self, ids, **options)

    failures: list[int] = []
    original = FakeContext.forward
    monkeypatch.setattr(FakeContext, "forward", forward)
    generation = start(scripted("same.", "same!? "), "same!? ")
    assert "".join(generation) == "same."
    assert failures == [1 + SHORT]


def test_an_overflow_of_the_text_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FakeContext, ids: Sequence[int], **options: Any) -> np.ndarray:
        if len(self.ids) + len(ids) > 20:
            raise FormatError("overflow")
        return original(self, ids, **options)

    original = FakeContext.forward
    monkeypatch.setattr(FakeContext, "forward", forward)
    generation = start(scripted("xyz" * 9))
    with pytest.raises(FormatError):
        list(generation)
    assert generation.timings.accepted_tokens > 0
    assert generation.text == ("xyz" * 9)[:18]  # 3 tokens of prompt, 17 of text, and one that their logits chose


# The output, whatever the settings


sampling = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.05, 0.8, 2.0]),
        "top_k": st.sampled_from([0, 1, 5, 40]),
        "top_p": st.sampled_from([0.3, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "repeat_penalty": st.sampled_from([0.8, 1.0, 1.3]),
        "repeat_last_n": st.sampled_from([-1, 0, 4, 64]),
        "presence_penalty": st.sampled_from([-0.5, 0.0, 0.5]),
        "frequency_penalty": st.sampled_from([-0.2, 0.0, 0.2]),
        "seed": st.integers(0, 2**32),
    }
)
limits = st.fixed_dictionaries(
    {
        "max_tokens": st.one_of(st.just(-1), st.integers(0, 60)),
        "ignore_eos": st.booleans(),
        "batch": st.sampled_from([1, 3, 256]),
    }
)


@given(
    st.text("abc \n", max_size=12),
    st.text("abc \n", min_size=1, max_size=60),
    st.integers(1, 4),
    limits,
    st.lists(st.text("abc ", min_size=1, max_size=4), max_size=2),
    st.integers(0, 40),
)
@settings(max_examples=300, deadline=None)
def test_scripted_text_with_any_limits(
    prompt: str, text: str, times: int, options: dict[str, Any], stops: list[str], room: int
) -> None:
    model = scripted(text * times, prompt)
    same_with_and_without(model, prompt, len(prompt) + 1 + room, stop=stops, temperature=0, **options)


@functools.cache
def tiny(path: Path) -> bitconv.runtime.model.Model:
    return bitconv.load(path, threads=1)


PHRASES = (
    "Return a list of the items. ",
    "def area(width, height):\n    return width * height\n\n",
    "the name of the file and the name of the path, ",
    "1, 2, 3, 4, ",
    "naïve café 😀 ",
)


@given(
    st.lists(st.sampled_from(PHRASES), min_size=1, max_size=4),
    st.integers(0, 12),
    sampling,
    limits,
    st.lists(st.sampled_from([" the", "\n\n", "re", "e "]), max_size=2),
    st.integers(0, 80),
)
@settings(max_examples=60, deadline=None)
def test_the_bundled_model_with_any_sampler_and_any_limits(
    tiny_gguf: Path,
    phrases: list[str],
    cut: int,
    sampler: dict[str, Any],
    limit: dict[str, Any],
    stops: list[str],
    room: int,
) -> None:
    model = tiny(tiny_gguf)
    ids = model.tokenize("".join(phrases))
    ids = ids[: max(1, len(ids) - cut)]
    same_with_and_without(model, ids, len(ids) + room, stop=stops, **sampler, **limit)


@pytest.mark.parametrize(("temperature", "penalty"), [(0, 1.0), (0, 1.05), (0.4, 1.0), (0.4, 1.05)])
def test_drafts_of_the_bundled_model_are_accepted(tiny_gguf: Path, temperature: float, penalty: float) -> None:
    """Guards the property test above: it would say nothing if no draft were ever right."""
    options = {"temperature": temperature, "repeat_penalty": penalty, "seed": 3, "max_tokens": 60, "ignore_eos": True}
    generation = same_with_and_without(tiny(tiny_gguf), "1, 2, 3, 4, 1, 2, 3, 4, ", 256, **options)
    timings = generation.timings
    assert 0 < timings.accepted_tokens <= timings.drafted_tokens
    assert timings.accepted_tokens < timings.drafted_tokens or temperature == 0


# Ends, and the session that they leave


def test_end_token_within_what_was_guessed() -> None:
    prompt = "ab" + "one two " * 2
    for text in ("one two o", "one two one", "one two one t"):
        generation = same_with_and_without(scripted(text, prompt), prompt, 64, temperature=0)
        assert (generation.text, generation.finish_reason) == (text, "stop")
        assert generation.timings.accepted_tokens > 0


@pytest.mark.parametrize("after", range(1, 14))
def test_cancelling_ends_after_the_same_token(after: int) -> None:
    def take(lookup: bool) -> tuple[list[str], list[int], list[int]]:
        session = Session(model.context(64))  # type: ignore[arg-type]
        generation = start(model, session=session, lookup=lookup)
        pieces = [next(generation) for _ in range(after)]
        generation.cancel()
        pieces += list(generation)
        assert generation.finish_reason == "cancelled"
        assert session.ids == session.context.ids  # type: ignore[attr-defined]
        return pieces, generation.ids, session.ids

    model = scripted("la " * 8)
    assert take(lookup=True) == take(lookup=False)


@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_session_is_whole_after_a_generation_that_nobody_finished(prompts: list[str], taken: int) -> None:
    model = scripted("ab" * 12, "a")
    session = Session(model.context(64))  # type: ignore[arg-type]
    unfinished: list[Iterator[str]] = []
    for prompt in prompts:
        generation = start(model, prompt, session=session, max_tokens=20)
        unfinished.append(generation)
        for _ in range(taken):
            next(generation, None)
        assert session.ids == session.context.ids  # type: ignore[attr-defined]
    complete = start(model, prompts[0], session=session, max_tokens=20)
    fresh = start(model, prompts[0], lookup=False, max_tokens=20)
    assert outcome(complete) == outcome(fresh)


def test_a_conversation_in_one_session_of_the_bundled_model(tiny_gguf: Path) -> None:
    model = tiny(tiny_gguf)
    replies: dict[bool, list[Any]] = {False: [], True: []}
    accepted = 0
    for lookup, seen in replies.items():
        session, text = Session(model.context(400)), ""
        for message in ("the name of the file, the name of the path, the name", "Again: the name of the file"):
            text += f"<user>{message}\n<assistant>"
            generation = generate(model, text, session=session, lookup=lookup, max_tokens=40, temperature=0, stop=["<"])
            seen.append((outcome(generation), generation.timings.prompt_tokens, list(session.ids)))
            assert session.context.n_past == len(session.ids)
            text += generation.text + "\n"
            accepted += generation.timings.accepted_tokens
    assert replies[True] == replies[False]
    assert accepted > 0

"""The native string functions against their naive twins, and strings that are made to be slow."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv import _text

LETTERS = st.text("abcé\u2581", max_size=6)


def stored(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


@given(texts=st.lists(st.binary(max_size=20), max_size=20), before=st.binary(max_size=9), after=st.binary(max_size=9))
@settings(deadline=None)
def test_strings_are_found_where_they_lie(texts, before, after):
    data = before + stored(texts) + after
    starts, stop = _text.walk_strings(data, len(before), len(texts))
    assert stop == len(data) - len(after)
    assert [data[a : b - 8] for a, b in zip(starts[:-1], starts[1:], strict=True)] == texts


@given(texts=st.lists(st.binary(max_size=20), min_size=1, max_size=9), data=st.data())
@settings(deadline=None)
def test_a_string_beyond_the_end_is_named(texts, data):
    whole = stored(texts)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    ends = np.cumsum([len(text) + 8 for text in texts])
    with pytest.raises(ValueError) as caught:
        _text.walk_strings(cut, 0, len(texts))
    assert caught.value.args[0] == np.searchsorted(ends, len(cut), side="right")


@pytest.mark.parametrize("length", [1, 2**31, 2**63 - 9, 2**63, 2**64 - 1])
@pytest.mark.parametrize("count", [1, 2, 2**62, 2**63 - 1])
def test_no_length_and_no_count_overflows(length, count):
    with pytest.raises(ValueError):
        _text.walk_strings(struct.pack("<Q", length), 0, count)


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=20), data=st.data())
@settings(deadline=None)
def test_strings_are_decoded(texts, data):
    laid, starts = _text.as_strings(texts)
    first = data.draw(st.integers(0, len(texts)))
    last = data.draw(st.integers(first, len(texts)))
    assert _text.decode_strings(laid, starts, first, last) == texts[first:last]
    again, _ = _text.walk_strings(stored([text.encode() for text in texts]), 0, len(texts))
    assert again.tolist() == starts.tolist()
    for wrong in ((last, len(texts) + 1), (-1, last), (last + 1, last)):
        with pytest.raises(IndexError):
            _text.decode_strings(laid, starts, *wrong)


def test_bytes_that_are_no_utf_8_are_told():
    with pytest.raises(UnicodeDecodeError):
        _text.decode_strings(stored([b"a", b"\xff"]), np.array([8, 17, 26]), 0, 2)


def naive_encode(word: str, tokens: list[str], usable: list[int], merges: list[str]) -> list[int]:
    """Merge the first pair of the best rank, until no pair has one."""
    ids = {token: i for i, token in enumerate(tokens) if usable[i]}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    pieces = [letter for letter in word if letter in ids]
    while True:
        ranked = [(ranks[pair], i) for i, pair in enumerate(zip(pieces, pieces[1:], strict=False)) if pair in ranks]
        if not ranked:
            return [ids[piece] for piece in pieces]
        _, i = min(ranked)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@given(data=st.data(), words=st.lists(st.text("abcé\u2581 x", max_size=40), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_merging_equals_its_naive_twin(data, words):
    tokens = data.draw(st.lists(LETTERS, min_size=1, max_size=30))
    usable = data.draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))
    known = {token for token, can in zip(tokens, usable, strict=True) if can and token}
    pairs = [f"{a} {b}" for a in sorted(known) for b in sorted(known) if a + b in known]
    merges = data.draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []
    bpe = _text.Bpe(_text.as_strings(tokens), np.array(usable, np.uint8), _text.as_strings(merges))
    for word in words:
        assert bpe.encode(word) == naive_encode(word, tokens, usable, merges)
        last = max((i for i, token in enumerate(tokens) if usable[i] and token == word), default=-1)
        assert bpe.token(word) == last


@pytest.mark.parametrize("merge", ["a", "", " ", "a  b", "a c", "c a", "b a", "a b a", "a" * 300 + " " + "b" * 300])
def test_a_merge_that_is_none_is_named(merge):
    tokens = _text.as_strings(["a", "b", "ab"])
    with pytest.raises(ValueError) as caught:
        _text.Bpe(tokens, np.ones(3, np.uint8), _text.as_strings(["a b", merge]))
    assert caught.value.args[0] == 1


def test_long_tokens_merge():
    left, right = "a" * 300, "b" * 300
    tokens = ["a", "b", left, right, left + right, *("a" * 2**i for i in range(1, 9)), "a" * 44, "b" * 299]
    merges = [f"{left} {right}"]
    bpe = _text.Bpe(_text.as_strings(tokens), np.ones(len(tokens), np.uint8), _text.as_strings(merges))
    assert bpe.token(left + right) == 4


def test_a_long_word_takes_time_in_proportion():
    """Four million letters: with a scan for each merge this would not end."""
    tokens = ["a", *("a" * 2**i for i in range(1, 20))]
    merges = [f"{token} {token}" for token in tokens[:-1]]
    bpe = _text.Bpe(_text.as_strings(tokens), np.ones(len(tokens), np.uint8), _text.as_strings(merges))
    assert bpe.encode("a" * 2**22) == [19] * 8


def _slot(text: bytes, mask: int) -> int:
    """The hash of _text.pyx."""
    h = 0x9E3779B97F4A7C15 ^ len(text)
    for byte in text:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return (h ^ h >> 32) & mask


def test_tokens_made_to_meet_in_one_place_are_refused():
    meeting, size = [], 1024
    for i in range(10**6):
        text = f"{i}"
        if _slot(text.encode(), size - 1) == 7:
            meeting.append(text)
        if len(meeting) == 300:
            break
    assert len(meeting) == 300
    with pytest.raises(OverflowError):
        _text.Bpe(_text.as_strings(meeting), np.ones(300, np.uint8), _text.as_strings([]))


def test_strings_outside_their_data_are_refused():
    good = _text.as_strings(["a"])
    for starts in ([8, 99], [-9, 10], [9, 8], [0, 9]):
        with pytest.raises(TypeError):
            _text.Bpe((good[0], np.array(starts)), np.ones(1, np.uint8), _text.as_strings([]))
    with pytest.raises(TypeError):
        _text.Bpe(good, np.ones(2, np.uint8), _text.as_strings([]))

"""Text to ids and back: round trips, special tokens, streams, and what a tokenizer.json may do."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv.errors import BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats.pretokenizers import pre_tokenizer_names
from bitconv.formats.spm_model import read_spm_model
from bitconv.formats.vocabulary import TokenType, Vocabulary
from bitconv.runtime.spm import SentencePieceEncoder
from bitconv.runtime.tokenizer import Tokenizer
from tests.tokenizer_fixtures import (
    byte_level_json,
    sentencepiece_json,
    small_bpe,
    special,
    spm_processor,
    trained_spm,
)

SPECIAL = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED}
TEXT = st.text(max_size=60) | st.lists(
    st.sampled_from(["<s>", "</s>", "<tool>", " ", "  ", "\n", "the", "é", "🦙", "def ", "▁", "<0x41>", "\x00"])
).map("".join)


@cache
def bpe(pre: str = "gpt-2") -> Vocabulary:
    vocab, merges = small_bpe()
    tokens = [*sorted(vocab, key=vocab.__getitem__), *SPECIAL]
    types = np.array([1] * len(vocab) + list(SPECIAL.values()), np.int32)
    bos = len(vocab)
    return Vocabulary(
        model="gpt2", pre=pre, tokens=tokens, types=types, merges=[" ".join(pair) for pair in merges],
        bos_id=bos, eos_id=bos + 1, eog_ids=frozenset({bos + 1}), add_bos=True,
    )  # fmt: skip


@cache
def bpe_with_json() -> Vocabulary:
    vocab, merges = small_bpe()
    added = [special(text, kind == TokenType.CONTROL) for text, kind in SPECIAL.items()]
    return replace(bpe(), huggingface_json=byte_level_json(vocab, merges, None, added, bos="<s>"))


@cache
def spm(**options: Any) -> Vocabulary:
    table = read_spm_model(trained_spm(**options), "test")
    tokens, types, scores = table.padded(len(table.texts))
    return Vocabulary(
        model="llama", pre="default", tokens=tokens, types=types, scores=scores, bos_id=1, eos_id=2, unk_id=0,
        add_bos=True, add_space_prefix=table.add_space_prefix,
    )  # fmt: skip


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    made = {"bpe": bpe, "json": bpe_with_json, "spm": spm}
    return Tokenizer(bpe(kind) if kind in pre_tokenizer_names() else made[kind]())


KINDS = ("bpe", "json", "spm")


@pytest.mark.parametrize("pre", [name for name in pre_tokenizer_names() if not name.startswith("falcon")])
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_byte_level_round_trip(pre: str, text: str) -> None:
    tokenizer = tokenizer_of(pre)
    ids = tokenizer.encode(text, add_special=False)
    assert tokenizer.decode(ids, skip_special=False) == text
    plain = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(plain) == text


@pytest.mark.parametrize("kind", ["bpe", "json"])
@given(text=TEXT.filter(lambda text: not text.startswith("<s>")))
@settings(max_examples=100, deadline=None)
def test_detokenize_undoes_encode(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.detokenize(tokenizer.encode(text)) == text
    plain = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.detokenize(plain) == text


def test_detokenize_takes_away_what_encode_adds() -> None:
    tokenizer = Tokenizer(replace(bpe(), add_eos=True))
    assert tokenizer.detokenize(tokenizer.encode("the")) == "the"
    assert tokenizer.detokenize(tokenizer.encode("</s>the")) == "</s>the"
    assert tokenizer_of("spm").detokenize(tokenizer_of("spm").encode("the</s> x")) == "the</s>  x"


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_a_rebuilt_tokenizer_equals_its_tokenizer_json(text: str) -> None:
    for parse_special in (True, False):
        ids = tokenizer_of("bpe").encode(text, parse_special=parse_special)
        assert ids == tokenizer_of("json").encode(text, parse_special=parse_special)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_stream_gives_what_decode_gives(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)


def test_a_stream_never_gives_half_a_character() -> None:
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in tokenizer.encode("🦙é", add_special=False)]
        assert "".join(pieces) == "🦙é"
        assert "\ufffd" not in "".join(pieces)
        assert stream.flush() == ""


def test_a_cut_character_ends_a_stream_as_a_replacement() -> None:
    tokenizer = tokenizer_of("bpe")
    ids = tokenizer.encode("a🦙", add_special=False, parse_special=False)[:-1]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["a", *[""] * (len(ids) - 1)]
    assert stream.flush() == "\ufffd"


def test_a_stream_after_a_prompt_keeps_the_space_between_them() -> None:
    tokenizer = tokenizer_of("spm")
    prompt, answer = tokenizer.encode("the"), tokenizer.encode("import", add_special=False)
    stream = tokenizer.stream(after=prompt)
    assert "".join(stream.push(i) for i in answer) == " import"
    fresh = tokenizer.stream(after=prompt[:1])  # only BOS: the text begins with what follows
    assert "".join(fresh.push(i) for i in answer) == "import"


@pytest.mark.parametrize("kind", KINDS)
def test_bos_is_added_once(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    bos = tokenizer.vocabulary.bos_id
    plain = tokenizer.encode("the", add_special=False)
    assert tokenizer.encode("the") == [bos, *plain]
    assert tokenizer.encode("<s>the") == [bos, *plain]
    assert tokenizer.encode("") == [bos]
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.encode("<s>the", parse_special=False)[0] == bos
    assert tokenizer.encode("<s>the", parse_special=False)[1:].count(bos) == 0


def test_eos_is_added_once_where_the_vocabulary_says_so() -> None:
    tokenizer = Tokenizer(replace(bpe(), add_eos=True, add_bos=False))
    eos = tokenizer.vocabulary.eos_id
    plain = tokenizer.encode("the", add_special=False)
    assert tokenizer.encode("the") == [*plain, eos]
    assert tokenizer.encode("the</s>") == [*plain, eos]


@pytest.mark.parametrize("kind", ["bpe", "json"])
def test_control_tokens_need_leave_and_user_defined_ones_do_not(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    tool, eos = len(tokenizer) - 1, tokenizer.vocabulary.eos_id
    ids = tokenizer.encode("a<tool>b</s>", add_special=False)
    assert (ids[1], ids[-1]) == (tool, eos)
    plain = tokenizer.encode("a<tool>b</s>", add_special=False, parse_special=False)
    assert plain[1] == tool
    assert eos not in plain
    assert tokenizer.decode(ids) == tokenizer.decode(ids[:-1]) == "a<tool>b"
    assert tokenizer.decode(ids, skip_special=False) == tokenizer.decode(plain) == "a<tool>b</s>"


def test_the_longest_special_token_wins() -> None:
    base = bpe()
    tokens = [*base.tokens, "<s><s>"]
    tokenizer = Tokenizer(replace(base, tokens=tokens, types=np.append(base.types, 3).astype(np.int32)))
    assert tokenizer.encode("<s><s><s>", add_special=False) == [len(tokens) - 1, base.bos_id]


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_counts_as_a_replacement(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode("a\ud83e") == tokenizer.encode("a\ufffd")
    assert tokenizer.encode("\ud83e\udd99") == tokenizer.encode("🦙")


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_an_input_error(wrong: int) -> None:
    with pytest.raises(InputError, match=str(wrong)):
        tokenizer_of("bpe").decode([0, wrong])


def test_unused_tokens_have_no_text_and_are_never_made() -> None:
    base = bpe()
    types = np.append(base.types, TokenType.UNUSED).astype(np.int32)
    tokenizer = Tokenizer(replace(base, tokens=[*base.tokens, "[PAD515]"], types=types))
    assert tokenizer.decode([len(tokenizer) - 1], skip_special=False) == ""
    assert len(tokenizer) - 1 not in tokenizer.encode("[PAD515]")


def test_a_file_without_types_is_all_normal_text() -> None:
    tokenizer = Tokenizer(replace(bpe(), types=None))
    assert tokenizer.decode(tokenizer.encode("a<tool>", add_special=False)) == "a<tool>"
    assert tokenizer.encode("<s>", add_special=False) != [tokenizer.vocabulary.bos_id]


def test_a_missing_pre_tokenizer_is_the_default_with_a_warning() -> None:
    with pytest.warns(BitconvWarning, match="tokenizer.ggml.pre"):
        tokenizer = Tokenizer(replace(bpe(), pre=None))
    text = "12345 it's"
    assert tokenizer.encode(text) == tokenizer_of("default").encode(text)


def test_a_disputed_pre_tokenizer_is_used_with_a_warning() -> None:
    with pytest.warns(BitconvWarning, match="disagree"):
        Tokenizer(bpe("falcon3"))


def test_an_unknown_pre_tokenizer_lists_the_known() -> None:
    with pytest.raises(UnsupportedError, match="llama-bpe, qwen2"):
        Tokenizer(replace(bpe(), pre="whatever"))


@pytest.mark.parametrize("merge", ["a", "a b c", "", " ", "a zzzz", "z q"])
def test_a_merge_that_makes_no_token_is_a_format_error(merge: str) -> None:
    with pytest.raises(FormatError, match="merges: entry 1"):
        Tokenizer(replace(bpe(), merges=[bpe().merges[0], merge]))


# SentencePiece -----------------------------------------------------------------------------------------

SPM_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prefix": {"add_dummy_prefix": False},
    "no bytes": {"byte_fallback": False, "character_coverage": 0.99},
    "user defined": {"user_defined_symbols": "<u>,▁▁▁,foo,fo,é,▁the,a▁b"},
    "control": {"control_symbols": "<c>,foo"},
    "pieces across words": {"split_by_whitespace": False, "vocab_size": 400},
}
SPM_TEXT = st.text(max_size=40) | st.lists(
    st.sampled_from(
        [*"  eotinas", "▁", "foo", "fo", "<u>", "<c>", "é", "ж", "🦙", "\n", " the", "a b", "def ", "    "]
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("name", list(SPM_OPTIONS))
@given(text=SPM_TEXT)
@settings(max_examples=120, deadline=None)
def test_sentencepiece_equality(name: str, text: str) -> None:
    tokenizer, program = _spm_pair(name)
    assert tokenizer.encode(text, add_special=False, parse_special=False) == program.encode(text)


@cache
def _spm_pair(name: str) -> tuple[Tokenizer, Any]:
    options = SPM_OPTIONS[name]
    return Tokenizer(spm(**options)), spm_processor(trained_spm(**options))


@pytest.mark.parametrize("name", ["plain", "no prefix", "user defined"])
@given(text=SPM_TEXT)
@settings(max_examples=80, deadline=None)
def test_sentencepiece_decodes_the_same(name: str, text: str) -> None:
    tokenizer, program = _spm_pair(name)
    ids = program.encode(text)
    assert tokenizer.decode(ids) == program.decode(ids) == text.replace("▁", " ")


@given(seed=st.integers(0, 10**6), text=st.text(alphabet="ab▁", max_size=30))
@settings(max_examples=150, deadline=None)
def test_equal_scores_merge_leftmost_first(seed: int, text: str) -> None:
    """Random pieces with few distinct scores: where a ranked list of merges could not say what happens."""
    rng = random.Random(seed)
    pieces = sorted({"".join(rng.choices("ab▁", k=rng.randint(2, 5))) for _ in range(12)})
    model = _spm_proto([(piece, float(-rng.randint(0, 3))) for piece in pieces], unused=rng.sample(pieces, 2))
    table = read_spm_model(model, "test")
    tokens, types, scores = table.padded(len(table.texts))
    ours = SentencePieceEncoder(tokens, scores, types, table.unk_id).encode(text)
    assert ours == sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)


def _spm_proto(pieces: list[tuple[str, float]], unused: list[str]) -> bytes:
    """Serialize a SentencePiece BPE model by hand: <unk>, <s>, </s>, three letters, then the pieces."""

    def message(number: int, data: bytes) -> bytes:
        assert len(data) < 128
        return bytes([number << 3 | 2, len(data)]) + data

    def piece(text: str, score: float, kind: int) -> bytes:
        score_field = bytes([2 << 3 | 5]) + np.float32(score).tobytes()
        return message(1, message(1, text.encode()) + score_field + bytes([3 << 3, kind]))

    parts = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3)]
    parts += [piece(letter, -100, 1) for letter in "ab▁"]
    parts += [piece(text, score, 5 if text in unused else 1) for text, score in pieces]
    parts.append(message(2, bytes([3 << 3, 2])))  # trainer: bpe
    parts.append(message(3, bytes([3 << 3, 0, 4 << 3, 0])))  # normalizer: no prefix, no removal of spaces
    return b"".join(parts)


def test_each_text_after_a_control_token_gets_a_space_prefix() -> None:
    tokenizer = tokenizer_of("spm")
    the = tokenizer.encode("the", add_special=False)
    assert tokenizer.encode("<s>the</s>the", add_special=False) == [1, *the, 2, *the]


def test_a_tokenizer_json_in_the_form_of_llama_2_equals_the_pieces() -> None:
    vocabulary = spm()
    pieces = list(zip(vocabulary.tokens, vocabulary.scores.tolist(), strict=True))  # type: ignore[union-attr]
    for metaspace in (True, False):
        text = sentencepiece_json(pieces, {0: True, 1: True, 2: True}, metaspace=metaspace)
        tokenizer = Tokenizer(replace(vocabulary, huggingface_json=text))
        for line in ("the import  of   x", "é🦙\n\tx", "assert x == y  # 123"):
            assert tokenizer.encode(line) == tokenizer_of("spm").encode(line)
        # Metaspace gives a text that begins with a space no other one
        same = tokenizer.encode(" a") == tokenizer_of("spm").encode(" a")
        assert same == (not metaspace)


# any file ----------------------------------------------------------------------------------------------

ODD_TOKENS = st.sampled_from(["", "a", "b", "ab", " ", "▁", "<0x41>", "<0xZZ>", "Ġ", "é", "a b", "\x00", "<s>", "🦙"])


@given(data=st.data(), model=st.sampled_from(["llama", "gpt2"]), text=TEXT)
@settings(max_examples=300, deadline=None)
def test_any_readable_vocabulary_works_or_raises_a_documented_error(data: st.DataObject, model: str, text: str) -> None:
    """Empty and repeated tokens, bytes that are none, infinite scores, types that make no sense."""
    tokens = data.draw(st.lists(ODD_TOKENS, min_size=1, max_size=12))
    n = len(tokens)
    types = np.array(data.draw(st.lists(st.integers(1, 6), min_size=n, max_size=n)), np.int32)
    scores = data.draw(st.lists(st.sampled_from([0.0, -1.0, np.inf, -np.inf]), min_size=n, max_size=n))
    merges = data.draw(st.lists(st.sampled_from(["a b", "b a", "a", "Ġ a"]), max_size=2))
    vocabulary = Vocabulary(
        model=model, pre="gpt-2", tokens=tokens, types=types, scores=np.array(scores, np.float32), merges=merges,
        unk_id=data.draw(st.none() | st.integers(0, n - 1)), add_space_prefix=data.draw(st.booleans()),
    )  # fmt: skip
    try:
        tokenizer = Tokenizer(vocabulary)
    except FormatError as error:
        assert "merges" in str(error)
        return
    ids = tokenizer.encode(text + "".join(tokens))
    assert all(0 <= i < n for i in ids)
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join([*pieces, stream.flush()]) == tokenizer.decode(ids)


# tokenizer.huggingface.json ----------------------------------------------------------------------------


def _with_json(change: dict[str, Any]) -> Vocabulary:
    parsed = json.loads(bpe_with_json().huggingface_json or "")
    return replace(bpe(), huggingface_json=json.dumps({**parsed, **change}))


def test_truncation_and_padding_of_a_tokenizer_json_are_ignored() -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    tokenizer = Tokenizer(_with_json({"truncation": truncation, "padding": padding}))
    text = "some text of more than three tokens"
    assert tokenizer.encode(text) == tokenizer_of("bpe").encode(text)


def test_dropout_of_a_tokenizer_json_is_ignored() -> None:
    model = json.loads(bpe_with_json().huggingface_json or "")["model"]
    tokenizer = Tokenizer(_with_json({"model": {**model, "dropout": 0.9}}))
    text = "the tokens of the text" * 5
    assert tokenizer.encode(text) == tokenizer_of("bpe").encode(text)


def test_special_ids_come_from_the_standard_keys() -> None:
    """The JSON adds <s>; the keys say that nothing is added."""
    tokenizer = Tokenizer(replace(bpe_with_json(), add_bos=False))
    assert tokenizer.encode("the") == tokenizer_of("bpe").encode("the", add_special=False)


def test_a_different_token_is_named() -> None:
    tokens = [*bpe().tokens]
    tokens[300], tokens[301] = tokens[301], tokens[300]
    with pytest.raises(FormatError, match="token 300 is"):
        Tokenizer(replace(bpe_with_json(), tokens=tokens))


def test_missing_and_surplus_tokens_are_named() -> None:
    base = bpe_with_json()
    with pytest.raises(FormatError, match=f"has a token {len(base.tokens) - 1}"):
        Tokenizer(replace(base, tokens=base.tokens[:-1], types=base.types[:-1]))  # type: ignore[index]
    longer = replace(base, tokens=[*base.tokens, "<more>"])
    with pytest.raises(FormatError, match=f"token {len(base.tokens)} is absent"):
        Tokenizer(replace(longer, types=np.append(base.types, 1).astype(np.int32)))
    padded = replace(longer, types=np.append(base.types, TokenType.UNUSED).astype(np.int32))
    assert Tokenizer(padded).encode("the") == tokenizer_of("bpe").encode("the")


@given(cut=st.integers(0, 5000), flip=st.integers(0, 127))
@settings(max_examples=60, deadline=None)
def test_a_damaged_tokenizer_json_is_a_format_error_or_still_one(cut: int, flip: int) -> None:
    text = bpe_with_json().huggingface_json or ""
    cut %= len(text)
    for damaged in (text[:cut], text[:cut] + chr(flip) + text[cut + 1 :]):
        try:
            Tokenizer(replace(bpe(), huggingface_json=damaged)).encode("the text")
        except FormatError as error:
            assert "tokenizer.huggingface.json" in str(error)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"model": {"type": "BPE"}}', "[" * 10000, "\x00"])
def test_a_malformed_tokenizer_json_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.huggingface\.json"):
        Tokenizer(replace(bpe(), huggingface_json=text))

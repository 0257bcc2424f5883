"""Vocabularies: from the tokenizer files of a checkpoint, into GGUF keys, and back."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from bitconv.errors import BitconvError, BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats import hf_tokenizer
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.formats.hf_tokenizer import read_hf_tokenizer
from bitconv.formats.pretokenizers import GPT_2, pre_tokenizer, pre_tokenizer_names
from bitconv.formats.spm_model import _any_piece, _usual_piece, read_spm_model
from bitconv.formats.tiktoken_ranks import read_tiktoken_ranks
from bitconv.formats.vocabulary import TokenType, Vocabulary, read_vocabulary
from bitconv.runtime.chat import render
from bitconv.runtime.tokenizer import Tokenizer
from tests.tokenizer_fixtures import (
    LLAMA_3_SPLIT,
    QWEN_2_SPLIT,
    byte_level_json,
    falcon_split,
    make_checkpoint,
    sentencepiece_json,
    small_bpe,
    special,
    split,
    spm_processor,
    through_gguf,
    trained_spm,
)

NEW_BYTES = [special("<s>"), special("</s>"), special("<tool>", False), special("a tool", False)]


def convert(folder: Path, files: dict[str, Any], size: int = 520, **options: Any) -> Vocabulary:
    config = files.pop("config.json", {})
    return read_hf_tokenizer(make_checkpoint(folder, files, config), size, **options)


def json_file(pre: Any = None, **options: Any) -> str:
    vocab, merges = small_bpe()
    return byte_level_json(vocab, merges, pre, NEW_BYTES, **options)


def assert_same(found: Vocabulary, wanted: Vocabulary) -> None:
    for field in fields(Vocabulary):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
            assert ours.tolist() == theirs.tolist(), field.name
        elif field.name in ("tokens", "merges"):
            assert list(ours) == list(theirs), field.name
        else:
            assert ours == theirs, field.name


# GGUF keys ---------------------------------------------------------------------------------------------

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), unique=True)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    tokens = [f"t{i}{text}" for i, text in enumerate(draw(TEXTS.filter(len)))]
    n = len(tokens)
    maybe_id = st.none() | st.integers(0, n - 1)
    model = draw(st.sampled_from(["llama", "gpt2"]))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    types = np.array(draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), min_size=n, max_size=n)), np.int32)
    scores = np.array(draw(st.lists(numbers, min_size=n, max_size=n)), np.float32)
    ids = {key: draw(maybe_id) for key in ("bos_id", "eos_id", "eot_id", "eom_id", "unk_id", "pad_id")}
    ends = {i for i in (ids["eos_id"], ids["eot_id"], ids["eom_id"], draw(maybe_id)) if i is not None}
    return Vocabulary(
        model=model, pre=draw(st.sampled_from([None, "default", "gpt-2"])), tokens=tokens, types=types,
        scores=scores if model == "llama" else draw(st.sampled_from([None, scores])),
        merges=draw(st.lists(st.just("a b"), min_size=1, max_size=3)) if model == "gpt2" else (),
        eog_ids=frozenset(ends), add_bos=draw(st.booleans()), add_eos=draw(st.booleans()),
        add_space_prefix=model == "llama" and draw(st.booleans()),
        chat_template=draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        huggingface_json=draw(st.sampled_from([None, "{}"])), **ids,
    )  # fmt: skip


@given(vocabulary=vocabularies())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_vocabulary_survives_a_gguf_file(vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert_same(through_gguf(vocabulary, tmp_path / "v.gguf"), vocabulary)


BPE_KEYS: dict[str, tuple[Any, str]] = {
    "tokenizer.ggml.model": ("gpt2", "str"),
    "tokenizer.ggml.tokens": (["a", "b", "ab", "<x>", "<|im_end|>"], "arr[str]"),
    "tokenizer.ggml.token_type": ([1, 1, 1, 3, 3], "arr[i32]"),
    "tokenizer.ggml.merges": (["a b"], "arr[str]"),
    "tokenizer.ggml.eos_token_id": (3, "u32"),
}


def read_keys(path: Path, changes: dict[str, tuple[Any, str] | None]) -> Vocabulary:
    with GgufWriter(path / "k.gguf", "llama", overwrite=True) as writer:
        for key, entry in {**BPE_KEYS, **changes}.items():
            if entry is not None:
                writer.add(key, *entry)
        writer.declare("nothing", (32,), 0)
        writer.write("nothing", bytes(128))
        writer.finish()
    return read_vocabulary(open_gguf(path / "k.gguf"))


def test_tokens_named_as_ends_of_a_turn_end_a_generation(tmp_path: Path) -> None:
    vocabulary = read_keys(tmp_path, {})
    assert (vocabulary.eos_id, vocabulary.eot_id, vocabulary.eog_ids) == (3, 4, frozenset({3, 4}))
    normal = read_keys(tmp_path, {"tokenizer.ggml.token_type": ([1, 1, 1, 3, 1], "arr[i32]")})
    assert (normal.eot_id, normal.eog_ids) == (None, frozenset({3}))


def test_a_special_id_of_a_normal_token_makes_it_a_control_token(tmp_path: Path) -> None:
    vocabulary = read_keys(tmp_path, {"tokenizer.ggml.token_type": ([1, 1, 1, 1, 1], "arr[i32]")})
    assert vocabulary.types is not None
    assert vocabulary.types.tolist() == [1, 1, 1, 3, 1]
    letter = read_keys(tmp_path, {"tokenizer.ggml.eos_token_id": (0, "u32")})  # a model may end with a letter
    assert letter.types is not None
    assert (letter.types[0], letter.eog_ids) == (1, frozenset({0, 4}))


@pytest.mark.parametrize(("pre", "bos"), [("llama-bpe", True), ("llama3", True), ("qwen2", False), ("x", False)])
def test_the_name_of_the_pre_tokenizer_may_imply_bos(pre: str, bos: bool, tmp_path: Path) -> None:
    assert read_keys(tmp_path, {"tokenizer.ggml.pre": (pre, "str")}).add_bos == bos
    said = {"tokenizer.ggml.pre": (pre, "str"), "tokenizer.ggml.add_bos_token": (not bos, "bool")}
    assert read_keys(tmp_path, said).add_bos != bos


def test_absent_ids_may_be_written_as_minus_one(tmp_path: Path) -> None:
    vocabulary = read_keys(tmp_path, {"tokenizer.ggml.padding_token_id": (0xFFFFFFFF, "u32")})
    assert vocabulary.pad_id is None


WRONG: dict[str, tuple[dict[str, Any], type[BitconvError], str]] = {
    "no model": ({"tokenizer.ggml.model": None}, FormatError, "tokenizer.ggml.model"),
    "other model": ({"tokenizer.ggml.model": ("t5", "str")}, UnsupportedError, "supported are 'llama'"),
    "model no text": ({"tokenizer.ggml.model": (1, "u32")}, FormatError, "tokenizer.ggml.model"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, FormatError, "tokenizer.ggml.tokens"),
    "numbers": ({"tokenizer.ggml.tokens": ([1], "arr[i32]")}, FormatError, "tokenizer.ggml.tokens"),
    "empty": ({"tokenizer.ggml.tokens": ([], "arr[str]")}, FormatError, "tokens"),
    "few types": ({"tokenizer.ggml.token_type": ([1], "arr[i32]")}, FormatError, "1 values for 5 tokens"),
    "odd type": ({"tokenizer.ggml.token_type": ([1, 7, 1, 1, 1], "arr[i32]")}, FormatError, "7 for token 1"),
    "float types": ({"tokenizer.ggml.token_type": ([1.0] * 5, "arr[f32]")}, FormatError, "token_type"),
    "few scores": ({"tokenizer.ggml.scores": ([1.0], "arr[f32]")}, FormatError, "1 values for 5 tokens"),
    "NaN": ({"tokenizer.ggml.scores": ([0.0, float("nan"), 0, 0, 0], "arr[f32]")}, FormatError, "token 1"),
    "no merges": ({"tokenizer.ggml.merges": None}, FormatError, "tokenizer.ggml.merges"),
    "id outside": ({"tokenizer.ggml.eos_token_id": (5, "u32")}, FormatError, "eos_token_id is 5"),
    "id no number": ({"tokenizer.ggml.eos_token_id": ("3", "str")}, FormatError, "eos_token_id"),
    "flag": ({"tokenizer.ggml.add_bos_token": (1, "u32")}, FormatError, "add_bos_token"),
    "template": ({"tokenizer.chat_template": (1, "u32")}, FormatError, "chat_template"),
    "ends outside": ({"bitconv.eog_token_ids": ([9], "arr[i32]")}, FormatError, "eog_token_ids"),
    "negative ends": ({"bitconv.eog_token_ids": ([-1], "arr[i32]")}, FormatError, "eog_token_ids"),
    "SPM scores": ({"tokenizer.ggml.model": ("llama", "str")}, FormatError, "scores is missing"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_keys_are_named(case: str, tmp_path: Path) -> None:
    changes, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        read_keys(tmp_path, changes)


def test_old_sentencepiece_files_have_ids_by_custom(tmp_path: Path) -> None:
    changes = {
        "tokenizer.ggml.model": ("llama", "str"),
        "tokenizer.ggml.tokens": (["<unk>", "<s>", "</s>", "a", "b"], "arr[str]"),
        "tokenizer.ggml.token_type": ([2, 3, 3, 1, 1], "arr[i32]"),
        "tokenizer.ggml.scores": ([0.0] * 5, "arr[f32]"),
        "tokenizer.ggml.eos_token_id": None,
    }
    v = read_keys(tmp_path, changes)
    assert (v.unk_id, v.bos_id, v.eos_id, v.add_bos, v.add_space_prefix) == (0, 1, 2, True, True)


def test_a_file_with_llama_3s_size_and_no_pre_tokenizer_is_llama_bpe(tmp_path: Path) -> None:
    """The published 2B-4T file: no tokenizer.ggml.pre, eos 128001, and turns that end with 128009."""
    tokens = [f"<{i}>" for i in range(128256)]
    tokens[0:3] = ["a", "b", "ab"]
    tokens[128000:128002] = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokens[128009] = "<|eot_id|>"
    for kind in (TokenType.CONTROL, TokenType.NORMAL):
        types = np.ones(128256, np.int32)
        types[128000:] = kind
        changes = {
            "tokenizer.ggml.tokens": (tokens, "arr[str]"),
            "tokenizer.ggml.token_type": (types, "arr[i32]"),
            "tokenizer.ggml.eos_token_id": (128001, "u32"),
            "tokenizer.ggml.bos_token_id": (128000, "u32"),
        }
        v = read_keys(tmp_path, changes)
        assert (v.pre, v.add_bos, v.eot_id) == ("llama-bpe", True, 128009)
        assert v.eog_ids == {128001, 128009}
        assert v.types is not None
        assert v.types[[128000, 128001, 128009]].tolist() == [3, 3, 3]


# tokenizer.json ----------------------------------------------------------------------------------------


def test_token_types_and_padding(tmp_path: Path) -> None:
    v = convert(tmp_path, {"tokenizer.json": json_file()}, 520)
    assert len(v) == 520
    assert list(v.tokens[510:]) == [
        v.tokens[510], v.tokens[511], "<s>", "</s>", "<tool>", "a tool",
        "[PAD516]", "[PAD517]", "[PAD518]", "[PAD519]",
    ]  # fmt: skip
    assert v.types is not None
    assert v.types.tolist() == [1] * 512 + [3, 3, 4, 4] + [5] * 4
    assert (v.model, v.pre, v.scores, len(v.merges)) == ("gpt2", "gpt-2", None, 256)
    tokenizer = Tokenizer(through_gguf(replace(v, huggingface_json=None), tmp_path / "v.gguf"))
    assert tokenizer.encode("x a tool") == [*tokenizer.encode("x "), 515]


def test_more_tokens_than_embedding_rows_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"token 515 is 'a tool'.* 515 embedding rows"):
        convert(tmp_path, {"tokenizer.json": json_file()}, 515)


def test_merges_may_be_strings_or_pairs(tmp_path: Path) -> None:
    parsed = json.loads(json_file())
    pairs = parsed["model"]["merges"]
    assert isinstance(pairs[0], list)
    as_pairs = convert(tmp_path / "a", {"tokenizer.json": parsed})
    parsed["model"]["merges"] = [" ".join(pair) for pair in pairs]
    as_strings = convert(tmp_path / "b", {"tokenizer.json": parsed})
    assert list(as_pairs.merges) == list(as_strings.merges) == [" ".join(pair) for pair in pairs]


def test_holes_in_the_vocabulary_are_unused(tmp_path: Path) -> None:
    vocab, merges = small_bpe()
    moved = {token: i if i < 500 else i + 7 for token, i in vocab.items()}
    v = convert(tmp_path, {"tokenizer.json": byte_level_json(moved, merges)}, 530)
    assert v.types is not None
    assert np.flatnonzero(v.types == TokenType.UNUSED).tolist() == [*range(500, 507), *range(519, 530)]
    assert v.tokens[500] == "[PAD500]"
    rebuilt = Tokenizer(replace(v, huggingface_json=None))
    text = "def test_holes(tmp_path: Path) -> None"
    assert rebuilt.encode(text) == Tokenizer(v).encode(text)
    assert rebuilt.decode(rebuilt.encode(text)) == text


PRE_TOKENIZERS: dict[str, tuple[Any, bool, str]] = {
    "gpt-2": (None, False, "gpt-2"),
    "gpt-2 spelled out": (split(GPT_2 + r"|\s+"), False, "gpt-2"),
    "llama-bpe": (split(LLAMA_3_SPLIT), True, "llama-bpe"),
    "qwen2": (split(QWEN_2_SPLIT), False, "qwen2"),
    "falcon": (falcon_split(), False, "falcon"),
}


@pytest.mark.parametrize("case", list(PRE_TOKENIZERS))
def test_the_pre_tokenizer_is_known_by_its_expression(case: str, tmp_path: Path) -> None:
    pre, ignore_merges, name = PRE_TOKENIZERS[case]
    files = {"tokenizer.json": json_file(pre, ignore_merges=ignore_merges)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convert(tmp_path, files, keep_json=False).pre == name


def _sequence(*parts: Any) -> Any:
    return pre_tokenizers.Sequence(list(parts))


def test_a_json_that_the_keys_express_is_not_read_again(tmp_path: Path) -> None:
    for case, (pre, ignore_merges, _) in PRE_TOKENIZERS.items():
        v = convert(tmp_path / case, {"tokenizer.json": json_file(pre, ignore_merges=ignore_merges)})
        assert v.json_is_expressed and not replace(v, json_is_expressed=False).json_is_expressed
        read = through_gguf(v, tmp_path / "v.gguf")
        assert read.json_is_expressed
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rebuilt = Tokenizer(replace(read, huggingface_json="not read"))
        executed = Tokenizer(replace(read, json_is_expressed=False))
        for text in ("def x():\n\treturn 12345", "<new>  new\u00e9 \U0001f999 <new", ""):
            for parse_special in (True, False):
                assert rebuilt.encode(text, parse_special=parse_special) == executed.encode(
                    text, parse_special=parse_special
                )


def _odd_files() -> dict[str, str]:
    plain = json.loads(json_file(split(LLAMA_3_SPLIT), ignore_merges=True))
    files = {}
    for key in ("lstrip", "rstrip", "single_word", "normalized"):
        odd = json.loads(json.dumps(plain))
        odd["added_tokens"][0][key] = not odd["added_tokens"][0][key]
        files[key] = odd
    for key, value in (("unk_token", "a"), ("fuse_unk", True), ("ignore_merges", False)):
        files[key] = {**plain, "model": {**plain["model"], key: value}}
    files["normalizer"] = {**plain, "normalizer": {"type": "NFC"}}
    files["added in the model"] = json.loads(json.dumps(plain))
    first = files["added in the model"]["added_tokens"][0]
    files["added in the model"]["model"]["vocab"][first["content"]] = first["id"]
    return {name: json.dumps(value) for name, value in files.items()}


@pytest.mark.parametrize("case", list(_odd_files()))
@pytest.mark.filterwarnings("ignore::bitconv.errors.BitconvWarning")
def test_a_json_with_rules_of_its_own_is_executed(case: str, tmp_path: Path) -> None:
    v = convert(tmp_path, {"tokenizer.json": _odd_files()[case]})
    assert v.huggingface_json is not None and not v.json_is_expressed


def test_a_type_changed_on_reading_needs_the_json(tmp_path: Path) -> None:
    expressed = {"bitconv.tokenizer_json_is_expressed": (True, "bool")}
    assert read_keys(tmp_path, expressed).json_is_expressed
    careless = {"tokenizer.ggml.token_type": ([1, 1, 1, 1, 3], "arr[i32]")}
    assert not read_keys(tmp_path, {**expressed, **careless}).json_is_expressed


UNKNOWN = {
    "expression": split(r"\p{L}+|\s"),
    "prefix space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "digits in byte letters": _sequence(pre_tokenizers.ByteLevel(False), pre_tokenizers.Digits(True)),
    "mapped twice": _sequence(pre_tokenizers.ByteLevel(False), pre_tokenizers.ByteLevel(False)),
    "no isolation": _sequence(
        pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "removed"), pre_tokenizers.ByteLevel(False, use_regex=False)
    ),
}


@pytest.mark.parametrize("case", list(UNKNOWN))
def test_an_unknown_expression_needs_the_json_or_a_name(case: str, tmp_path: Path) -> None:
    files = {"tokenizer.json": json_file(UNKNOWN[case])}
    with pytest.warns(BitconvWarning, match="split text differently"):
        kept = convert(tmp_path, dict(files))
    assert kept.pre == "default"
    with pytest.raises(UnsupportedError, match="default, gpt-2, llama-bpe.*--pre"):
        convert(tmp_path, dict(files), keep_json=False)
    named = convert(tmp_path, dict(files), keep_json=False, pre="llama3")
    assert (named.pre, named.huggingface_json) == ("llama-bpe", None)


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--pre: pre-tokenizer 'nonsense'.*qwen2"):
        convert(tmp_path, {"tokenizer.json": json_file()}, pre="nonsense")


def test_a_pre_tokenizer_for_sentencepiece_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --pre"):
        convert(tmp_path, {"tokenizer.model": trained_spm()}, 600, pre="qwen2")


def test_falcon_3_splits_are_named_with_a_warning(tmp_path: Path) -> None:
    single_digits = _sequence(
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(False),
        pre_tokenizers.Split(Regex("[0-9]"), "isolated"),
    )
    with pytest.warns(BitconvWarning, match="disagree about the pre-tokenizer falcon_e"):
        assert convert(tmp_path, {"tokenizer.json": json_file(single_digits)}).pre == "falcon_e"


def test_a_normaliser_is_a_difference(tmp_path: Path) -> None:
    parsed = json.loads(json_file())
    parsed["normalizer"] = json.loads(normalizers.Lowercase().__getstate__())
    with pytest.warns(BitconvWarning, match="normalised: Lowercase"):
        convert(tmp_path, {"tokenizer.json": parsed})
    with pytest.raises(UnsupportedError, match="normalised: Lowercase"):
        convert(tmp_path, {"tokenizer.json": parsed}, keep_json=False)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}, "type WordLevel"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0, "byte_fallback": False}, "type Unigram"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, "end_of_word"),
    ],
)
def test_other_kinds_of_tokenizer_are_unsupported(model: dict[str, Any], words: str, tmp_path: Path) -> None:
    parsed = {**json.loads(json_file()), "model": model, "added_tokens": []}
    with pytest.raises(UnsupportedError, match=words):
        convert(tmp_path, {"tokenizer.json": parsed})


def test_the_whole_json_is_kept_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json_file()
    assert convert(tmp_path, {"tokenizer.json": text}).huggingface_json == text
    monkeypatch.setattr(hf_tokenizer, "JSON_KEPT", len(text.encode()) - 1)
    with pytest.warns(BitconvWarning, match="left out"):
        assert convert(tmp_path, {"tokenizer.json": text}).huggingface_json is None


def test_no_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"save_pretrained"):
        convert(tmp_path, {})


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_text_that_is_not_utf_8_is_a_format_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not UTF-8 at byte 1"):
        convert(tmp_path, {"tokenizer.json": json_file(), name: b"{\xff}"})


# special ids -------------------------------------------------------------------------------------------


def test_the_post_processor_decides_about_bos(tmp_path: Path) -> None:
    plain = convert(tmp_path / "a", {"tokenizer.json": json_file(), "tokenizer_config.json": {"add_bos_token": True}})
    assert (plain.add_bos, plain.add_eos) == (False, False)
    with_bos = convert(tmp_path / "b", {"tokenizer.json": json_file(bos="<s>")})
    assert (with_bos.add_bos, with_bos.bos_id) == (True, 512)


def test_a_post_processor_that_adds_more_is_warned_about(tmp_path: Path) -> None:
    parsed = json.loads(json_file(bos="<s>"))
    template = parsed["post_processor"]["processors"][1]
    template["single"].insert(0, template["single"][0])
    with pytest.warns(BitconvWarning, match=r"puts the tokens \[512, 512\] before"):
        convert(tmp_path, {"tokenizer.json": parsed})


def test_every_end_of_generation_is_found(tmp_path: Path) -> None:
    files = {
        "tokenizer.json": json_file(),
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None},
        "generation_config.json": {"eos_token_id": [513, 514], "pad_token_id": 7},
        "config.json": {"eos_token_id": 3, "bos_token_id": 9},
    }
    v = convert(tmp_path, files)
    assert (v.bos_id, v.eos_id, v.pad_id) == (512, 513, 7)
    assert v.eog_ids == {513, 514, 3}
    assert_same(through_gguf(v, tmp_path / "v.gguf"), v)


def test_ids_come_from_the_model_where_the_tokenizer_is_silent(tmp_path: Path) -> None:
    files = {"tokenizer.json": json_file(), "config.json": {"eos_token_id": [5, 6], "bos_token_id": 4}}
    v = convert(tmp_path, files)
    assert (v.bos_id, v.eos_id, v.eog_ids, v.add_bos) == (4, 5, frozenset({5, 6}), False)


def test_ids_outside_the_vocabulary_are_ignored_with_a_warning(tmp_path: Path) -> None:
    files = {"tokenizer.json": json_file(), "config.json": {"eos_token_id": 99999, "pad_token_id": -1}}
    with pytest.warns(BitconvWarning, match="eos_token_id is 99999") as caught:
        v = convert(tmp_path, files)
    assert (v.eos_id, v.pad_id, len(caught)) == (None, None, 1)


def test_special_ids_count_as_read_in_the_config(tmp_path: Path) -> None:
    files = {"tokenizer.json": json_file()}
    checkpoint = make_checkpoint(tmp_path, files, {"eos_token_id": [5, 6], "bos_token_id": 4, "other": 1})
    read_hf_tokenizer(checkpoint, 520)
    assert checkpoint.config.unread() == ["other"]


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_a_checkpoint_is_tokenized_as_transformers_does(bos: str | None, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": template,
    }  # fmt: skip
    files = {
        "tokenizer.json": json_file(bos=bos),
        "tokenizer_config.json": config,
        "config.json": {"model_type": "llama"},
    }
    v = convert(tmp_path, files)
    program = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "hi <tool>"}, {"role": "assistant", "content": "é a tool"}]
    for vocabulary in (v, replace(v, huggingface_json=None)):
        tokenizer = Tokenizer(vocabulary)
        for text in ("hello world", " a", "x</s> y", "a tool", "<tool> z", "  two\n", "é🦙", "a<s>b", ""):
            assert tokenizer.encode(text) == program(text)["input_ids"], text
        ids = program.apply_chat_template(messages, return_dict=False)
        assert tokenizer.encode(render(vocabulary, messages)) == ids  # one BOS, not two


# chat templates ----------------------------------------------------------------------------------------

NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, "D"),
        ({"tokenizer_config.json": {"chat_template": NAMED[:1]}}, None),
        ({"chat_template.jinja": "J\n", "tokenizer_config.json": {"chat_template": "A"}}, "J\n"),
        ({"chat_template.json": {"chat_template": "C"}}, "C"),
    ],
)
def test_the_chat_template_is_found(files: dict[str, Any], template: str | None, tmp_path: Path) -> None:
    assert convert(tmp_path, {"tokenizer.json": json_file(), **files}).chat_template == template


def test_a_chat_template_that_is_no_text_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="chat_template must be text"):
        convert(tmp_path, {"tokenizer.json": json_file(), "tokenizer_config.json": {"chat_template": 3}})


# tokenizer.model: SentencePiece ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"byte_fallback": False}, {"user_defined_symbols": "<u>,a▁b"}, {"control_symbols": "<c>"}, {"pad_id": 3}],
)
def test_a_sentencepiece_model_is_read_as_its_library_does(options: dict[str, Any]) -> None:
    model = trained_spm(**options)
    program, table = spm_processor(model), read_spm_model(model, "test")
    assert len(table.texts) == program.vocab_size()
    for i in range(program.vocab_size()):
        assert table.texts[i].replace(" ", "▁") == program.id_to_piece(i)
        assert table.scores[i] == program.get_score(i)
        kind = table.types[i]
        assert program.is_control(i) == (kind == TokenType.CONTROL)
        assert program.is_unknown(i) == (kind == TokenType.UNKNOWN)
        assert program.is_byte(i) == (kind == TokenType.BYTE)
        assert program.is_unused(i) == (kind == TokenType.UNUSED)
    ids = (table.bos_id, table.eos_id, table.unk_id)
    assert ids == (program.bos_id(), program.eos_id(), program.unk_id())
    assert (-1 if table.pad_id is None else table.pad_id) == program.pad_id()


def test_added_tokens_of_a_sentencepiece_checkpoint(tmp_path: Path) -> None:
    """As the bitnet_b1_58 checkpoints have them: a slow tokenizer with two tokens beside its model."""
    files = {
        "tokenizer.model": trained_spm(),
        "added_tokens.json": {"</line>": 601, "<pad>": 600},
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True},
                "1": {"content": "<s>", "special": True},
                "600": {"content": "<pad>", "special": True},
            },
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": True,
        },
    }  # fmt: skip
    v = through_gguf(convert(tmp_path, files, 604), tmp_path / "v.gguf")
    assert list(v.tokens[598:])[2:] == ["<pad>", "</line>", "[PAD602]", "[PAD603]"]
    assert v.types is not None
    assert v.types[[0, 1, 2, 3, 600, 601, 602]].tolist() == [2, 3, 3, 6, 3, 4, 5]
    assert (v.bos_id, v.eos_id, v.unk_id, v.pad_id, v.add_bos, v.pre) == (1, 2, 0, 600, True, "default")
    ids = Tokenizer(v).encode("the</line><pad>")
    assert ids == [1, *spm_processor(trained_spm()).encode("the"), 601, 600]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_type": "unigram"}, "type unigram"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalisation table"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_sentencepiece_models_that_gguf_cannot_express(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read_spm_model(trained_spm(**options), "test")


def test_a_sentencepiece_model_as_tokenizer_json_gives_the_same_ids(tmp_path: Path) -> None:
    table = read_spm_model(trained_spm(), "test")
    pieces = [(table.texts[i], table.scores[i]) for i in range(len(table.texts))]
    text = sentencepiece_json(pieces, {0: True, 1: True, 2: True})
    v = convert(tmp_path, {"tokenizer.json": text}, 600, keep_json=False)
    assert (v.model, v.add_bos, v.add_space_prefix, v.unk_id) == ("llama", True, True, 0)
    assert v.types is not None
    assert v.types[:4].tolist() == [2, 3, 3, 6]
    tokenizer, program = Tokenizer(v), spm_processor(trained_spm())
    for line in Path(__file__).read_text().splitlines():
        assert tokenizer.encode(line, add_special=False, parse_special=False) == program.encode(line)


# tokenizer.model: tiktoken -----------------------------------------------------------------------------


def _ranks(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


ALPHABET = [bytes([byte]) for byte in range(256)]


def test_ranks_become_merges_by_the_rank_of_the_result() -> None:
    table = read_tiktoken_ranks(_ranks([*ALPHABET, b"ab", b"bc", b"abc", b" a"]), "test")
    assert table.merges == ["a b", "b c", "a bc", "ab c", "Ġ a"]
    assert (table.texts[32], table.texts[259], table.pre) == ("Ġ", "Ġa", None)


def test_ranks_of_another_size_need_a_name(tmp_path: Path) -> None:
    files = {"tokenizer.model": _ranks([*ALPHABET, b"ab"])}
    with pytest.raises(UnsupportedError, match="--pre"):
        convert(tmp_path, dict(files), 300)
    v = convert(tmp_path, dict(files), 300, pre="qwen2")
    assert (v.model, v.pre, v.tokens[256]) == ("gpt2", "qwen2", "ab")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_ranks(ALPHABET) + b"!!! 300\n", "line 257"),
        (_ranks(ALPHABET) + b"YWI= x\n", "line 257"),
        (_ranks(ALPHABET) + b"YWI= 5\n", "same rank"),
        (_ranks(ALPHABET) + b"YWI= -5\n", "line 257"),
        (_ranks(ALPHABET[:-1]), "byte 0xff"),
    ],
)
def test_malformed_ranks_are_named(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        convert(tmp_path, {"tokenizer.model": data}, 300, pre="gpt-2")


# hostile files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [trained_spm, lambda: _ranks([*ALPHABET, b"ab"])], ids=["spm", "tiktoken"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_tokenizer_model_raises_only_documented_errors(
    make: Callable[[], bytes], data: st.DataObject
) -> None:
    damaged = bytearray(make())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(damaged)))
    for reader in (read_spm_model, read_tiktoken_ranks):
        try:
            reader(bytes(damaged[:cut]), "test")
        except (FormatError, UnsupportedError) as error:
            assert str(error).startswith("test: ")


def test_a_vocabulary_of_the_wrong_kind_of_bytes_is_a_format_error(tmp_path: Path) -> None:
    for junk in (b"", b"\n", b"hello\n", bytes(100), b"\xff" * 100):
        with pytest.raises((FormatError, UnsupportedError)):
            convert(tmp_path, {"tokenizer.model": junk})


@pytest.mark.parametrize(
    "settings_file",
    [
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"700": "a"}},
        {"added_tokens_decoder": {"0": {"content": "other"}}},
        {"add_bos_token": "yes"},
    ],
)
def test_malformed_tokenizer_settings_are_format_errors(settings_file: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        convert(tmp_path, {"tokenizer.model": trained_spm(), "tokenizer_config.json": settings_file}, 1000)


def test_names_and_aliases_of_pre_tokenizers() -> None:
    assert {"default", "gpt-2", "llama-bpe", "qwen2", "falcon", "falcon3", "falcon_e"} == set(pre_tokenizer_names())
    assert pre_tokenizer("llama-v3", "x") is pre_tokenizer("llama3", "x") is pre_tokenizer("llama-bpe", "x")


@given(
    text=st.binary(max_size=140), score=st.binary(min_size=3, max_size=5), kind=st.none() | st.integers(0, 300),
    junk=st.sampled_from([b"", b"\x20\x01", b"\x15", b"\x0a"]), lead=st.sampled_from([b"", b"\x18\x01"]),
)  # fmt: skip
def test_pieces_of_the_usual_form_are_read_as_any_message_is(text, score, kind, junk, lead):
    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])

    number = b"" if kind is None else b"\x18" + varint(kind)
    piece = lead + b"\x0a" + varint(len(text)) + text + b"\x15" + score + number + junk
    found = _usual_piece(piece)
    assert found is None or found == _any_piece(piece, "test")
    if len(text) < 128 and len(score) == 4 and (kind or 0) < 128 and not lead + junk:
        assert found is not None

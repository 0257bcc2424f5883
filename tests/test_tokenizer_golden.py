"""Token ids equal those of the original programs, with and without the model's tokenizer.json in the file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

from bitconv.formats.hf_tokenizer import read_hf_tokenizer
from bitconv.formats.pretokenizers import pre_tokenizer
from bitconv.formats.tiktoken_ranks import LLAMA_3_SPECIAL
from bitconv.formats.vocabulary import BYTE_LETTERS, TokenType, Vocabulary
from bitconv.runtime.tokenizer import Tokenizer as BitconvTokenizer
from tests.tokenizer_fixtures import (
    GOLDEN,
    LLAMA_3_SPLIT,
    QWEN_2_SPLIT,
    TOKENIZERS,
    byte_level_json,
    evaluation_lines,
    falcon_split,
    golden_cases,
    golden_vocabulary,
    make_checkpoint,
    needs_data,
    sentencepiece_json,
    special,
    through_gguf,
)

pytestmark = needs_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@cache
def _llama_3_from_ranks(folder: Path) -> Vocabulary:
    files = {"tokenizer.model": TOKENIZERS / "llama3" / "tokenizer.model"}
    vocabulary = read_hf_tokenizer(make_checkpoint(folder / "llama3", files), 128256)
    return through_gguf(vocabulary, folder / "llama-3-ranks.gguf")


def _llama_3_json() -> str:
    """The tokenizer.json that transformers makes of the ranks, with LLaMA 3's BOS rule."""
    path = str(TOKENIZERS / "llama3" / "tokenizer.model")
    converted = TikTokenConverter(vocab_file=path, extra_special_tokens=list(LLAMA_3_SPECIAL)).converted()
    return str(converted.to_str())


def _byte_level_json(name: str, pre: Any) -> Callable[[], str]:
    def build() -> str:
        vocabulary = golden_vocabulary(name)
        types = vocabulary.types.tolist()  # type: ignore[union-attr]
        vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
        added = [special(t) for i, t in enumerate(vocabulary.tokens) if types[i] == TokenType.CONTROL]
        merges = [tuple(merge.split(" ")) for merge in vocabulary.merges]
        return byte_level_json(vocab, merges, pre, added)  # type: ignore[arg-type]

    return build


def _sentencepiece_json(name: str) -> Callable[[], str]:
    def build() -> str:
        vocabulary = golden_vocabulary(name)
        types = vocabulary.types.tolist()  # type: ignore[union-attr]
        scores = vocabulary.scores.tolist()  # type: ignore[union-attr]
        added = {i: t != 4 for i, t in enumerate(types) if t in (2, 3, 4)}
        return sentencepiece_json(list(zip(vocabulary.tokens, scores, strict=True)), added)

    return build


@cache
def _vocabulary_from_json(name: str, keep: bool, folder: Path) -> Vocabulary:
    checkpoint = make_checkpoint(folder / name, {"tokenizer.json": _json(name)})
    vocabulary = read_hf_tokenizer(checkpoint, 128256, keep_json=keep)
    assert (vocabulary.huggingface_json is not None) == keep
    return through_gguf(vocabulary, folder / f"{name}-{keep}.gguf")


@cache
def _json(name: str) -> str:
    return _JSON[name]()


_JSON: dict[str, Callable[[], str]] = {
    "llama-bpe": _llama_3_json,
    "gpt-2": _byte_level_json("gpt-2", None),
    "falcon": _byte_level_json("falcon", falcon_split()),
    "llama-spm": _sentencepiece_json("llama-spm"),
    "phi-3": _sentencepiece_json("phi-3"),
}


@cache
def _tokenizer(name: str, source: str, folder: Path) -> BitconvTokenizer:
    if source == "file":
        vocabulary = _llama_3_from_ranks(folder) if name == "llama-bpe" else golden_vocabulary(name)
    else:
        vocabulary = _vocabulary_from_json(name, source == "with key", folder)
    return BitconvTokenizer(vocabulary)


@pytest.mark.parametrize("source", ["file", "with key", "key removed"])
@pytest.mark.parametrize("name", list(_JSON))
def test_golden_ids(name: str, source: str, folder: Path) -> None:
    tokenizer = _tokenizer(name, source, folder)
    cases = golden_cases(name)
    assert len(cases) >= 46
    for text, ids in cases:
        assert tokenizer.encode(text, add_special=False) == ids, text


def _same(tokenizer: BitconvTokenizer, expected: list[list[int]]) -> None:
    lines = evaluation_lines()
    assert len(lines) == len(expected) >= 10_000
    found = [tokenizer.encode(line, add_special=False, parse_special=False) for line in lines]
    differing = [line for line, a, b in zip(lines, found, expected, strict=True) if a != b]
    assert not differing


@cache
def _by_sentencepiece() -> list[list[int]]:
    program = sentencepiece.SentencePieceProcessor(str(TOKENIZERS / "llama2" / "tokenizer.model"))
    return list(program.encode(evaluation_lines()))


@cache
def _by_tiktoken() -> list[list[int]]:
    lines = (TOKENIZERS / "llama3" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    program = tiktoken.Encoding("llama3", pat_str=LLAMA_3_SPLIT, mergeable_ranks=ranks, special_tokens={})
    return [program.encode_ordinary(line) for line in evaluation_lines()]


@cache
def _by_gpt_2_files() -> list[list[int]]:
    files = TOKENIZERS / "gpt2"
    program = Tokenizer(models.BPE.from_file(str(files / "encoder.json"), str(files / "vocab.bpe")))
    program.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [encoding.ids for encoding in program.encode_batch(evaluation_lines())]


@pytest.mark.parametrize("source", ["file", "with key"])
def test_lines_equal_sentencepiece(source: str, folder: Path) -> None:
    _same(_tokenizer("llama-spm", source, folder), _by_sentencepiece())


def test_lines_equal_sentencepiece_from_its_model_file(folder: Path) -> None:
    path = TOKENIZERS / "llama2" / "tokenizer.model"
    vocabulary = read_hf_tokenizer(make_checkpoint(folder / "spm", {"tokenizer.model": path}), 32002)
    tokenizer = BitconvTokenizer(through_gguf(vocabulary, folder / "spm.gguf"))
    _same(tokenizer, _by_sentencepiece())
    text = "\n".join(evaluation_lines()[:3000])  # across lines, as perplexity sees it
    program = sentencepiece.SentencePieceProcessor(str(path))
    assert tokenizer.encode(text, add_special=False, parse_special=False) == program.encode(text)


@pytest.mark.parametrize("source", ["file", "with key"])
def test_lines_equal_tiktoken(source: str, folder: Path) -> None:
    _same(_tokenizer("llama-bpe", source, folder), _by_tiktoken())


@pytest.mark.parametrize("source", ["key removed", "with key"])
def test_lines_equal_the_original_gpt_2_files(source: str, folder: Path) -> None:
    _same(_tokenizer("gpt-2", source, folder), _by_gpt_2_files())


@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2", "falcon"])
def test_byte_level_vocabularies_give_every_text_back(name: str, folder: Path) -> None:
    """Falcon's vocabulary lacks some bytes, which its own program drops too; texts without them come back."""
    tokenizer = _tokenizer(name, "file", folder)
    tokens, types = tokenizer.vocabulary.tokens, tokenizer.vocabulary.types
    present = set(tokens)
    missing = {byte for byte, letter in enumerate(BYTE_LETTERS) if letter not in present}
    assert bool(missing) == (name == "falcon")
    bos = tokens[tokenizer.vocabulary.bos_id or 0]
    specials = st.sampled_from([tokens[i] for i in np.flatnonzero(types == TokenType.CONTROL)])
    plain = st.text(max_size=20).filter(lambda text: not missing & set(text.encode()))

    @given(st.lists(plain | specials, max_size=5).map("".join))
    @settings(max_examples=80, deadline=None)
    def gives_back(text: str) -> None:
        assert text.startswith(bos) or tokenizer.detokenize(tokenizer.encode(text)) == text

    gives_back()


def test_the_merges_of_llama_3_are_as_many_as_in_the_published_file(folder: Path) -> None:
    vocabulary = _llama_3_from_ranks(folder)
    assert len(vocabulary.merges) == 280147
    assert len(vocabulary.tokens) == 128256


def test_ranks_and_the_tokenizer_json_made_of_them_give_one_vocabulary(folder: Path) -> None:
    ours = _llama_3_from_ranks(folder)
    theirs = _vocabulary_from_json("llama-bpe", False, folder)
    assert list(ours.tokens) == list(theirs.tokens)
    assert list(ours.merges) == list(theirs.merges)
    assert ours.types.tolist() == theirs.types.tolist()  # type: ignore[union-attr]
    assert ours.pre == theirs.pre == "llama-bpe"
    assert (ours.eot_id, ours.eog_ids) == (theirs.eot_id, frozenset({128001, 128009})) == (128009, theirs.eog_ids)


def _pieces(text: str, name: str) -> list[str]:
    """What the table's splits make of a text, by the engine that executes them."""
    steps = [pre_tokenizers.Split(Regex(step), "isolated") for step in pre_tokenizer(name, "test").steps]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


@pytest.mark.parametrize(("name", "expression"), [("qwen2", QWEN_2_SPLIT), ("llama-bpe", LLAMA_3_SPLIT)])
def test_splits_equal_another_regex_engine(name: str, expression: str) -> None:
    texts = [text for text, _ in golden_cases("qwen2")] + evaluation_lines()[::10]
    for text in texts:
        assert _pieces(text, name) == regex.findall(expression, text), text


def test_qwen_2_pieces_give_its_golden_ids() -> None:
    """Qwen 2's first tokens are LLaMA 3's without numbers of several digits, in the same order.

    So a part of its vocabulary can be had from the ranks of LLaMA 3; each piece whose ids lie within that part
    must be found in the golden ids where the splits put it.
    """
    lines = (TOKENIZERS / "llama3" / "tokenizer.model").read_bytes().splitlines()
    tokens = [base64.b64decode(line.split()[0]) for line in lines]
    kept = [t for t in tokens[:100000] if not (len(t) > 1 and t.isdigit())]
    ranks = {token: i for i, token in enumerate(kept)}
    program = tiktoken.Encoding("qwen2", pat_str=QWEN_2_SPLIT, mergeable_ranks=ranks, special_tokens={})
    compared = 0
    for text, golden in golden_cases("qwen2"):
        if max(golden, default=0) < len(kept):
            found = [i for piece in _pieces(text, "qwen2") for i in program.encode_ordinary(piece)]
            assert found == golden, text
            compared += 1
    assert compared >= 40


def test_every_golden_file_has_a_test() -> None:
    stems = {path.name.removeprefix("ggml-vocab-").split(".")[0] for path in GOLDEN.glob("*.inp")}
    assert stems == {*_JSON, "qwen2"}

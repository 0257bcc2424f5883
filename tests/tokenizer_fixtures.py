"""Vocabularies for tests: public ones, small trained ones, and tokenizer.json files made by other programs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bitconv.formats.checkpoint import Checkpoint
from bitconv.formats.config import Config, load_json
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.formats.vocabulary import Vocabulary, read_vocabulary
from tests.paths import SHARED

needs_data = pytest.mark.skipif(SHARED is None, reason="needs the public tokenizers beside the checkout")
DATA = (SHARED or Path()) / "data"
TOKENIZERS = DATA / "tokenizers"
GOLDEN = TOKENIZERS / "gguf-vocab"

LLAMA_3_SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN_2_SPLIT = LLAMA_3_SPLIT.replace("{1,3}", "")


def make_checkpoint(folder: Path, files: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Checkpoint:
    """A folder with a config and tokenizer files (bytes, text, JSON values or paths to copy), without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": dict(config or {}), **files}.items():
        if isinstance(content, Path):
            data = content.read_bytes()
        elif isinstance(content, bytes):
            data = content
        else:
            data = (content if isinstance(content, str) else json.dumps(content)).encode("utf-8")
        (folder / name).write_bytes(data)
    return Checkpoint(folder, Config(load_json(folder / "config.json"), str(folder / "config.json")), {}, {})


def through_gguf(vocabulary: Vocabulary, path: Path) -> Vocabulary:
    """What a reader finds after the vocabulary has been written to a file."""
    with GgufWriter(path, "llama", overwrite=True) as writer:
        vocabulary.write(writer)
        writer.declare("nothing", (32,), 0)
        writer.write("nothing", bytes(128))
        writer.finish()
    return read_vocabulary(open_gguf(path))


def golden_vocabulary(name: str) -> Vocabulary:
    return read_vocabulary(open_gguf(GOLDEN / f"ggml-vocab-{name}.gguf"))


def golden_cases(name: str) -> list[tuple[str, list[int]]]:
    """Texts and the ids that llama.cpp's authors recorded from the original tokenizers, without BOS."""
    texts = (GOLDEN / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (GOLDEN / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert lines.pop() == ""
    if len(texts) == len(lines) + 1:
        assert texts.pop() == ""
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


@cache
def evaluation_lines() -> list[str]:
    """The distinct lines of the three evaluation texts, more than 10 000."""
    names = ("wiki.test.raw", "wikitext2_tok_valid.txt", "tinyshakespeare.txt")
    texts = [(DATA / "eval" / name).read_bytes().decode() for name in names]
    return list(dict.fromkeys(line for text in texts for line in text.split("\n")))


def special(text: str, is_special: bool = True, **options: bool) -> AddedToken:
    return AddedToken(text, special=is_special, normalized=False, **options)


def byte_level_json(
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    pre: Any = None,
    added: Sequence[AddedToken] = (),
    *,
    ignore_merges: bool = False,
    bos: str | None = None,
) -> str:
    """A tokenizer.json of byte-level BPE, as the `tokenizers` library writes it.

    pre: the pre-tokenizer (None: the gpt-2 expression); bos: put before each text.
    """
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    byte_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = byte_processor
    if bos is not None:
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([byte_processor, template])
    return str(tokenizer.to_str())


def split(expression: str) -> Any:
    """A split by a regular expression, then the byte mapping."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), byte_level])


def falcon_split() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )


def sentencepiece_json(
    pieces: Sequence[tuple[str, float]], special_ids: Mapping[int, bool], *, metaspace: bool = False
) -> str:
    """A tokenizer.json for SentencePiece pieces (text, score) in the form that LLaMA 2's has.

    special_ids: id of an added token to whether it is special. Merges are every pair of pieces that makes
    a piece, by the score of the result, then as transformers orders them.
    """
    ids = {text: i for i, (text, _) in enumerate(pieces)}
    merges = []
    for text, score in pieces:
        if ids[text] in special_ids:
            continue
        for i in range(1, len(text)):
            left, right = text[:i], text[i:]
            if left in ids and right in ids and not {ids[left], ids[right]} & set(special_ids):
                merges.append((-score, ids[left], ids[right], left, right))
    merges.sort()
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=[m[3:] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_tokens([special(pieces[i][0], is_special) for i, is_special in special_ids.items()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return str(tokenizer.to_str())


@cache
def trained_spm(**options: Any) -> bytes:
    """A small SentencePiece BPE model, trained on a constant text; identity normalisation unless told else."""
    text = Path(__file__).read_text() + Path(pytest.__file__).read_text()
    words = [line for line in text.splitlines() if line.strip()]
    result = io.BytesIO()
    defaults = {
        "vocab_size": 600, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "character_coverage": 1.0, "split_digits": True,
        "allow_whitespace_only_pieces": True, "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=result, **{**defaults, **options}
    )
    return result.getvalue()


def spm_processor(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@cache
def small_bpe() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """A byte-level vocabulary of 512 tokens that covers all bytes, and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers.trainers import BpeTrainer

    trainer = BpeTrainer(vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(Path(__file__).read_text().splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], tuple((left, right) for left, right in model["merges"])

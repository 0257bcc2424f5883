"""A small real tokenizer for random checkpoints: byte-level BPE with hand-made merges."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

SPECIAL = ("<unk>", "<s>", "</s>")
_TEXT = (
    "the quick brown fox jumps over the lazy dog and then the ternary weights are read once in file order "
    "while the activations are rounded to eight bits for each token of the prompt and the next"
)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


@cache
def merges(count: int) -> tuple[tuple[str, str], ...]:
    """The `count` most frequent merges of a constant text, learnt the plain way; ties: the smaller pair."""
    words = [list("Ġ" + word) for word in _TEXT.split()]
    learnt: list[tuple[str, str]] = []
    while len(learnt) < count:
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [best[0] + best[1]]
                i += 1
    return tuple(learnt)


def tokenizer_json(size: int) -> dict[str, Any]:
    """A tokenizer.json of at most `size` tokens: three special ones, the bytes that fit, then merges."""
    alphabet = byte_alphabet()
    printable = [alphabet[byte] for byte in (32, *range(33, 127))]
    first = printable + [symbol for symbol in alphabet if symbol not in printable]
    tokens = [*SPECIAL, *first[: size - len(SPECIAL)]]
    rules = []
    for left, right in merges(min(32, max(0, size - len(tokens)))):
        tokens.append(left + right)
        rules.append([left, right])
    added = [
        {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for i, content in enumerate(SPECIAL)
    ]  # fmt: skip
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    special, sequence = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing", "single": [special, sequence],
            "pair": [special, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": bos},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": rules,
        },
    }  # fmt: skip


def write_tokenizer(path: Path, size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE with at most `size` tokens."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "add_bos_token": True,
        "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False, "chat_template": _TEMPLATE,
    }  # fmt: skip
    text = json.dumps(tokenizer_json(size), ensure_ascii=False)
    (path / "tokenizer.json").write_text(text, encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

"""The pre-tokenizers that GGUF files name: how text is cut before byte-level BPE merges, in one place.

A GGUF file does not hold the expressions, only a name under `tokenizer.ggml.pre`; this table gives the name
its meaning. Source: docs/FORMAT.md, tokenizer keys.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from bitconv.errors import UnsupportedError

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FALCON_3_SIZE = 131072
GPT_2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
FALCON_PUNCTUATION: Final = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True)
class PreTokenizer:
    """What one name stands for.

    steps: expressions applied one after the other; each splits what the one before left, and what it does
    not match stays as a piece. ignore_merges: a piece that is a token is taken whole. add_bos: what the name
    implies for files without `tokenizer.ggml.add_bos_token`. disputed: runtimes give the name two meanings.
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    aliases: tuple[str, ...] = ()
    disputed: bool = False


_TABLE: Final = (
    PreTokenizer("default", (_PUNCTUATION, GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
    PreTokenizer("gpt-2", (GPT_2,)),
    PreTokenizer("llama-bpe", (_LLAMA_3,), True, True, ("llama3", "llama-v3")),
    PreTokenizer("qwen2", (_LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"),)),
    PreTokenizer("falcon", (FALCON_PUNCTUATION, GPT_2, "[0-9][0-9][0-9]")),
    # as bitnet.cpp understands the two names; llama.cpp takes falcon3 for llama-bpe, others know neither
    PreTokenizer("falcon3", (FALCON_PUNCTUATION, GPT_2, "[0-9]"), disputed=True),
    PreTokenizer("falcon_e", (FALCON_PUNCTUATION, GPT_2, "[0-9]"), disputed=True),
)
_BY_NAME: Final = {name: entry for entry in _TABLE for name in (entry.name, *entry.aliases)}


def pre_tokenizer(name: str, where: str) -> PreTokenizer:
    """Look a name (or an alias) up; UnsupportedError, naming `where` and the known names, for another."""
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(pre_tokenizer_names())
        raise UnsupportedError(f"{where}: pre-tokenizer {name[:80]!r} is not known; known are {known}") from None


def implies_bos(name: str | None) -> bool:
    """Say what a name, known or not, implies for files that do not say whether BOS is added."""
    return name in _BY_NAME and _BY_NAME[name].add_bos


def pre_tokenizer_names() -> Collection[str]:
    """Return the names, without aliases, in the order of the table."""
    return [entry.name for entry in _TABLE]


def named_for(steps: tuple[str, ...], n_tokens: int) -> PreTokenizer | None:
    """Return the entry that stands for exactly these splits, or None.

    falcon3 and falcon_e are the same splits; Falcon3 is known by its 131072 tokens.
    """
    for entry in _TABLE:
        if entry.steps == steps and not (entry.name == "falcon3" and n_tokens != _FALCON_3_SIZE):
            return entry
    return None

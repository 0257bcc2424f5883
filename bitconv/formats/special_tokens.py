"""Which tokens are special in a checkpoint: what its JSON files say beside the tokenizer itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bitconv.errors import BitconvWarning, FormatError
from bitconv.formats.checkpoint import Checkpoint
from bitconv.formats.tiktoken_ranks import LLAMA_3_RANKS, add_llama_3_special
from bitconv.formats.token_table import TokenTable
from bitconv.formats.vocabulary import BPE, TokenType, end_ids

SETTINGS: Final = "tokenizer_config.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class SpecialIds:
    """The special ids of a vocabulary, as its GGUF keys name them; `eog` holds every end of a generation."""

    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    unk: int | None
    pad: int | None
    eog: frozenset[int]
    add_bos: bool
    add_eos: bool


def add_extra_tokens(table: TokenTable, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Enter the tokens that a tokenizer.model does not hold.

    They come from added_tokens_decoder in tokenizer_config.json and from added_tokens.json; a vocabulary of
    LLaMA 3's ranks without any gets the 256 standard ones. FormatError when an entry is malformed.
    """
    where = checkpoint.path / SETTINGS
    specials = set(_special_texts(settings))
    before = len(table.texts)
    for key, entry in (_typed(settings, "added_tokens_decoder", dict, where) or {}).items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not key.isdecimal():
            raise FormatError(f"{where}: added_tokens_decoder: {key[:80]!r} is not an id with a content")
        _add(table, int(key), content, bool(entry.get("special")) or content in specials)
    for content, token_id in (checkpoint.read_json("added_tokens.json") or {}).items():
        if type(token_id) is not int or token_id < 0:
            raise FormatError(f"{checkpoint.path / 'added_tokens.json'}: {content[:80]!r} has no id")
        if table.types.get(token_id) != TokenType.CONTROL:
            _add(table, token_id, content, content in specials)
    if table.model == BPE and len(table.texts) == before == LLAMA_3_RANKS:
        add_llama_3_special(table)


def settle(table: TokenTable, checkpoint: Checkpoint, settings: Mapping[str, Any], vocab_size: int) -> SpecialIds:
    """Settle the special ids: what tokenizer_config.json names, then the tokenizer's own, then the model's.

    A model's configuration may list several ids that end a generation; all of them do.
    """
    ids = table.ids()
    named = {key: ids.get(text) for key, text in _named_texts(settings)}
    model = {
        key: list(_model_ids(checkpoint, key, vocab_size)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    prefix, suffix = table.prefix, table.suffix
    bos = _first(*(prefix or ())[:1], named.get("bos_token"), table.bos_id, *model["bos_token_id"])
    eos = _first(named.get("eos_token"), table.eos_id, *model["eos_token_id"])
    special = [i for i, kind in table.types.items() if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    eot, eom = end_ids(table.texts, special)
    add_bos = bool(prefix) if prefix is not None else _flag(settings, "add_bos_token", True)
    add_eos = bool(suffix) if suffix is not None else _flag(settings, "add_eos_token", False)
    if len(prefix or ()) > 1 or (suffix and suffix != [eos]):
        _warn(
            f"{table.where}: puts the tokens {prefix} before a text and {suffix} after it; a GGUF file says "
            f"only whether BOS ({bos}) and EOS ({eos}) are added"
        )
        add_eos = suffix == [eos]
    ends = (eos, *model["eos_token_id"], *eot, *eom)
    return SpecialIds(
        bos=bos,
        eos=eos,
        eot=_first(*eot),
        eom=_first(*eom),
        unk=_first(named.get("unk_token"), table.unk_id),
        pad=_first(named.get("pad_token"), table.pad_id, *model["pad_token_id"]),
        eog=frozenset(i for i in ends if i is not None),
        add_bos=add_bos and bos is not None,
        add_eos=add_eos and eos is not None,
    )


def _add(table: TokenTable, token_id: int, content: str, special: bool) -> None:
    known = table.types.get(token_id)
    if known in (TokenType.UNKNOWN, TokenType.CONTROL) and table.texts[token_id] == content:
        return
    table.add(token_id, content, TokenType.CONTROL if special else TokenType.USER_DEFINED)


def _special_texts(settings: Mapping[str, Any]) -> Iterator[str]:
    entries = [settings.get(key) for key in _NAMED]
    for key in _LISTS:
        listed = settings.get(key)
        entries += listed if isinstance(listed, list) else []
    yield from filter(None, map(_text, entries))


def _named_texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in _NAMED:
        text = _text(settings.get(key))
        if text is not None:
            yield key, text


def _text(entry: Any) -> str | None:
    """A token is written as a string, or as an object with its content."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _model_ids(checkpoint: Checkpoint, key: str, vocab_size: int) -> Iterator[int]:
    """Yield the ids under a key of generation_config.json, then of config.json: one number, or a list."""
    for filename in ("generation_config.json", "config.json"):
        value = (checkpoint.read_json(filename) or {}).get(key)
        if filename == "config.json" and value is not None:
            checkpoint.config.read(type(value), key, None)  # it has been heeded, not ignored
        for token_id in value if isinstance(value, list) else [value]:
            if type(token_id) is int and 0 <= token_id < vocab_size:
                yield token_id
            elif token_id not in (None, -1):
                _warn(
                    f"{checkpoint.path / filename}: {key} is {str(token_id)[:80]}, which is no id below "
                    f"{vocab_size}; ignored"
                )


def _typed(settings: Mapping[str, Any], key: str, kind: type, where: Any) -> Any:
    value = settings.get(key)
    if value is not None and type(value) is not kind:
        raise FormatError(f"{where}: {key} must be a {kind.__name__}, found {str(value)[:80]}")
    return value


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = _typed(settings, key, bool, SETTINGS)
    return default if value is None else bool(value)


def _first(*candidates: int | None) -> int | None:
    return next((i for i in candidates if i is not None), None)


def _warn(message: str) -> None:
    warnings.warn(message, BitconvWarning, stacklevel=3)

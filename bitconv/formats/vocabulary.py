"""What the `tokenizer.*` keys of a GGUF file hold: tokens, their types, special ids, the chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats.pretokenizers import implies_bos

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile
    from bitconv.formats.gguf_writer import GgufWriter

SPM, BPE = "llama", "gpt2"
"""The two values of tokenizer.ggml.model: SentencePiece, and byte-level byte-pair encoding."""

LLAMA_3_SIZE: Final = 128256
_PREFIX = "tokenizer.ggml."
_EXPRESSED = "bitconv.tokenizer_json_is_expressed"
_NONE = 0xFFFFFFFF  # -1 in the eyes of writers that had no id to write

EOT_NAMES: Final = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<EOT>", "_<EOT>",
)  # fmt: skip
"""Tokens that end a turn in published chat models, most specific first."""
EOM_NAMES: Final = ("<|eom_id|>",)


def _byte_letters() -> str:
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return "".join(chr(byte if byte in own else 0x100 + others.index(byte)) for byte in range(256))


BYTE_LETTERS: Final = _byte_letters()
"""How byte-level BPE writes the bytes 0 to 255: printable Latin-1 as itself, the rest from U+0100 on."""


class TokenType(IntEnum):
    """The values of tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as a GGUF file describes it.

    model: "llama" (SentencePiece) or "gpt2" (byte-level BPE); pre: the named pre-tokenizer of the latter.
    tokens: in the order of their ids; scores: float32 [tokens]; types: int32 [tokens], values of TokenType;
    merges: "left right", best first. eog_ids: every id that ends a generation, eos, eot and eom among them.
    huggingface_json: the text of tokenizer.json, which is executed where it is present, unless json_is_expressed: then
    the other fields say the same, and building the tokenizer from them takes a fraction of the time.
    """

    model: str
    tokens: Sequence[str]
    pre: str | None = None
    scores: np.ndarray | None = None
    types: np.ndarray | None = None
    merges: Sequence[str] = ()
    bos_id: int | None = None
    eos_id: int | None = None
    eot_id: int | None = None
    eom_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    eog_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_template: str | None = None
    huggingface_json: str | None = None
    json_is_expressed: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def write(self, writer: GgufWriter) -> None:
        """Add the tokenizer keys to a file under construction."""
        for key, value, kind in self._keys():
            if value is not None:
                writer.add(key, value, kind)

    def _keys(self) -> Iterable[tuple[str, Any, str]]:
        named = {self.eos_id, self.eot_id, self.eom_id}
        yield _PREFIX + "model", self.model, "str"
        yield _PREFIX + "pre", self.pre, "str"
        yield _PREFIX + "tokens", self.tokens, "arr[str]"
        yield _PREFIX + "scores", self.scores, "arr[f32]"
        yield _PREFIX + "token_type", self.types, "arr[i32]"
        yield _PREFIX + "merges", self.merges or None, "arr[str]"
        for name, value in self._ids():
            yield _PREFIX + name, value, "u32"
        yield "bitconv.eog_token_ids", sorted(self.eog_ids - named) or None, "arr[i32]"
        yield _PREFIX + "add_bos_token", self.add_bos, "bool"
        yield _PREFIX + "add_eos_token", self.add_eos, "bool"
        yield _PREFIX + "add_space_prefix", self.add_space_prefix if self.model == SPM else None, "bool"
        yield "tokenizer.chat_template", self.chat_template, "str"
        yield "tokenizer.huggingface.json", self.huggingface_json, "str"
        yield _EXPRESSED, self.json_is_expressed or None, "bool"

    def _ids(self) -> Iterable[tuple[str, int | None]]:
        yield "bos_token_id", self.bos_id
        yield "eos_token_id", self.eos_id
        yield "eot_token_id", self.eot_id
        yield "eom_token_id", self.eom_id
        yield "unknown_token_id", self.unk_id
        yield "padding_token_id", self.pad_id


def read_vocabulary(gguf: GgufFile) -> Vocabulary:
    """Read and validate the tokenizer keys of a GGUF file.

    A file without `tokenizer.ggml.pre` and with the 128256 tokens of LLaMA 3 counts as llama-bpe, as the
    published 2B-4T file needs. Raises FormatError naming the key, UnsupportedError for another model.
    """
    model = gguf.get(_PREFIX + "model", str)
    if model not in (SPM, BPE):
        raise UnsupportedError(
            f"{gguf.path}: tokenizer.ggml.model is {model[:80]!r}; supported are "
            f"{SPM!r} (SentencePiece) and {BPE!r} (byte-level BPE)"
        )
    tokens: Sequence[str] = gguf.get(_PREFIX + "tokens", list)
    if not len(tokens):
        raise FormatError(f"{gguf.path}: key tokenizer.ggml.tokens is empty")
    pre = gguf.get(_PREFIX + "pre", str, None)
    if pre is None and model == BPE and len(tokens) == LLAMA_3_SIZE:
        pre = "llama-bpe"
    ids = {key: _read_id(gguf, name, len(tokens)) for key, name in _ID_KEYS.items()}
    if model == SPM:
        _spm_defaults(gguf, ids, tokens)
    types = _read_types(gguf, len(tokens))
    eot, eom = _ends_by_name(tokens, types)
    eog = {ids["eos_id"], ids["eot_id"], ids["eom_id"], *eot, *eom, *_read_eog(gguf, len(tokens))} - {None}
    ids["eot_id"] = next(iter(eot), None) if ids["eot_id"] is None else ids["eot_id"]
    ids["eom_id"] = next(iter(eom), None) if ids["eom_id"] is None else ids["eom_id"]
    special = _special_types(types, tokens, [ids["bos_id"], *eog])
    return Vocabulary(
        model=model,
        tokens=tokens,
        pre=pre,
        scores=_read_scores(gguf, len(tokens), required=model == SPM),
        types=special,
        merges=gguf.get(_PREFIX + "merges", list) if model == BPE else (),
        eog_ids=frozenset(int(i) for i in eog if i is not None),
        add_bos=gguf.get(_PREFIX + "add_bos_token", bool, model == SPM or implies_bos(pre)),
        add_eos=gguf.get(_PREFIX + "add_eos_token", bool, False),
        add_space_prefix=gguf.get(_PREFIX + "add_space_prefix", bool, model == SPM) and model == SPM,
        chat_template=gguf.get("tokenizer.chat_template", str, None),
        huggingface_json=gguf.get("tokenizer.huggingface.json", str, None),
        json_is_expressed=gguf.get(_EXPRESSED, bool, False) and model == BPE and np.array_equal(types, special),
        **ids,
    )


_ID_KEYS: Final = {
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "eot_id": "eot_token_id",
    "eom_id": "eom_token_id",
    "unk_id": "unknown_token_id",
    "pad_id": "padding_token_id",
}


def _read_id(gguf: GgufFile, name: str, n_tokens: int) -> int | None:
    value = gguf.get(_PREFIX + name, int, None)
    if value is None or value in (-1, _NONE):
        return None
    if not 0 <= value < n_tokens:
        raise FormatError(f"{gguf.path}: key {_PREFIX}{name} is {value}; there are {n_tokens} tokens")
    return value


def _spm_defaults(gguf: GgufFile, ids: dict[str, int | None], tokens: Sequence[str]) -> None:
    """Old SentencePiece files leave out the ids that every such model once had."""
    for key, default, text in (("unk_id", 0, "<unk>"), ("bos_id", 1, "<s>"), ("eos_id", 2, "</s>")):
        absent = _PREFIX + _ID_KEYS[key] not in gguf.metadata
        if absent and len(tokens) > default and tokens[default] == text:
            ids[key] = default


def _numbers(gguf: GgufFile, name: str, n_tokens: int, kinds: str) -> np.ndarray | None:
    values = gguf.get(_PREFIX + name, np.ndarray, None)
    if values is None:
        return None
    if values.dtype.kind not in kinds:
        raise FormatError(f"{gguf.path}: key {_PREFIX}{name} is of type {gguf.metadata_types[_PREFIX + name]}")
    if len(values) != n_tokens:
        raise FormatError(f"{gguf.path}: key {_PREFIX}{name} has {len(values)} values for {n_tokens} tokens")
    return values


def _read_types(gguf: GgufFile, n_tokens: int) -> np.ndarray:
    values = _numbers(gguf, "token_type", n_tokens, "iu")
    if values is None:
        return np.full(n_tokens, TokenType.NORMAL, np.int32)
    wrong = np.flatnonzero((values < TokenType.NORMAL) | (values > TokenType.BYTE))
    if len(wrong):
        token = int(wrong[0])
        raise FormatError(
            f"{gguf.path}: key {_PREFIX}token_type says {values[token]} for token {token}; 1 to 6 are defined"
        )
    return values.astype(np.int32)


def _read_scores(gguf: GgufFile, n_tokens: int, *, required: bool) -> np.ndarray | None:
    values = _numbers(gguf, "scores", n_tokens, "f")
    if values is None:
        if required:
            raise FormatError(f"{gguf.path}: key {_PREFIX}scores is missing; a SentencePiece vocabulary needs it")
        return None
    if np.isnan(values).any():
        raise FormatError(f"{gguf.path}: key {_PREFIX}scores holds NaN for token {int(np.isnan(values).argmax())}")
    return values.astype(np.float32)


def _read_eog(gguf: GgufFile, n_tokens: int) -> set[int]:
    values = gguf.get("bitconv.eog_token_ids", np.ndarray, None)
    if values is None:
        return set()
    if values.dtype.kind not in "iu" or (len(values) and not (0 <= values.min() <= values.max() < n_tokens)):
        raise FormatError(f"{gguf.path}: key bitconv.eog_token_ids holds more than ids below {n_tokens}")
    return {int(value) for value in values}


def _ends_by_name(tokens: Sequence[str], types: np.ndarray) -> tuple[list[int], list[int]]:
    special = (types == TokenType.CONTROL) | (types == TokenType.USER_DEFINED)
    candidates = set(np.flatnonzero(special).tolist())
    if len(tokens) == LLAMA_3_SIZE:  # the last 256 are special, whatever a file says of their types
        candidates.update(range(LLAMA_3_SIZE - 256, LLAMA_3_SIZE))
    return end_ids(tokens, candidates)


def end_ids(tokens: Sequence[str] | Mapping[int, str], candidates: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return the ids, among `candidates`, of tokens that by their name end a turn, and a message.

    Most specific name first. A generation must stop there even where no key of the file says so.
    """
    found = {tokens[int(i)]: int(i) for i in candidates}
    return [found[n] for n in EOT_NAMES if n in found], [found[n] for n in EOM_NAMES if n in found]


def _special_types(types: np.ndarray, tokens: Sequence[str], ids: Iterable[int | None]) -> np.ndarray:
    """Mark special ids written like <this> as control tokens where a careless writer called them normal."""
    types = types.copy()
    for i in ids:
        if i is None or types[i] != TokenType.NORMAL:
            continue
        if tokens[i].startswith("<") and tokens[i].endswith(">"):
            types[i] = TokenType.CONTROL
    types.setflags(write=False)
    return types

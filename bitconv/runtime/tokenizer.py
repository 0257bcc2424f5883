"""Text to token ids and back, from the vocabulary of a GGUF file."""

from __future__ import annotations

import codecs
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from bitconv import _text
from bitconv.errors import BitconvWarning, FormatError, InputError
from bitconv.formats.gguf_metadata import strings_of
from bitconv.formats.huggingface_json import KEY, check_same_tokens, guarded, load
from bitconv.formats.pretokenizers import PreTokenizer, pre_tokenizer
from bitconv.formats.vocabulary import BPE, BYTE_LETTERS, SPM, TokenType, Vocabulary
from bitconv.runtime.spm import SPACE, SentencePieceEncoder, alternatives, byte_value, cached, split_by


class _Encoder(Protocol):
    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Encode text; the texts of control tokens become those tokens only with parse_special."""


class Tokenizer:
    """Encodes and decodes with one vocabulary.

    tokenizer.json is executed where the vocabulary holds it and its other fields do not say the same; else the
    tokenizer is built from tokens, merges, scores and the named pre-tokenizer. Special ids and the BOS and EOS rules
    come from the vocabulary alone. Raises FormatError when tokenizer.json is malformed or contradicts the tokens,
    UnsupportedError for an unknown pre-tokenizer.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokens = list(vocabulary.tokens)
        self._types = _token_types(vocabulary)
        self._kinds: list[int] = self._types.tolist()
        self._bytes: dict[int, bytes] = {}
        self._encoder = self._make_encoder()

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turn text into ids.

        add_special: BOS and EOS are added as the vocabulary says, but never doubled. parse_special: the texts
        of control tokens become those tokens. Halves of surrogate pairs count as U+FFFD.
        """
        ids = self._encoder.encode(_well_formed(text), parse_special) if text else []
        v = self.vocabulary
        if add_special and v.add_bos and v.bos_id is not None and ids[:1] != [v.bos_id]:
            ids.insert(0, v.bos_id)
        if add_special and v.add_eos and v.eos_id is not None and ids[-1:] != [v.eos_id]:
            ids.append(v.eos_id)
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Turn ids into text; bytes that are no UTF-8 become U+FFFD, control tokens vanish unless kept.

        The space that encoding puts before the text is taken away. Raises InputError for an id outside.
        """
        data = b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids)
        if self.vocabulary.add_space_prefix:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def detokenize(self, ids: Sequence[int]) -> str:
        """Undo `encode`: control tokens in full, but neither the BOS nor the EOS that it adds.

        With byte-level BPE this gives back every text, except that a BOS which the text itself began with is
        one that was not added.
        """
        v = self.vocabulary
        ids = list(ids)
        if v.add_bos and v.bos_id is not None and ids[:1] == [v.bos_id]:
            del ids[0]
        if v.add_eos and v.eos_id is not None and ids[-1:] == [v.eos_id]:
            del ids[-1]
        return self.decode(ids, skip_special=False)

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """Return what one token adds to the text, perhaps a part of a character; b"" for control tokens."""
        token_id = int(token_id)
        if not 0 <= token_id < len(self._tokens):
            raise InputError(f"token id {token_id} is outside the vocabulary of {len(self._tokens)} tokens")
        kind = self._kinds[token_id]
        if kind == TokenType.UNUSED or (skip_special and kind in (TokenType.CONTROL, TokenType.UNKNOWN)):
            return b""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = _token_bytes(self._tokens[token_id], kind, self.vocabulary.model)
        return data

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """Return a decoder for ids that arrive one by one.

        after: the ids that went before, such as a prompt; where they hold text, a leading space of what
        follows belongs to the text and is kept.
        """
        strip = self.vocabulary.add_space_prefix and not any(self.token_bytes(i) for i in after)
        return TextStream(self.token_bytes, strip)

    def _make_encoder(self) -> _Encoder:
        v = self.vocabulary
        if v.huggingface_json is not None and not v.json_is_expressed:
            return _HuggingFace(v.huggingface_json, self._tokens, self._kinds)
        if v.model == SPM:
            if v.scores is None:
                raise FormatError("a SentencePiece vocabulary needs tokenizer.ggml.scores, which are missing")
            pieces = SentencePieceEncoder(self._tokens, v.scores, self._types, v.unk_id)
            return _SentencePiece(self._tokens, self._types, pieces, v.add_space_prefix)
        return _ByteLevel(v, self._types, _SpecialTokens(self._tokens, self._types))


class TextStream:
    """Collects tokens and gives out text in whole characters; what it gives out equals `Tokenizer.decode`."""

    def __init__(self, token_bytes: Callable[[int], bytes], strip_space: bool) -> None:
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add a token and return the characters that it completes."""
        data = self._token_bytes(token_id)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an incomplete character, else nothing."""
        return self._decoder.decode(b"", final=True)


class _HuggingFace:
    """Executes a tokenizer.json, which must have exactly the vocabulary's tokens under the same ids."""

    def __init__(self, text: str, tokens: list[str], kinds: list[int]) -> None:
        self._tokenizer = load(text, KEY)
        check_same_tokens(self._tokenizer, tokens, kinds)
        self._lock = threading.Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:  # the switch belongs to the tokenizer, not to the call
            self._tokenizer.encode_special_tokens = not parse_special
            encode = self._tokenizer.encode
            ids: list[int] = guarded(KEY, lambda: encode(text, add_special_tokens=False).ids)
            return ids


class _ByteLevel:
    """Byte-level BPE, rebuilt from tokens, merges and a pre-tokenizer."""

    def __init__(self, vocabulary: Vocabulary, kinds: np.ndarray, special: _SpecialTokens) -> None:
        import tokenizers  # not before it is needed

        pre = _chosen_pre(vocabulary)
        self._special = special
        self._normal = kinds == TokenType.NORMAL
        self._ignore_merges = pre.ignore_merges
        self._bpe = _bpe(vocabulary, kinds)
        steps = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(step), behavior="isolated") for step in pre.steps]
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._split: Any = tokenizers.pre_tokenizers.Sequence([*steps, byte_level])
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        for part, special in self._special.split(text, parse_special):
            if special is None:
                for word, _ in self._split.pre_tokenize_str(part):
                    ids += cached(self._cache, word, self._word)
            else:
                ids.append(special)
        return ids

    def _word(self, word: str) -> list[int]:
        if self._ignore_merges and (whole := self._bpe.token(word)) >= 0 and self._normal[whole]:
            return [whole]
        return self._bpe.encode(word)


class _SentencePiece:
    """SentencePiece pieces between control tokens; each stretch of text gets the space prefix of its own."""

    def __init__(self, tokens: list[str], kinds: np.ndarray, pieces: SentencePieceEncoder, space_prefix: bool) -> None:
        # user-defined tokens are left to the encoder: they do not interrupt the text
        controls = np.where(kinds == TokenType.USER_DEFINED, TokenType.NORMAL, kinds)
        self._special = _SpecialTokens(tokens, controls)
        self._pieces = pieces
        self._prefix = " " if space_prefix else ""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        for part, special in self._special.split(text, parse_special):
            if special is None:
                ids += self._pieces.encode(self._prefix + part)
            else:
                ids.append(special)
        return ids


class _SpecialTokens:
    """Finds the tokens that are matched as whole texts before anything else."""

    def __init__(self, tokens: list[str], kinds: np.ndarray) -> None:
        def ids_of(*wanted: TokenType) -> dict[str, int]:
            return {tokens[i]: i for i in np.flatnonzero(np.isin(kinds, wanted)).tolist() if tokens[i]}

        self._always = ids_of(TokenType.USER_DEFINED)
        self._all = ids_of(TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNKNOWN)
        self._pattern_always = alternatives(list(self._always))
        self._pattern_all = alternatives(list(self._all))

    def split(self, text: str, parse_special: bool) -> Iterator[tuple[str, int | None]]:
        """Cut text into (part, its id, or None for ordinary text)."""
        pattern = self._pattern_all if parse_special else self._pattern_always
        for part, matched in split_by(pattern, text):
            yield part, self._all[part] if matched else None


def _token_types(vocabulary: Vocabulary) -> np.ndarray:
    if vocabulary.types is None:
        return np.full(len(vocabulary), TokenType.NORMAL, np.int32)
    return vocabulary.types


def _chosen_pre(vocabulary: Vocabulary) -> PreTokenizer:
    if vocabulary.pre is None:
        warnings.warn(
            "the file names no pre-tokenizer (tokenizer.ggml.pre): the default splits are used, which may "
            "not be the model's; convert the checkpoint anew",
            BitconvWarning,
            stacklevel=2,
        )
    pre = pre_tokenizer(vocabulary.pre or "default", "tokenizer.ggml.pre")
    if pre.disputed:
        warnings.warn(
            f"runtimes disagree about the pre-tokenizer {pre.name}: its splits are bitnet.cpp's here; a file "
            "that holds the model's tokenizer.json is exact",
            BitconvWarning,
            stacklevel=2,
        )
    return pre


def _bpe(vocabulary: Vocabulary, kinds: np.ndarray) -> _text.Bpe:
    """Build the merging; FormatError unless every merge is two tokens that make a third."""
    usable = (kinds != TokenType.UNUSED).astype(np.uint8)
    merges = vocabulary.merges
    try:
        # byte-level tokens hold no space of their own: the byte alphabet writes it as another letter
        return _text.Bpe(strings_of(vocabulary.tokens), usable, strings_of(merges))
    except ValueError as error:
        index = int(error.args[0])
        raise FormatError(
            f"tokenizer.ggml.merges: entry {index}, {merges[index][:80]!r}, is not two tokens that make a third"
        ) from None
    except OverflowError as error:
        raise FormatError(f"tokenizer.ggml.tokens or merges: {error}: they are made to be slow") from None


def _well_formed(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


_BYTE_OF = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def _token_bytes(token: str, kind: int, model: str) -> bytes:
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
        return token.encode("utf-8")
    if model == BPE:
        if kind != TokenType.USER_DEFINED and all(letter in _BYTE_OF for letter in token):
            return bytes(_BYTE_OF[letter] for letter in token)
        return token.encode("utf-8")
    value = byte_value(token) if kind == TokenType.BYTE else None
    return token.replace(SPACE, " ").encode("utf-8") if value is None else bytes([value])

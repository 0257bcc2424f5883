"""Reads a SentencePiece tokenizer.model: the few protobuf fields that matter, without a protobuf library."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats.token_table import TokenTable
from bitconv.formats.vocabulary import SPM, TokenType

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2
_KINDS = {int(kind): kind for kind in TokenType}
_SCORE = struct.Struct("<f")
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_Value = int | bytes


def read_spm_model(data: bytes, where: str) -> TokenTable:
    """Read a serialized SentencePiece model of the BPE kind without text normalisation.

    Raises FormatError when it is malformed, UnsupportedError for other kinds and for normalisation, which a
    GGUF file cannot hold.
    """
    table = TokenTable(SPM, where, pre="default")
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for number, value in _fields(data, where):
        if number == 1:
            _add_piece(table, _message(value, where))
        elif number == 2:
            trainer = dict(_fields(_message(value, where), where))
        elif number == 3:
            normalizer = dict(_fields(_message(value, where), where))
    if not table.texts:
        raise FormatError(f"{where}: holds no pieces")
    _refuse_unsupported(trainer, normalizer, where)
    table.add_space_prefix = bool(normalizer.get(3, 1))
    table.unk_id = _id(trainer.get(40, 0), table)
    table.bos_id = _id(trainer.get(41, 1), table)
    table.eos_id = _id(trainer.get(42, 2), table)
    table.pad_id = _id(trainer.get(43, -1), table)
    return table


def _refuse_unsupported(trainer: dict[int, _Value], normalizer: dict[int, _Value], where: str) -> None:
    kind = trainer.get(3, 1)
    if kind != _BPE:
        name = _MODEL_TYPES.get(kind if isinstance(kind, int) else 0, str(kind))
        raise UnsupportedError(f"{where}: a SentencePiece model of type {name}; supported is bpe")
    found = []
    if normalizer.get(2):
        found.append("a normalisation table")
    if normalizer.get(4, 1):
        found.append("remove_extra_whitespaces")
    if not normalizer.get(5, 1):
        found.append("escape_whitespaces = false")
    if trainer.get(24, 0):
        found.append("treat_whitespace_as_suffix")
    if found:
        raise UnsupportedError(
            f"{where}: uses {', '.join(found)}, which a GGUF file cannot hold; supported is identity "
            "normalisation. A tokenizer.json beside it would be used instead"
        )


def _add_piece(table: TokenTable, data: bytes) -> None:
    index = len(table.texts)
    try:
        encoded, packed, number = _usual_piece(data) or _any_piece(data, table.where)
        text = encoded.decode("utf-8")
        kind = _KINDS[number] if number in _KINDS else TokenType(number)
        score = _SCORE.unpack(packed)[0]
    except (ValueError, struct.error) as error:
        raise FormatError(f"{table.where}: piece {index} is malformed: {error}") from error
    if math.isnan(score):
        raise FormatError(f"{table.where}: piece {index} has the score NaN")
    if kind == TokenType.USER_DEFINED:
        text = text.replace("\u2581", " ")  # as llama.cpp expects them: matched before spaces are replaced
    table.add(index, text, kind, score)


def _any_piece(data: bytes, where: str) -> tuple[bytes, bytes, int]:
    """Return text, score and kind of a piece, as they are stored."""
    values = dict(_fields(data, where))
    kind = int(values.get(3, 1))
    return _message(values.get(1, b""), where), _message(values.get(2, bytes(4)), where), kind


def _usual_piece(data: bytes) -> tuple[bytes, bytes, int] | None:
    """Return the same of a piece of short text, score and perhaps a kind, in a fifth of the time; None of others."""
    end = 2 + data[1] if len(data) > 1 and data[0] == 0x0A and data[1] < 0x80 else 0
    if not end or data[end : end + 1] != b"\x15":
        return None
    if len(data) == end + 5:
        return data[2:end], data[end + 1 :], 1
    if len(data) == end + 7 and data[end + 5] == 0x18 and data[end + 6] < 0x80:
        return data[2:end], data[end + 1 : end + 5], data[end + 6]
    return None


def _id(value: _Value, table: TokenTable) -> int | None:
    # -1 means absent; protobuf writes negative numbers as 64-bit two's complement
    return value if isinstance(value, int) and 0 <= value < len(table.texts) else None


def _message(value: _Value, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError(f"{where}: a field has the wrong type; this is no SentencePiece model")
    return value


def _fields(data: bytes, where: str) -> Iterator[tuple[int, _Value]]:
    """Walk a protobuf message: (field number, value); 32- and 64-bit values and nested messages as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position, where)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(data, position, where)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position, where)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise FormatError(f"{where}: wire type {kind} at byte {position}; this is no SentencePiece model")
        if length > len(data) - position:
            raise FormatError(f"{where}: a field of {length} bytes at byte {position} runs past the end")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise FormatError(f"{where}: a number at byte {position} does not end; this is no SentencePiece model")

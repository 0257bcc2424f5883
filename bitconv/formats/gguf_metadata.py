"""The key-value part of a GGUF file: a cursor that stays inside it, and values decoded when asked for."""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, overload

import numpy as np

from bitconv import _text
from bitconv.errors import FormatError, UnsupportedError

MAX_NAME = 0xFFFF  # bytes of a key or tensor name; the standard's own limit for keys
MAX_ARRAY_STRINGS = 2 << 20  # over all arrays of a file; large vocabularies and merge lists stay below 1 M
MAX_TEXT = 128 << 20  # bytes of text outside arrays; the whole tokenizer.json of a large vocabulary has 20 MB
_AT_ONCE = 4096  # strings decoded by one call
_DECODE_NOW = 4096  # longer strings are decoded when asked for, so that opening allocates little

U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
_SCALARS: Final = {
    0: ("u8", "<B", "u1"), 1: ("i8", "<b", "i1"), 2: ("u16", "<H", "<u2"), 3: ("i16", "<h", "<i2"),
    4: ("u32", "<I", "<u4"), 5: ("i32", "<i", "<i4"), 6: ("f32", "<f", "<f4"), 7: ("bool", "<B", "?"),
    10: ("u64", "<Q", "<u8"), 11: ("i64", "<q", "<i8"), 12: ("f64", "<d", "<f8"),
}  # fmt: skip
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """The strings of one array, each decoded from the map when asked for.

    starts: as `_text.walk_strings` gives them. A string that is not UTF-8 raises FormatError naming key and index at
    that moment.
    """

    def __init__(self, where: str, data: mmap.mmap, starts: np.ndarray) -> None:
        self._where, self._data, self._starts = where, data, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1 and first < last:
                return self._several(first, last)
            return [self[i] for i in range(first, last, step)]
        return self._decode(index)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self._several(first, min(first + _AT_ONCE, len(self)))

    def raw(self, index: int) -> bytes:
        """Return the bytes of one string."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return self._data[int(self._starts[index]) : int(self._starts[index + 1]) - 8]

    @property
    def strings(self) -> _text.Strings:
        """The data, and where its strings start."""
        return self._data, self._starts

    def _several(self, first: int, last: int) -> list[str]:
        try:
            return _text.decode_strings(self._data, self._starts, first, last)
        except UnicodeDecodeError:
            return [self._decode(i) for i in range(first, last)]  # which says where

    def _decode(self, index: int) -> str:
        try:
            return self.raw(index).decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{self._where}, string {index}"
            raise FormatError(f"{where}: not UTF-8 at its byte {error.start}") from error

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}>"


def strings_of(texts: Sequence[str]) -> _text.Strings:
    """Return strings as `_text` takes them: where they lie in the map, or laid out anew."""
    return texts.strings if isinstance(texts, StringArray) else _text.as_strings(texts)


class Cursor:
    """Reads the header front to back; every read is checked against the length of the file first."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path = data, path
        self.position = 0
        self.size = len(data)
        self._strings_left = MAX_ARRAY_STRINGS
        self._text_left = MAX_TEXT

    def fail(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: {what}")

    def need(self, count: int, what: str) -> int:
        """Claim `count` bytes and return where they start."""
        start = self.position
        if count > self.size - start:
            raise self.fail(
                f"{what} needs {count} bytes at offset {start} but the file ends after {self.size} "
                "(truncated download?)"
            )
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.need(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.need(8, what))[0])

    def name(self, what: str) -> str:
        """Read a key or tensor name: 1 to 65535 bytes of UTF-8, printable (it will be shown on terminals)."""
        at = self.position
        length = self.u64(what)
        if not 0 < length <= MAX_NAME:
            raise self.fail(f"{what} at offset {at} is {length} bytes long; 1 to {MAX_NAME} are allowed")
        start = self.need(length, what)
        try:
            name = self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} at offset {at} is not UTF-8 at its byte {error.start}") from error
        if not name.isprintable():
            raise self.fail(f"{what} at offset {at} holds control characters: {name[:80]!r}")
        return name

    def value(self, key: str) -> tuple[str, Any]:
        """Read a typed value: its type's name, and the value, a LongString, StringArray or numpy array."""
        kind = self.u32(f"the type of key {key}")
        if kind == STRING:
            return "str", self._string(key)
        if kind == ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self.fail(f"key {key} has the unknown value type {kind}")
        name, form, _ = _SCALARS[kind]
        packed = struct.Struct(form)
        value = packed.unpack_from(self.data, self.need(packed.size, f"key {key}"))[0]
        if kind == BOOL:
            if value > 1:
                raise self.fail(f"key {key} is a bool of value {value}; 0 and 1 are allowed")
            value = value == 1
        return name, value

    def _string(self, key: str) -> Any:
        length = self.u64(f"the length of key {key}")
        start = self.need(length, f"key {key}")
        self._will_look_at(length, key)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            if length <= _DECODE_NOW:
                return self.data[start : start + length].decode("utf-8")
            for at in range(start, start + length, 1 << 20):
                stop = min(at + (1 << 20), start + length)
                decoder.decode(self.data[at:stop], final=stop == start + length)
        except UnicodeDecodeError as error:
            raise self.fail(f"key {key} is not UTF-8") from error
        return LongString(self.data, start, start + length)

    def _array(self, key: str) -> tuple[str, Any]:
        kind = self.u32(f"the element type of key {key}")
        count = self.u64(f"the length of key {key}")
        if kind == STRING:
            return "arr[str]", self._string_array(key, count)
        if kind == ARRAY:
            raise UnsupportedError(
                f"{self.path}: key {key} is an array of arrays; arrays of numbers or strings are read"
            )
        if kind not in _SCALARS:
            raise self.fail(f"key {key} is an array of the unknown value type {kind}")
        name, form, dtype = _SCALARS[kind]
        start = self.need(count * struct.calcsize(form), f"the array of {count} values under key {key}")
        values = np.frombuffer(self.data, "u1" if kind == BOOL else dtype, count, start)
        if kind == BOOL:
            self._will_look_at(count, key)
            if count and values.max() > 1:
                raise self.fail(f"key {key} holds a bool of value {values.max()}; 0 and 1 are allowed")
            values = values.view(np.bool_)
        return f"arr[{name}]", values

    def _will_look_at(self, count: int, key: str) -> None:
        """Limit the bytes that opening reads: a sparse file of terabytes is quickly made."""
        self._text_left -= count
        if self._text_left < 0:
            raise UnsupportedError(f"{self.path}: more than {MAX_TEXT} bytes of text, counted up to key {key}")

    def _string_array(self, key: str, count: int) -> StringArray:
        if count * 8 > self.size - self.position:
            claim = f"{count} strings at offset {self.position}"
            raise self.fail(f"key {key} claims {claim} but the file ends after {self.size}")
        self._strings_left -= count
        if self._strings_left < 0:
            raise UnsupportedError(
                f"{self.path}: more than {MAX_ARRAY_STRINGS} strings in arrays, counted up to key {key}"
            )
        try:
            starts, stop = _text.walk_strings(self.data, self.position, count)
        except ValueError as error:
            raise self.fail(
                f"key {key}: string {error} of {count} does not fit into the file of {self.size} bytes"
            ) from error
        self.position = stop
        return StringArray(f"{self.path}: key {key}", self.data, starts)


class LongString:
    """Text of several kilobytes, validated but left in the map until it is asked for."""

    def __init__(self, data: mmap.mmap, start: int, stop: int) -> None:
        self._data, self._start, self._stop = data, start, stop

    def __str__(self) -> str:
        return self._data[self._start : self._stop].decode("utf-8")


class Metadata(Mapping[str, Any]):
    """Key to value in file order: int, float, bool, str, a read-only numpy array, or a StringArray."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return str(value) if isinstance(value, LongString) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

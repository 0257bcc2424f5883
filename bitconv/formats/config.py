"""Strict, typed reading of JSON configuration files: a wrong type is an error, never a default."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar, overload

from bitconv.errors import FormatError, InputError, UnsupportedError

T = TypeVar("T")
D = TypeVar("D")

JSON_LIMIT: Final = 16 << 20  # bytes; the largest published tokenizer_config.json is under 1 MB


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()

_NAMES = {
    int: "an integer", float: "a number", bool: "true or false", str: "a string", list: "a list",
    dict: "an object",
}  # fmt: skip
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Config:
    """A JSON object read key by key, which remembers the keys that were asked for.

    values: the parsed object; where: the file (and section) that error messages name.
    A key whose value is null counts as absent.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}
        self.where = where

    def __contains__(self, key: object) -> bool:
        return self._values.get(key) is not None if isinstance(key, str) else False

    def keys(self) -> Collection[str]:
        """Return every key of the object, read or not."""
        return self._values.keys()

    @overload
    def read(self, kind: type[T], key: str) -> T: ...
    @overload
    def read(self, kind: type[T], key: str, default: D) -> T | D: ...
    def read(self, kind: type, key: str, default: Any = REQUIRED) -> Any:
        """Return the value of `key`, which must be of `kind`: int, float, bool, str, list or dict.

        An integer is accepted as a float, a bool never as an integer. Numbers must be finite and below
        2**63. Raises FormatError naming key, wanted type and found value, also when the key is absent and
        there is no default.
        """
        value = self._fetch(key, default)
        if value is None and not isinstance(default, _Required):
            return default
        if kind is float and type(value) is int and abs(value) < 2**63:
            return float(value)
        fits = type(value) is kind
        if fits and kind is float:
            fits = math.isfinite(value)
        elif fits and kind is int:
            fits = abs(value) < 2**63
        if not fits:
            raise FormatError(f"{self.where}: {key} must be {_NAMES[kind]}, found {_shown(value)}")
        return value

    def expect(self, key: str, allowed: Collection[Any], default: Any = REQUIRED) -> Any:
        """Return the value of `key`, which must be one of `allowed`.

        Raises UnsupportedError listing what is supported, FormatError when the key is absent without default.
        """
        value = self._fetch(key, default)
        if value is None and not isinstance(default, _Required):
            return default
        if not any(type(value) is type(one) and value == one for one in allowed):
            known = ", ".join(sorted(_shown(one) for one in allowed))
            raise UnsupportedError(f"{self.where}: {key} is {_shown(value)}; supported: {known}")
        return value

    def section(self, key: str) -> Config | None:
        """Return the object under `key` as a Config of its own, or None when absent or null."""
        if key not in self._sections:
            values = self.read(dict, key, None)
            if values is None:
                return None
            self._sections[key] = Config(values, f"{self.where}: {key}")
        return self._sections[key]

    def unread(self) -> list[str]:
        """Return the keys nobody asked for, those of opened sections as "section.key", in file order."""
        names = []
        for key in self._values:
            if key in self._sections:
                names += [f"{key}.{inner}" for inner in self._sections[key].unread()]
            elif key not in self._read:
                names.append(key)
        return names

    def _fetch(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        if value is None and isinstance(default, _Required):
            state = "is null" if key in self._values else "is missing"
            raise FormatError(f"{self.where}: {key} {state}")
        return value


def load_json(path: str | os.PathLike[str], *, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises InputError when the file cannot be read, FormatError when it is larger than `limit` bytes, not
    UTF-8, not JSON, not an object, or repeats a key.
    """
    return parse_json_object(read_file(path, limit), str(path))


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes; InputError when it cannot be read, FormatError when larger."""
    try:
        # O_NONBLOCK: a pipe must be refused, not waited for
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: is not a regular file")
            if status.st_size > limit:
                raise FormatError(f"{path}: larger than {limit} bytes, the limit for this file")
            return file.read(status.st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse bytes that must be one JSON object without repeated keys; FormatError names `where`."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_without_repeats)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate cannot be encoded
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: a string holds half of a surrogate pair") from error
    except RecursionError as error:
        raise FormatError(f"{where}: nested too deeply") from error
    except ValueError as error:  # json.JSONDecodeError, a repeated key, an integer of thousands of digits
        raise FormatError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: must hold a JSON object, found {_shown(value)}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {_shown(key)} occurs twice")
            seen.add(key)
    return values


def _shown(value: Any) -> str:
    """Show a value in a message as JSON, cut to a sensible length."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

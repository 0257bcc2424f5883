"""Builds GGUF bytes by hand, right or wrong in any part: what the writer would never produce."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "str": (8, ""), "arr": (9, ""), "u64": (10, "<Q"), "i64": (11, "<q"),
    "f64": (12, "<d"),
}  # fmt: skip


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A length-prefixed string; `length` overrides the true one."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(kind: str, content: Any) -> bytes:
    """The bytes of one value without its type."""
    return string(content) if kind == "str" else struct.pack(KINDS[kind][1], content)


def key(name: str | bytes, kind: str, content: Any) -> bytes:
    """A key-value record; kind is "u32", "str", ... or "arr[...]"."""
    if kind.startswith("arr["):
        return array(name, KINDS[kind[4:-1]][0], len(content), b"".join(value(kind[4:-1], v) for v in content))
    return raw_key(name, KINDS[kind][0], value(kind, content))


def raw_key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    """A key-value record with any type id and any bytes."""
    return string(name) + struct.pack("<I", kind) + payload


def array(name: str | bytes, element: int, count: int, payload: bytes) -> bytes:
    """An array record with any element type id, any count and any bytes."""
    return raw_key(name, 9, struct.pack("<IQ", element, count) + payload)


def tensor(name: str | bytes, ne: Sequence[int], type_id: int, offset: int, n_dims: int | None = None) -> bytes:
    """A tensor record; ne in file order, ne[0] the fastest."""
    count = struct.pack("<I", len(ne) if n_dims is None else n_dims)
    return string(name) + count + struct.pack(f"<{len(ne)}Q", *ne) + struct.pack("<IQ", type_id, offset)


@dataclass
class Gguf:
    """A whole file; counts follow the records unless given."""

    keys: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32

    def build(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def simple(tensors: Iterable[tuple[str, Sequence[int], int, int]], keys: Sequence[bytes] = ()) -> bytes:
    """A valid file of (name, ne, type id, nbytes), contiguous, each tensor filled with a pattern of its own."""
    records, data = [], b""
    for index, (name, ne, type_id, nbytes) in enumerate(tensors):
        records.append(tensor(name, ne, type_id, len(data)))
        data += bytes((i * 7 + index) % 251 for i in range(nbytes)) + bytes(-nbytes % 32)
    return Gguf(keys=list(keys), tensors=records, data=data).build()

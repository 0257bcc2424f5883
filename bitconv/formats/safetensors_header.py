"""The header of a safetensors file, read and validated without trusting it.

A file is: u64 header length (little-endian, at most 100 MB), that many bytes of JSON, then the tensors' bytes. The
JSON object maps names to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from the end of the
header; "__metadata__" may map strings to strings. The tensors must cover the rest of the file exactly, without holes
or overlaps. Everything accepted here is accepted by the safetensors library. We also refuse what it lets pass:
repeated names, fields other than the three, a tensor given as a JSON array, names that are not printable.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Final

from bitconv.errors import FormatError
from bitconv.formats.config import parse_json_object

MAX_HEADER: Final = 100_000_000  # bytes, the library's limit
BITS: Final = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of a header: dtype as spelled there, `offset` from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def header_length(first_bytes: bytes, file_size: int, where: str) -> int:
    """Return the length of the JSON from a file's first 8 bytes. FormatError when the file cannot hold it."""
    if len(first_bytes) < 8:
        raise FormatError(f"{where}: {file_size} bytes are no safetensors file (truncated download?)")
    (length,) = struct.unpack("<Q", first_bytes[:8])
    if length > MAX_HEADER:
        raise FormatError(f"{where}: claims a header of {length} bytes; at most {MAX_HEADER} are allowed")
    if length + 8 > file_size:
        raise FormatError(
            f"{where}: needs {length + 8} bytes for its header but the file ends after {file_size} "
            "(truncated download?)"
        )
    return int(length)


def parse_header(data: bytes, file_size: int, where: str) -> list[HeaderEntry]:
    """Parse the JSON of a header: its tensors in the order of their bytes.

    data: the JSON alone; file_size: bytes of the whole file. Raises FormatError naming `where` and the tensor.
    """
    values = parse_json_object(data, where)
    metadata = values.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise FormatError(f"{where}: __metadata__ must map strings to strings")
    start = 8 + len(data)
    entries = [_entry(name, value, start, where) for name, value in values.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    end = start
    for entry in entries:
        if entry.offset != end:
            problem = "overlaps the tensor before it" if entry.offset < end else "leaves a hole before it"
            raise FormatError(f"{where}: tensor {entry.name} at offset {entry.offset} {problem}, which ends at {end}")
        end += entry.nbytes
    if end != file_size:
        cause = "truncated download?" if end > file_size else "bytes that belong to no tensor"
        raise FormatError(f"{where}: its tensors end at {end} but the file ends after {file_size} ({cause})")
    return entries


def _entry(name: str, value: Any, start: int, where: str) -> HeaderEntry:
    if not name.isprintable():
        raise FormatError(f"{where}: the tensor name {name[:80]!r} holds control characters")
    where = f"{where}: tensor {name}"
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise FormatError(f"{where}: must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"{where}: unknown dtype {str(dtype)[:40]!r}; known: {', '.join(BITS)}")
    if not _sizes(shape):
        raise FormatError(f"{where}: shape must be a list of non-negative integers")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: data_offsets must be two integers, begin and end")
    # front to back with an early stop: one huge dimension beside a zero must not pass as an empty tensor
    count = 1
    for size in shape:
        count *= size
        if count >= 2**64:
            raise FormatError(f"{where}: shape {shape} is impossible")
    bits = count * BITS[dtype]
    if bits >= 2**64 or bits != (offsets[1] - offsets[0]) * 8:
        raise FormatError(
            f"{where}: shape {shape} of {dtype} needs {math.ceil(bits / 8)} bytes, "
            f"data_offsets hold {offsets[1] - offsets[0]}"
        )
    return HeaderEntry(name, dtype, tuple(shape), start + offsets[0], offsets[1] - offsets[0])


def _sizes(values: Any) -> bool:
    """Say whether this is a list of integers of 0 to 2**64 - 1; bools and floats are none."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**64 for value in values)

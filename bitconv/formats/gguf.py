"""A GGUF reader that trusts nothing: every size is checked against the file before anything is allocated.

It reads versions 2 and 3, little-endian, and knows the tensor types of BitNet runtimes (I2_S, TL1, TL2),
which the gguf package does not. Tensor bytes are views of the memory map, never copies.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar, overload

import numpy as np

from bitconv import machine
from bitconv.errors import FormatError, InputError, ResourceError, UnsupportedError
from bitconv.formats import ggml_types
from bitconv.formats.gguf_metadata import Cursor, Metadata, StringArray

T = TypeVar("T")
D = TypeVar("D")

MAX_RECORDS = 16384  # keys, and tensors; published models have tens and thousands
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
_COPIED = 16 << 20  # bytes that a thread copies at a time
_ID_39 = ggml_types.TL2
_BIG_ENDIAN = "big-endian GGUF; gguf-convert-endian (of the gguf package) makes it little-endian"


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `shape` in numpy order (rows, cols), `offset` in bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    type_name: str
    offset: int
    nbytes: int


class GgufFile:
    """An open, validated GGUF file; a context manager. Views handed out stay valid after `close`.

    version: 2 or 3; alignment: bytes; metadata: key to value; metadata_types: key to "u32", "str",
    "arr[str]", ...; tensors: name to TensorInfo; all in file order.
    """

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        version: int,
        alignment: int,
        metadata: Mapping[str, Any],
        metadata_types: Mapping[str, str],
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        self.path, self.version, self.alignment = path, version, alignment
        self.metadata: Mapping[str, Any] = metadata
        self.metadata_types: Mapping[str, str] = MappingProxyType(dict(metadata_types))
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.size = len(data)
        self.resident = False
        """Whether the tensors are in memory to stay: copied there, or locked."""
        self._map: mmap.mmap | None = data

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GgufFile {str(self.path)!r}: {len(self.metadata)} keys, {len(self.tensors)} tensors>"

    def close(self) -> None:
        """Let go of the map; it goes away with the last view of it."""
        self._map = None

    def data(self, name: str) -> np.ndarray:
        """Return a tensor's bytes: uint8 [nbytes], a read-only view of the map; FormatError when absent."""
        info = self._info(name)
        return np.frombuffer(self._open_map(), np.uint8, info.nbytes, info.offset)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read_into_memory(self, threads: int = 1) -> None:
        """Copy the tensors into memory of their own, in huge pages where the system has them.

        ResourceError when there is not enough.
        Views handed out before stay in the file; `data` gives views of the copy from now on.
        """
        memory = _memory(self.size, str(self.path))
        _copy_pieces(self._tensor_area(self._open_map()), self._tensor_area(memory), threads)
        self._open_map().madvise(mmap.MADV_DONTNEED)  # strings of the metadata stay in it and come back when touched
        self._map, self.resident = memory, True

    def lock(self) -> None:
        """Keep the tensors from being swapped or dropped; OSError when the system refuses."""
        area = self._tensor_area(self._open_map())
        machine.lock(area.ctypes.data, area.nbytes)
        self.resident = True

    def tensor_data(self) -> np.ndarray:
        """Return the bytes of all tensors and what lies between them: uint8, a read-only view."""
        return self._tensor_area(self._open_map())

    def _tensor_area(self, memory: mmap.mmap) -> np.ndarray:
        """The bytes from the first tensor to the last: uint8, a view."""
        infos = self.tensors.values()
        first = min((info.offset for info in infos), default=self.size)
        last = max((info.offset + info.nbytes for info in infos), default=self.size)
        return np.frombuffer(memory, np.uint8)[first:last]

    def advise(self, name: str) -> None:
        """Ask the system to read a tensor's pages ahead; a hint that never fails."""
        if self.resident:
            return
        info = self._info(name)
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._open_map().madvise(mmap.MADV_WILLNEED, start, info.offset + info.nbytes - start)

    def release(self, name: str) -> None:
        """Let the system take back the memory that a tensor's pages occupy; they are read again when touched."""
        info = self._info(name)
        start = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (info.offset + info.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start and not self.resident:  # what is dropped from a copy does not come back
            self._open_map().madvise(mmap.MADV_DONTNEED, start, stop - start)

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: D) -> T | D: ...
    def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        """Return the value of `key`, which must be of `kind`.

        kind: int (any width), float (finite), bool, str, np.ndarray (an array of numbers), or list (an array
        of strings, returned as a lazy sequence). Raises FormatError naming key, wanted and found type, also
        when the key is absent and there is no default.
        """
        if key not in self.metadata:
            if isinstance(default, _Required):
                raise FormatError(f"{self.path}: key {key} is missing")
            return default
        value, found = self.metadata[key], self.metadata_types[key]
        wanted = StringArray if kind is list else kind
        if not isinstance(value, wanted) or (kind is int and isinstance(value, bool)):
            name = {list: "arr[str]", np.ndarray: "array of numbers"}.get(kind, kind.__name__)
            raise FormatError(f"{self.path}: key {key} must be of type {name}, found {found}")
        if isinstance(value, float) and not math.isfinite(value):
            raise FormatError(f"{self.path}: key {key} is {value}; it must be finite")
        return value

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise FormatError(f"{self.path}: there is no tensor {name}") from None

    def _open_map(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"{self.path}: the file is closed")
        return self._map


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Open and validate a GGUF file.

    Raises InputError when the path cannot be opened, FormatError when the file is malformed or truncated,
    UnsupportedError for version 1, big-endian and split files, ResourceError when it cannot be mapped.
    """
    path = Path(path)
    cursor = Cursor(_map_file(path), str(path))
    version = _read_version(cursor)
    n_tensors, n_keys = _read_counts(cursor)
    values: dict[str, Any] = {}
    types: dict[str, str] = {}
    for index in range(n_keys):
        key = cursor.name(f"key {index} of {n_keys}")
        if key in values:
            raise cursor.fail(f"key {key} occurs twice")
        types[key], values[key] = cursor.value(key)
    alignment = _read_alignment(cursor, values, types)
    _refuse_split(cursor, values)
    tensors = _read_tensors(cursor, n_tensors, alignment, values)
    return GgufFile(path, cursor.data, version, alignment, Metadata(values), types, tensors)


def _map_file(path: Path) -> mmap.mmap:
    try:
        # O_NONBLOCK: a pipe must be refused below, not waited for
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{path}: is {kind}; a .gguf file is needed")
        if status.st_size < 4:
            raise FormatError(f"{path}: {status.st_size} bytes are no GGUF file (truncated download?)")
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be mapped into memory: {error.strerror or error}") from error
    finally:
        os.close(handle)


def _memory(nbytes: int, path: str) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ResourceError(f"{path}: {nbytes} bytes of memory cannot be had: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _copy_pieces(source: np.ndarray, target: np.ndarray, threads: int) -> None:
    from concurrent.futures import ThreadPoolExecutor  # only programs that copy pay for it

    def copy(start: int) -> None:  # NumPy lets go of the GIL
        target[start : start + _COPIED] = source[start : start + _COPIED]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, range(0, len(source), _COPIED)))


def _read_version(cursor: Cursor) -> int:
    magic = bytes(cursor.data[:4])
    cursor.position = 4
    if magic == b"FUGG":
        raise UnsupportedError(f"{cursor.path}: {_BIG_ENDIAN}")
    if magic in (b"tjgg", b"fmgg", b"lmgg", b"algg"):
        raise UnsupportedError(f"{cursor.path}: a GGML file from before GGUF; convert the checkpoint anew")
    if magic != b"GGUF":
        raise cursor.fail(f"not a GGUF file: it starts with {magic!r} instead of b'GGUF'")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError(f"{cursor.path}: {_BIG_ENDIAN}")
    if version not in (2, 3):
        raise UnsupportedError(
            f"{cursor.path}: GGUF version {version}; 2 and 3 are read, convert the checkpoint anew"
        )
    return version


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    n_tensors, n_keys = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    # the smallest records: a tensor of one dimension and a one-letter name, a key with a one-byte value
    for count, least, what in ((n_tensors, 33, "tensors"), (n_keys, 14, "keys")):
        if count * least > cursor.size:
            raise cursor.fail(f"claims {count} {what} but has only {cursor.size} bytes")
        if count > MAX_RECORDS:
            raise UnsupportedError(f"{cursor.path}: {count} {what}; at most {MAX_RECORDS} are read")
    return n_tensors, n_keys


def _read_alignment(cursor: Cursor, values: Mapping[str, Any], types: Mapping[str, str]) -> int:
    if "general.alignment" not in values:
        return DEFAULT_ALIGNMENT
    value = values["general.alignment"]
    if types["general.alignment"] != "u32":
        raise cursor.fail(f"key general.alignment must be of type u32, found {types['general.alignment']}")
    if value < 8 or value & (value - 1):
        raise cursor.fail(f"key general.alignment is {value}; it must be a power of two of at least 8")
    return int(value)


def _refuse_split(cursor: Cursor, values: Mapping[str, Any]) -> None:
    count = values.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise UnsupportedError(
            f"{cursor.path}: one of {count} parts of a split model; join them with `llama-gguf-split --merge`"
        )


class _Record(NamedTuple):
    """A tensor as the header describes it; offset from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def _read_tensors(
    cursor: Cursor, count: int, alignment: int, values: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    raw: dict[str, _Record] = {}
    for index in range(count):
        record = _read_tensor(cursor, f"tensor {index} of {count}", alignment)
        if record.name in raw:
            raise cursor.fail(f"tensor {record.name} occurs twice")
        raw[record.name] = record
    if not raw:
        return {}
    data_start = -(-cursor.position // alignment) * alignment
    records = [record._replace(offset=data_start + record.offset) for record in raw.values()]
    rooms = _rooms(cursor, records)
    sized = _size(cursor, records, rooms, _resolve_39(cursor, records, rooms, alignment, values))
    return {info.name: info for info in sized}


def _read_tensor(cursor: Cursor, where: str, alignment: int) -> _Record:
    name = cursor.name(f"the name of {where}")
    n_dims = cursor.u32(f"tensor {name}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail(f"tensor {name} has {n_dims} dimensions; 1 to {MAX_DIMS} are allowed")
    start = cursor.need(8 * n_dims + 12, f"tensor {name}")
    *ne, type_id, offset = struct.unpack_from(f"<{n_dims}QIQ", cursor.data, start)
    shape = tuple(reversed(ne))
    if min(shape) == 0 or math.prod(shape) >= 2**63:
        raise cursor.fail(f"tensor {name} has the impossible shape {list(shape)}")
    if offset % alignment:
        raise cursor.fail(f"tensor {name}: offset {offset} is not a multiple of the alignment {alignment}")
    if type_id >= 2**31:
        raise cursor.fail(f"tensor {name} has the impossible type id {type_id}")
    return _Record(name, shape, type_id, offset)


def _rooms(cursor: Cursor, records: Sequence[_Record]) -> list[int]:
    """Return the bytes from each tensor's start to the next one's, or to the end of the file."""
    ends = [record.offset for record in records[1:]] + [cursor.size]
    for record, end in zip(records, ends, strict=True):
        at = f"tensor {record.name} at offset {record.offset}"
        if record.offset >= cursor.size:
            raise cursor.fail(f"{at} starts where the file of {cursor.size} bytes has ended (truncated download?)")
        if record.offset >= end:
            raise cursor.fail(f"{at} does not end before the next one at {end}")
    return [end - record.offset for record, end in zip(records, ends, strict=True)]


def _size(
    cursor: Cursor, records: Sequence[_Record], rooms: Sequence[int], name_of_39: str
) -> list[TensorInfo]:
    """Give each tensor its type's name and its length by the rule of that type, and check that it fits."""
    sized = []
    for (name, shape, type_id, offset), room in zip(records, rooms, strict=True):
        kind = ggml_types.ggml_type(type_id)
        type_name = f"unknown({type_id})" if kind is None else name_of_39 if type_id == _ID_39 else kind.name
        try:
            rule = _NBYTES_39[name_of_39] if type_id == _ID_39 else partial(ggml_types.nbytes, type_id)
            nbytes = rule(shape)
        except ValueError as error:
            raise cursor.fail(f"tensor {name}: {error}") from error
        nbytes = room if nbytes is None else nbytes  # nobody knows: then all there is
        if nbytes > room:
            stop = f"the next tensor starts after {room}"
            if offset + room == cursor.size:
                stop = f"the file ends after {cursor.size} (truncated download?)"
            raise cursor.fail(f"tensor {name} needs {nbytes} bytes at offset {offset} but {stop}")
        sized.append(TensorInfo(name, shape, type_id, type_name, offset, nbytes))
    return sized


_NBYTES_39: dict[str, Callable[[tuple[int, ...]], int | None]] = {
    "TL2": ggml_types.tl2_nbytes,
    "MXFP4": ggml_types.mxfp4_nbytes,
}


def _resolve_39(
    cursor: Cursor,
    records: Sequence[_Record],
    rooms: Sequence[int],
    alignment: int,
    values: Mapping[str, Any],
) -> str:
    """Say whether type id 39 means TL2 (BitNet runtimes) or MXFP4 (everyone else) in this file.

    The lengths decide where only one reading fills the room up to padding; else file type and architecture.
    """
    pairs = [(r, room) for r, room in zip(records, rooms, strict=True) if r.type_id == _ID_39]
    architecture = values.get("general.architecture")
    ternary = (isinstance(architecture, str) and architecture.startswith("bitnet")) or any(
        record.type_id in (ggml_types.I2_S, ggml_types.TL1) for record in records
    )
    likely = "TL2" if ternary or values.get("general.file_type") == 39 else "MXFP4"
    other = "MXFP4" if likely == "TL2" else "TL2"
    for exact in (True, False):
        for name in (likely, other):
            if all(_fits_39(name, record.shape, room, alignment if exact else room) for record, room in pairs):
                return name
    raise cursor.fail(
        f"tensor {pairs[0][0].name} and the others of type id 39 fit neither TL2 nor MXFP4 "
        "(truncated download?)"
    )


def _fits_39(name: str, shape: tuple[int, ...], room: int, slack: int) -> bool:
    """Say whether a tensor fits its room with fewer than `slack` bytes left over."""
    try:
        nbytes = _NBYTES_39[name](shape)
    except ValueError:
        return False
    return nbytes is not None and 0 <= room - nbytes < slack

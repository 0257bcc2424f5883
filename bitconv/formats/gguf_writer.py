"""Writes a GGUF file front to back, one piece of a tensor at a time; it gets its name when it is whole.

gguf.GGUFWriter forms the header; the bytes go to OUT.partial through one loop of our own, so that a full disk
is a ResourceError wherever it strikes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from bitconv.errors import InputError, ResourceError
from bitconv.formats import ggml_types

WRITE_BEHIND: Final = 8 << 20  # bytes that are handed to the disk at a time
ALIGNMENT: Final = 32  # BitNet runtimes assume it in their size rules

# kind -> (value type id of the standard, struct code); strings have no code
_KINDS: Final = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
    "f32": (6, "f"), "bool": (7, "?"), "str": (8, ""), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d"),
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass
class _Declared:
    name: str
    shape: tuple[int, ...]
    type_id: int
    nbytes: int
    written: int = 0


class GgufWriter:
    """Write one GGUF file: `add` keys, `declare` every tensor, `write` their bytes in that order, `finish`.

    A context manager: leaving it without `finish` removes the partial file. An existing file at `path` is
    refused (InputError) or, with `overwrite`, replaced by the rename at the very end. A full disk raises
    ResourceError, misuse (an undeclared tensor, bytes too many) ValueError.
    """

    def __init__(self, path: str | os.PathLike[str], arch: str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._overwrite = overwrite
        self._tensors: dict[str, _Declared] = {}
        self._queue: list[_Declared] = []  # declared and not yet whole, first one last
        self._total = 0
        self._position = 0
        self._behind = 0
        self._started = False
        self._keys: set[str] = {"general.architecture"}
        self._header = _header_writer(arch)
        _check_target(self.path, overwrite)
        self._handle: int | None = _open_partial(self.path, self.partial)

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def add(self, key: str, value: Any, kind: str) -> None:
        """Add a key; `kind` is "u32", "f32", "bool", "str", ... or "arr[...]" of one of them."""
        import gguf

        if self._started or key in self._keys:
            raise ValueError(f"key {key}: {'the header is written' if self._started else 'added twice'}")
        element = kind[4:-1] if kind.startswith("arr[") and kind.endswith("]") else kind
        if element not in _KINDS:
            raise ValueError(f"key {key}: no value type {kind!r}; known: {', '.join(_KINDS)}, arr[...]")
        value_type = gguf.GGUFValueType(_KINDS[element][0])
        if element != kind:
            packed = _packed_array(key, value, element)
            self._header.add_key_value(key, packed, gguf.GGUFValueType.ARRAY, sub_type=value_type)
        else:
            _packed_array(key, [value], element)  # for its checks of type and range
            self._header.add_key_value(key, value, value_type)
        self._keys.add(key)

    def declare(self, name: str, shape: tuple[int, ...], type_id: int) -> None:
        """Announce the next tensor: shape in numpy order (rows, cols); id 39 is TL2."""
        if self._started or name in self._tensors:
            problem = "the header is written" if self._started else "declared twice"
            raise ValueError(f"tensor {name}: {problem}")
        possible = 1 <= len(shape) <= 4 and min(shape) >= 1
        nbytes = ggml_types.nbytes(type_id, shape) if possible else None
        if nbytes is None:
            raise ValueError(f"tensor {name}: cannot hold shape {list(shape)} in type {type_id}")
        # int8 keeps gguf from block arithmetic of its own; a plain number lets it take ids it does not know
        self._header.add_tensor_info(name, shape, np.dtype(np.int8), nbytes, raw_dtype=type_id)
        self._tensors[name] = _Declared(name, tuple(shape), type_id, nbytes)

    def write(self, name: str, data: np.ndarray | bytes) -> None:
        """Append bytes to tensor `name`: tensors in declared order, each in any number of pieces."""
        if not self._started:
            self._start()
        if name not in self._tensors:
            raise ValueError(f"tensor {name} was not declared")
        if not self._queue or self._queue[-1].name != name:
            turn = self._queue[-1].name if self._queue else "finish()"
            raise ValueError(f"tensor {name} is written out of order; it is the turn of {turn}")
        piece = data if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        tensor = self._queue[-1]
        size = len(piece)
        if tensor.written + size > tensor.nbytes:
            raise ValueError(f"tensor {name} has {tensor.nbytes} bytes; {tensor.written + size} were given")
        self._put(piece)
        tensor.written += size
        if tensor.written == tensor.nbytes:
            self._queue.pop()
            self._put(bytes(-self._position % ALIGNMENT))

    def finish(self) -> None:
        """Make the file durable and give it its name; a ResourceError or InputError leaves nothing behind."""
        if not self._started:
            self._start()
        if self._queue:
            tensor = self._queue[-1]
            raise ValueError(f"tensor {tensor.name} has {tensor.written} of {tensor.nbytes} bytes")
        try:
            os.fsync(self._open_handle())
            self._rename()
        except OSError as error:
            raise self._translated(error) from error
        except InputError:
            self._discard()
            raise
        os.close(self._open_handle())
        self._handle = None
        _sync_directory(self.path.parent)

    def _start(self) -> None:
        self._started = True
        header = self._header_bytes()
        self._queue = list(reversed(self._tensors.values()))
        body = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in self._queue)
        self._total = len(header) + body
        try:
            disk = os.statvfs(self.partial.parent)
        except OSError as error:
            raise self._translated(error) from error
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and free < self._total:
            self._discard()
            raise ResourceError(f"{self.path}: needs {self._total} bytes but its file system has {free} free")
        self._put(header)

    def _header_bytes(self) -> bytes:
        from gguf.gguf_writer import WriterState

        writer, buffer = self._header, io.BytesIO()
        writer.fout = [buffer]  # memory instead of a file: every byte then takes the way of _put
        writer.state = WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        header = buffer.getvalue()
        return header + bytes(-len(header) % ALIGNMENT)

    def _put(self, data: bytes | np.ndarray) -> None:
        rest = memoryview(data) if isinstance(data, bytes) else data.data
        try:
            while rest:
                done = os.write(self._open_handle(), rest)
                self._position += done
                rest = rest[done:]
            self._write_behind()
        except OSError as error:
            raise self._translated(error) from error

    def _write_behind(self) -> None:
        """Let the disk begin with what is written, so that `finish` does not wait for all of it."""
        if self._position - self._behind >= WRITE_BEHIND and hasattr(os, "posix_fadvise"):
            # Linux begins to write dirty pages of the range, and would drop only those that are clean by now.
            handle, length = self._open_handle(), self._position - self._behind
            with contextlib.suppress(OSError):  # an offer that a file system may decline
                os.posix_fadvise(handle, self._behind, length, os.POSIX_FADV_DONTNEED)
            self._behind = self._position

    def _rename(self) -> None:
        if self._overwrite:
            os.replace(self.partial, self.path)
            return
        try:
            os.link(self.partial, self.path)  # unlike a rename, never replaces a file that appeared meanwhile
        except FileExistsError:
            raise InputError(f"{self.path}: appeared while it was being written; it was left alone") from None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _check_target(self.path, False)
            os.rename(self.partial, self.path)
        else:
            os.unlink(self.partial)

    def _discard(self) -> None:
        """Remove the partial file and let go of it; does nothing after `finish`."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):  # gone already, or the disk itself is
            os.unlink(self.partial)
        os.close(self._handle)
        self._handle = None

    def _translated(self, error: OSError) -> ResourceError:
        """Clean up, and say what the system's refusal means."""
        self._discard()
        if error.errno in _FULL:
            return ResourceError(
                f"{self.path}: no space left on device ({os.strerror(error.errno)}); "
                f"needs {self._total} bytes, {self._position} were written"
            )
        return ResourceError(f"{self.path}: cannot be written: {error.strerror or error}")

    def _open_handle(self) -> int:
        if self._handle is None:
            raise ValueError(f"{self.path}: the writer is closed")
        return self._handle


class _Packed(Sequence[Any]):
    """The elements of an array value, already in their bytes."""

    def __init__(self, count: int, data: bytes) -> None:
        self.size, self.data = count, data

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("packed")


def _packed_array(key: str, values: Any, element: str) -> _Packed:
    code = _KINDS[element][1]
    try:
        if element == "str":
            encoded = [value.encode("utf-8") for value in values]
            parts = [part for data in encoded for part in (struct.pack("<Q", len(data)), data)]
            return _Packed(len(encoded), b"".join(parts))
        numbers = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if element == "bool" and not all(isinstance(number, bool) for number in numbers):
            raise TypeError("not a bool")
        if element != "bool" and any(isinstance(number, bool) for number in numbers):
            raise TypeError("a bool")
        return _Packed(len(numbers), struct.pack(f"<{len(numbers)}{code}", *numbers))
    except (struct.error, TypeError, AttributeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"key {key}: not of type {element}: {error}") from error


def _header_writer(arch: str) -> Any:
    """Return a gguf.GGUFWriter that takes packed arrays: its own way is an element at a time, never none."""
    import gguf

    class HeaderWriter(gguf.GGUFWriter):
        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if not isinstance(val, _Packed):
                return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
            return struct.pack("<IIQ", vtype, sub_type, val.size) + val.data

    return HeaderWriter(None, arch)


def _check_target(path: Path, overwrite: bool) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    if not overwrite:
        raise InputError(f"{path}: exists already; --overwrite (overwrite=True) replaces it")
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        raise InputError(f"{path}: is not a regular file and is not replaced")


def _open_partial(path: Path, partial: Path) -> int:
    """Open the partial file empty and locked; what a killed process left behind is taken over."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        try:
            handle = os.open(partial, flags, 0o666)
        except OSError as error:
            if error.errno in _FULL:
                raise ResourceError(f"{partial}: no space left on device") from error
            raise InputError(f"{partial}: cannot be written: {error.strerror or error}") from error
        try:
            _lock(handle, path)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{partial}: is not a regular file; remove it")
            try:
                named = os.stat(partial, follow_symlinks=False)
            except FileNotFoundError:
                named = None
            # renamed or removed by another process between open and lock: then it is not ours to touch
            if named is not None and (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino):
                if status.st_nlink == 1:
                    os.ftruncate(handle, 0)
                    return handle
                os.unlink(partial)  # a second name of a finished file, left by a kill between link and unlink
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another process is writing it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise InputError(f"{path}: cannot be locked: {error.strerror or error}") from error


def _sync_directory(directory: Path) -> None:
    """Make the new name durable; some file systems cannot, and the file is whole either way."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)

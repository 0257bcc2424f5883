"""A Hugging Face checkpoint as a mapping from names to tensors that are read when asked for.

Tensor bytes are read with pread into fresh arrays and never mapped, so that the pages of a large checkpoint do not
add up in the process.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np

from bitconv.errors import FormatError, InputError, ResourceError, UnsupportedError
from bitconv.formats.config import Config, load_json, parse_json_object, read_file
from bitconv.formats.safetensors_header import header_length, parse_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
INDEX_LIMIT: Final = 64 << 20  # bytes
FILE_LIMIT: Final = 64 << 20  # bytes of any other file of the folder that is read whole

# how each dtype is handed out; bfloat16 and the 8-bit floats as their bits
STORAGE: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E5M2": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1",
        "F8_E4M3FNUZ": "u1", "F8_E5M2FNUZ": "u1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2",
        "I32": "<i4", "U32": "<u4", "F32": "<f4", "C64": "<c8", "F64": "<f8", "I64": "<i8", "U64": "<u8",
    }.items()
}  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor is stored: dtype by its safetensors name, shape, file, offset and nbytes in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


class Checkpoint:
    """An open checkpoint folder; a context manager.

    path: the folder; config: its config.json; tensors: name to TensorEntry, in the order of the files.
    """

    def __init__(
        self, path: Path, config: Config, tensors: Mapping[str, TensorEntry], handles: Mapping[Path, int]
    ) -> None:
        self.path, self.config = path, config
        self.tensors: Mapping[str, TensorEntry] = MappingProxyType(dict(tensors))
        self._handles = dict(handles)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def read(
        self, name: str, start: int = 0, rows: int | None = None, *, into: np.ndarray | None = None
    ) -> np.ndarray:
        """Read a tensor, or `rows` of it along its first axis from `start` on, as it is stored.

        Returns an array of the dtype's storage type: uint16 for BF16, the plain numpy type for others. It is fresh, or
        lies at the beginning of `into`, uint8 [enough], where its memory is to be used again.
        Raises FormatError when there is no such tensor, UnsupportedError for a dtype of less than a byte,
        ValueError for rows outside the tensor.
        """
        entry, shape, skip, nbytes = self._slice(name, start, rows)
        dtype = STORAGE.get(entry.dtype)
        if dtype is None:
            raise UnsupportedError(f"{entry.file}: tensor {name} is {entry.dtype}; read are {', '.join(STORAGE)}")
        try:
            data = np.empty(nbytes, np.uint8) if into is None else into[:nbytes]
        except MemoryError:
            raise ResourceError(f"{entry.file}: tensor {name} needs {nbytes} bytes of memory") from None
        self._fill(data, entry, skip)
        try:
            return data.view(dtype).reshape(shape)
        except ValueError:  # more dimensions than numpy has, or a huge one beside a zero
            raise FormatError(f"{entry.file}: tensor {name} has the impossible shape {list(shape)}") from None

    def read_bytes(self, filename: str, *, limit: int = FILE_LIMIT) -> bytes | None:
        """Return the contents of another file of the folder; None when there is none of that name."""
        path = self.path / _plain(filename, str(self.path))
        return read_file(path, limit) if path.exists() else None

    def read_json(self, filename: str, *, limit: int = FILE_LIMIT) -> dict[str, Any] | None:
        """Return another file of the folder, one JSON object; None when absent, FormatError when malformed."""
        data = self.read_bytes(filename, limit=limit)
        return None if data is None else parse_json_object(data, str(self.path / filename))

    def _slice(
        self, name: str, start: int, rows: int | None
    ) -> tuple[TensorEntry, tuple[int, ...], int, int]:
        """Return entry, shape of the part, and the bytes to skip and to read."""
        entry = self.tensors.get(name)
        if entry is None:
            raise FormatError(f"{self.path}: there is no tensor {name}")
        if start == 0 and rows is None:
            return entry, entry.shape, 0, entry.nbytes
        total = entry.shape[0] if entry.shape else 0
        rows = total - start if rows is None else rows
        if start < 0 or rows < 0 or start + rows > total:
            raise ValueError(f"tensor {name} has {total} rows; asked for {rows} from {start}")
        row_bytes = entry.nbytes // total if total else 0
        return entry, (rows, *entry.shape[1:]), start * row_bytes, rows * row_bytes

    def _fill(self, data: np.ndarray, entry: TensorEntry, skip: int) -> None:
        if not self._handles:
            raise ValueError(f"{self.path}: the checkpoint is closed")
        rest, position = data.data, entry.offset + skip
        while rest:
            try:
                done = os.preadv(self._handles[entry.file], [rest[: 1 << 30]], position)
            except OSError as error:
                raise InputError(f"{entry.file}: cannot be read: {error.strerror or error}") from error
            if done == 0:
                raise FormatError(f"{entry.file}: ended at {position} while tensor {entry.name} was being read")
            rest, position = rest[done:], position + done


def open_checkpoint(src: str | os.PathLike[str], *, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint folder, or a Hub id ("org/name"), which is downloaded first.

    Reads model.safetensors or the shards of model.safetensors.index.json; pytorch_model.bin and its shards only
    with `allow_pickle`. Raises InputError when there is nothing to read, FormatError naming the file when config,
    index, a shard or a tensor is malformed, missing, repeated or truncated.
    """
    folder = _folder(src, allow_pickle)
    config = Config(load_json(folder / "config.json"), str(folder / "config.json"))
    if (folder / SINGLE).exists():
        return _open_shards(folder, config, [SINGLE], None)
    if (folder / INDEX).exists():
        index = _weight_map(folder / INDEX)
        return _open_shards(folder, config, sorted(set(index.values())), index)
    if (folder / PICKLE).exists() or (folder / PICKLE_INDEX).exists():
        if not allow_pickle:
            raise InputError(
                f"{folder}: has only {PICKLE} weights, a Python pickle, which can run code when it is loaded; "
                "if you trust its source, --allow-pickle (allow_pickle=True) loads it with weights_only=True"
            )
        from bitconv.formats.pickle_checkpoint import open_pickle

        return open_pickle(
            folder, config, None if (folder / PICKLE).exists() else _weight_map(folder / PICKLE_INDEX)
        )
    raise InputError(f"{folder}: no weights; looked for {SINGLE}, {INDEX}, {PICKLE} and {PICKLE_INDEX}")


def to_float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """Widen a storage array to float32 exactly; float32 itself is returned as it is.

    Raises UnsupportedError for a dtype whose values float32 cannot hold, or a float64 array that does not survive.
    """
    if dtype == "F32":
        return array
    if dtype == "BF16":
        wide = array.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    if dtype in ("F16", "U8", "I8", "U16", "I16"):
        return array.astype(np.float32)
    if dtype == "F64":
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        if np.array_equal(narrow, array, equal_nan=True):
            return narrow
        raise UnsupportedError("float64 values that float32 cannot hold; store the tensor as F32, F16 or BF16")
    raise UnsupportedError(f"tensors of dtype {dtype} are not numbers to convert; supported: F32, F16, BF16, F64")


def check_weight_map(weight_map: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Compare what an index says with what the shards hold, both tensor name to file name. FormatError."""
    for name, file in weight_map.items():
        if found.get(name) != file:
            raise FormatError(f"{where}: tensor {name} should be in {file} but is not there")
    for name, file in found.items():
        if name not in weight_map:
            raise FormatError(f"{where}: {file} holds tensor {name}, which the index does not name")


def _folder(src: str | os.PathLike[str], allow_pickle: bool) -> Path:
    folder = Path(src)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: is a file; a checkpoint is a folder with config.json and model.safetensors")
    text = os.fspath(src)
    if isinstance(text, str) and _HUB_ID.fullmatch(text):
        return _download(text, allow_pickle)
    raise InputError(f"{folder}: no such folder, nor a Hub id of the form org/name")


def _download(name: str, allow_pickle: bool) -> Path:
    by_hand = f"  pip install huggingface_hub\n  hf download {name} --local-dir {name}"
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"{name}: no such folder. To download it from the Hub:\n{by_hand}") from None
    patterns = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"] + ["*.bin"] * allow_pickle
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # the network's layers raise errors of many families
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = f"{name}: no such folder, and the download failed: {reason}"
        raise InputError(f"{problem}\nOn a machine that reaches the Hub:\n{by_hand}") from error


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = load_json(path, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: weight_map must be an object that maps tensors to files")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise FormatError(f"{path}: weight_map gives no file name for tensor {name}")
        _plain(file, f"{path}: tensor {name}")
    return weight_map


def _plain(filename: str, where: str) -> str:
    """Return a file name that stays inside its folder, or raise FormatError."""
    if filename in ("", ".", "..") or not filename.isprintable() or "/" in filename or "\\" in filename:
        raise FormatError(f"{where}: {filename[:80]!r} is not a plain file name")
    return filename


def _open_shards(
    folder: Path, config: Config, names: list[str], weight_map: Mapping[str, str] | None
) -> Checkpoint:
    tensors: dict[str, TensorEntry] = {}
    handles: dict[Path, int] = {}
    try:
        for name in names:
            path = folder / name
            handles[path] = _open_file(path)
            for entry in _read_header(handles[path], path):
                if entry.name in tensors:
                    raise FormatError(f"{path}: tensor {entry.name} is also in {tensors[entry.name].file.name}")
                tensors[entry.name] = entry
        if weight_map is not None:
            found = {name: entry.file.name for name, entry in tensors.items()}
            check_weight_map(weight_map, found, str(folder / INDEX))
    except BaseException:
        for handle in handles.values():
            os.close(handle)
        raise
    return Checkpoint(folder, config, tensors, handles)


def _open_file(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FormatError(f"{path}: missing, though the index names it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{path}: is not a regular file")
    return handle


def _read_header(handle: int, path: Path) -> list[TensorEntry]:
    try:
        size = os.fstat(handle).st_size
        length = header_length(os.pread(handle, 8, 0), size, str(path))
        data = os.pread(handle, length, 8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    entries = parse_header(data, size, str(path))
    return [TensorEntry(e.name, e.dtype, e.shape, path, e.offset, e.nbytes) for e in entries]

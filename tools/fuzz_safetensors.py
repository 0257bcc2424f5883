"""Feeds checkpoints with mutated safetensors headers, indexes and configs to the reader and to the converter.

    python tools/fuzz_safetensors.py                        # 500 checkpoints: what became of them
    python tools/fuzz_safetensors.py --first 123 --cases 1  # one of them again
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import fuzz_harness  # noqa: E402

_NUMBERS = [0, 1, 2, 3, 4, 7, 128, 129, 4096, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64 - 1, 2**64, -1, 1.5, 1e30, True,
            None, "4", [], {}]  # fmt: skip
_DTYPES = ["BOOL", "F4", "U8", "I8", "F8_E4M3", "F16", "BF16", "F32", "F64", "I64", "U64", "C64", "I4", "f32", "",
           None, 3]  # fmt: skip
_NAMES = ["", "a", "../x", "\x00", "\x1b[2J", "\ud800", "x" * 70000, "model.embed_tokens.weight", "lm_head.weight"]
_TEXTS = ['{"a":' * 5000, "[" * 5000, '{"a":1,"a":2}', "NaN", "1e999", '"\\ud800"', "9" * 5000, "\ufeff{}", "null"]


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return the JSON and the body of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    return data[8 : 8 + length], data[8 + length :]


def join(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def change_entry(header: dict[str, Any], rng: random.Random) -> None:
    """Change one tensor's dtype, shape, offsets or fields."""
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    action = rng.choice(["dtype", "shape", "reshape", "dim", "offset", "offsets", "field", "extra"])
    if action == "dtype":
        entry["dtype"] = rng.choice(_DTYPES)
    elif action == "shape":
        entry["shape"] = rng.choice([[], [0], None, "x", {}, [1] * 70, [0, 2**62], [2**32, 2**32]])
    elif action == "reshape":  # the bytes still fit: only the meaning is wrong
        entry["shape"] = [1, *entry["shape"]] if rng.random() < 0.5 else entry["shape"][::-1]
    elif action == "dim" and entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(_NUMBERS)
    elif action == "offset":
        entry["data_offsets"][rng.randrange(2)] = rng.choice(_NUMBERS)
    elif action == "offsets":
        other = header[rng.choice([name for name in header if name != "__metadata__"])]
        entry["data_offsets"] = rng.choice([other["data_offsets"], [], [0], [0, 1, 2], None])
    elif action == "field":
        entry.pop(rng.choice(sorted(entry)))
    else:
        entry[rng.choice(["x", "dtype "])] = rng.choice(_NUMBERS)


def change_names(header: dict[str, Any], rng: random.Random) -> None:
    """Rename, drop or repeat a tensor, or spoil __metadata__."""
    names = [name for name in header if name != "__metadata__"]
    name, action = rng.choice(names), rng.choice(["rename", "swap", "swap", "drop", "repeat", "metadata", "value"])
    if action == "rename":
        header[rng.choice(_NAMES)] = header.pop(name)
    elif action == "swap":  # a valid header whose tensors lie under each other's names
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    elif action == "drop":
        del header[name]
    elif action == "repeat":
        header[name + ".copy"] = dict(header[name])
    elif action == "metadata":
        header["__metadata__"] = rng.choice([None, {}, {"a": "b"}, {"a": 1}, [], "x", {"format": None}])
    else:
        header[name] = rng.choice([None, [], {}, "x", 7])


def change_json(data: bytes, rng: random.Random) -> bytes:
    """A header changed as JSON: well-formed, and wrong in what it says."""
    text, body = split(data)
    header = json.loads(text)
    with contextlib.suppress(TypeError, LookupError, ValueError, AttributeError):  # an entry that is broken already
        for _ in range(rng.choice([1, 1, 2])):
            rng.choice([change_entry, change_names])(header, rng)
    text = json.dumps(header).encode()
    return join(text + b" " * rng.choice([0, 0, 1, 7]), body)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """A header changed as text: flips, cuts, foreign text; its length put right or not."""
    text, body = split(data)
    letters = bytearray(text)
    at = rng.randrange(len(letters))
    action = rng.choice(["flip", "cut", "insert", "text", "utf8"])
    if action == "flip":
        letters[at] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del letters[at : at + rng.choice([1, 5, 10**6])]
    elif action == "insert":
        letters[at:at] = rng.choice([b"0", b"-", b" ", b"\0", b"\\u0000", b"}", b"null", b"\xff", b",", b'"'])
    elif action == "text":
        letters = bytearray(rng.choice(_TEXTS).encode())
    else:
        letters[at : at + 1] = rng.choice([b"\xc3", b"\xed\xa0\x80", b"\xff\xfe"])
    return join(bytes(letters), body)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """A file changed as bytes: another header length, a cut, a longer or empty file."""
    action = rng.choice(["length", "length", "cut", "cut", "longer", "empty"])
    if action == "length":
        return struct.pack("<Q", rng.choice([0, 1, 2, 10**8, 10**8 + 1, len(data), 2**31, 2**63, 2**64 - 1])) + data[8:]
    if action == "cut":
        return data[: rng.choice([rng.randrange(10), rng.randrange(len(data)), len(data) - 1])]
    return data + rng.randbytes(rng.choice([1, 8, 4096])) if action == "longer" else b""


def change_weights(data: bytes, rng: random.Random) -> bytes:
    """NaN, infinities and noise in the tensors: the header is good, the numbers are not."""
    text, body = split(data)
    changed = bytearray(body)
    entries = [e for name, e in json.loads(text).items() if name != "__metadata__"]
    for _ in range(rng.choice([1, 1, 5])):
        begin, end = rng.choice(entries)["data_offsets"]
        at = rng.randrange(begin, end) & ~3
        poison = [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\0\0\0", bytes(4)]
        changed[at : at + 4] = rng.choice(poison)
    return join(text, bytes(changed))


_SHARD: list[Callable[[bytes, random.Random], bytes]] = [
    change_json, change_json, change_json, change_text, change_bytes, change_weights, change_weights]  # fmt: skip


def change_settings(path: Path, rng: random.Random) -> None:
    """Change config.json or the index: a value, a key, or its text."""
    value = json.loads(path.read_bytes())
    inner = value.get("weight_map", value)
    key, action = rng.choice(sorted(inner)), rng.choice(["value", "value", "drop", "text", "name"])
    if action == "text":
        path.write_text(rng.choice(_TEXTS), errors="replace")
        return
    if action == "value":
        inner[key] = rng.choice([*_NUMBERS, *_NAMES[:5], "model.safetensors"])
    else:
        content = inner.pop(key)
        if action == "name":
            inner[rng.choice(_NAMES)] = content
    path.write_text(json.dumps(value))


def mutate(bases: Path, rng: random.Random, folder: Path) -> Path:
    """Write one hostile checkpoint into the folder."""
    target = folder / "checkpoint"
    shutil.copytree(rng.choice(sorted(bases.iterdir())), target)
    if rng.random() < 0.15:
        change_settings(rng.choice(sorted(target.glob("*config.json")) + sorted(target.glob("*.index.json"))), rng)
    else:
        shard = rng.choice(sorted(target.glob("*.safetensors")))
        shard.write_bytes(rng.choice(_SHARD)(shard.read_bytes(), rng))
    return target


def judge(path: Path) -> Sequence[str]:
    """Open, read every tensor, convert; only documented errors are caught."""
    import bitconv
    from bitconv.errors import BitconvError
    from bitconv.formats.checkpoint import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
    except BitconvError:
        return ["1 refused by the reader"]
    stages = ["2 passed the header"]
    with checkpoint:
        for name, entry in checkpoint.tensors.items():
            try:
                if checkpoint.read(name).nbytes != entry.nbytes:
                    raise AssertionError(f"{name} was read short")
            except BitconvError:
                stages = ["2 passed the header, a tensor refused"]
    try:
        bitconv.convert(path, path / "out.gguf", hf_tokenizer=False)
    except BitconvError:
        if list(path.glob("out.gguf*")):
            raise AssertionError("a refused conversion left a file") from None
        return [*stages, "3 refused by convert"]
    (path / "out.gguf").unlink()
    return [*stages, "3 converted"]


def prepare(folder: Path) -> None:
    """Make valid checkpoints: packed with multiplying and dividing scale, masters; one file and three shards."""
    from tests.checkpoints import make_checkpoint

    size = {"n_layers": 1, "hidden": 128, "ffn": 128, "n_heads": 2, "n_kv_heads": 1, "vocab": 301}
    make_checkpoint(folder / "packed", form="packed_autobitlinear", **size)
    make_checkpoint(folder / "llama", family="llama", form="packed_bitlinear", dtype="bfloat16", shards=3, **size)
    make_checkpoint(folder / "master", form="online", dtype="float16", **size)


TARGET = fuzz_harness.Target(prepare, mutate, judge)

if __name__ == "__main__":
    fuzz_harness.main(TARGET, __file__, 500)

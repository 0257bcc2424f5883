"""Feeds mutated GGUF files to the reader, to inspect, to the forward pass and to the tokenizer.

    python tools/fuzz_gguf.py                        # 2000 files: what became of them, and every failure
    python tools/fuzz_gguf.py --first 1234 --cases 1 # one of them again
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import fuzz_harness  # noqa: E402

_FIXED = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_INTEGERS = [0, 1, 2, 3, 7, 31, 127, 128, 255, 256, 4096, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
             2**62, 2**63 - 1, 2**63, 2**64 - 1]  # fmt: skip
_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e-5, 1e5, 3e38, float("inf"), float("-inf"), float("nan")]
_BAD_TEXT = [b"", b"\0", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x1b[2J", b"x" * 70000,
             b"{" * 9000, b"{% for i in range(10**9) %}x{% endfor %}", b"{{ 'x' * 10**10 }}"]  # fmt: skip


@dataclass
class Key:
    """One record: the bytes of its value as they are in the file."""

    name: bytes
    kind: int
    payload: bytes

    def bytes(self) -> bytes:
        return struct.pack("<Q", len(self.name)) + self.name + struct.pack("<I", self.kind) + self.payload


@dataclass
class Tensor:
    name: bytes
    ne: list[int]
    kind: int
    offset: int

    def bytes(self) -> bytes:
        head = struct.pack("<Q", len(self.name)) + self.name + struct.pack("<I", len(self.ne))
        return head + struct.pack(f"<{len(self.ne)}Q", *self.ne) + struct.pack("<IQ", self.kind, self.offset)


@dataclass
class File:
    """A GGUF file taken apart, to be put together again with something wrong."""

    keys: list[Key]
    tensors: list[Tensor]
    data: bytearray

    def bytes(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        head += b"".join(key.bytes() for key in self.keys) + b"".join(tensor.bytes() for tensor in self.tensors)
        return head + bytes(-len(head) % 32) + bytes(self.data)

    def key(self, suffix: str) -> Key:
        return next(key for key in self.keys if key.name.endswith(suffix.encode()))

    def drop(self, prefix: str) -> None:
        self.keys = [key for key in self.keys if not key.name.startswith(prefix.encode())]


def _take_string(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length], at + 8 + length


def _value_end(data: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return _take_string(data, at)[1]
    if kind != _ARRAY:
        return at + struct.calcsize(_FIXED[kind])
    element, count = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(count):
        at = _value_end(data, at, element)
    return at


def take_apart(data: bytes) -> File:
    """Parse a valid file."""
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    at, keys, tensors = 24, [], []
    for _ in range(n_keys):
        name, at = _take_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        end = _value_end(data, at + 4, kind)
        keys.append(Key(name, kind, data[at + 4 : end]))
        at = end
    for _ in range(n_tensors):
        name, at = _take_string(data, at)
        (n_dims,) = struct.unpack_from("<I", data, at)
        ne = list(struct.unpack_from(f"<{n_dims}Q", data, at + 4))
        at += 4 + 8 * n_dims
        tensors.append(Tensor(name, ne, *struct.unpack_from("<IQ", data, at)))
        at += 12
    return File(keys, tensors, bytearray(data[at + -at % 32 :]))


# ---------------------------------------------------------------- mutations of records: most pass the header


def _number(kind: int, rng: random.Random) -> bytes:
    form = _FIXED[kind]
    if kind in (6, 12):
        value = rng.choice(_FLOATS)
        return struct.pack(form, value if kind == 12 or abs(value) < 3.3e38 or value in _FLOATS[-3:] else 1.0)
    bits = 8 * struct.calcsize(form)
    value = rng.choice([*_INTEGERS, rng.getrandbits(bits)]) & (2**bits - 1)
    return struct.pack(form.upper().replace("<B", "<B"), value)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def set_value(file: File, rng: random.Random) -> None:
    """Give a key another value of its own type."""
    key = rng.choice(file.keys)
    if key.kind == _STRING:
        text = bytearray(key.payload[8:])
        if text and rng.random() < 0.5:
            text[rng.randrange(len(text))] = rng.randrange(256)
            key.payload = _text(bytes(text))
        else:
            key.payload = _text(rng.choice(_BAD_TEXT))
    elif key.kind != _ARRAY:
        key.payload = _number(key.kind, rng)
    else:
        _set_element(key, rng)


def _set_element(key: Key, rng: random.Random) -> None:
    element, count = struct.unpack_from("<IQ", key.payload)
    parts, at = [], 12
    for _ in range(count):
        end = _value_end(key.payload, at, element)
        parts.append(key.payload[at:end])
        at = end
    action = rng.choice(["set", "set", "drop", "repeat", "empty", "claim"]) if parts else "repeat"
    spot = rng.randrange(len(parts)) if parts else 0
    if action == "set":
        parts[spot] = _text(rng.choice(_BAD_TEXT)) if element == _STRING else _number(element, rng)
    elif action == "drop":
        del parts[spot:]
    else:
        parts = [] if action == "empty" else parts + parts[:1] * rng.choice([1, 50])
    claim = rng.choice(_INTEGERS) if action == "claim" else len(parts)
    key.payload = struct.pack("<IQ", element, claim) + b"".join(parts)


def set_type(file: File, rng: random.Random) -> None:
    """Call a key's bytes a value of another type, or give it one."""
    key = rng.choice(file.keys)
    key.kind = rng.choice([*range(14), 255, 2**31])
    if key.kind in _FIXED and rng.random() < 0.7:
        key.payload = _number(key.kind, rng)
    elif key.kind == _STRING and rng.random() < 0.7:
        key.payload = _text(b"llama")


def shuffle_keys(file: File, rng: random.Random) -> None:
    """Drop, repeat, rename or move a key."""
    spot = rng.randrange(len(file.keys))
    action = rng.choice(["drop", "drop", "repeat", "rename", "move"])
    if action == "drop":
        del file.keys[spot]
    elif action == "repeat":
        file.keys.append(file.keys[spot])
    elif action == "rename":
        file.keys[spot].name = rng.choice([b"", b"\xff", b"x", b"k" * 65536, file.keys[spot].name + b"\0"])
    else:
        rng.shuffle(file.keys)


def add_key(file: File, rng: random.Random) -> None:
    """Add a key that changes what the file means."""
    name, kind = rng.choice([
        (b"general.alignment", 4), (b"split.count", 2), (b"bitconv.activation_bits", 4), (b"general.file_type", 4),
        (b"tokenizer.ggml.add_bos_token", 7), (b"tokenizer.ggml.eot_token_id", 4), (b"bitnet-b1.58.vocab_size", 4),
    ])  # fmt: skip
    if all(key.name != name for key in file.keys):
        file.keys.append(Key(name, kind, _number(kind, rng)))


def change_tensor(file: File, rng: random.Random) -> None:
    """Change a tensor's record: shape, type, name, offset; or drop or repeat it."""
    spot = rng.randrange(len(file.tensors))
    tensor = file.tensors[spot]
    action = rng.choice(["dim", "swap", "dims", "kind", "kind", "name", "offset", "drop", "repeat", "fold"])
    if action == "dim":
        tensor.ne[rng.randrange(len(tensor.ne))] = rng.choice(_INTEGERS)
    elif action == "swap":
        tensor.ne.reverse()
    elif action == "dims":
        tensor.ne = [rng.choice([1, 1, 2, 0, 2**32]) for _ in range(rng.choice([0, 1, 3, 4, 5, 900]))]
    elif action == "kind":
        tensor.kind = rng.choice([0, 1, 2, 8, 14, 24, 30, 34, 35, 36, 37, 38, 39, 40, 41, 99, 2**32 - 1])
    elif action == "name":
        tensor.name = rng.choice([b"", b"\xff", b"output.weight", b"n" * 70000, rng.choice(file.tensors).name])
    elif action == "offset":
        tensor.offset = rng.choice([*_INTEGERS, rng.choice(file.tensors).offset, tensor.offset + 32])
    elif action == "drop":
        del file.tensors[spot]
    elif action == "repeat":
        file.tensors.insert(spot, tensor)
    elif len(tensor.ne) == 2:
        tensor.ne = [tensor.ne[0] * tensor.ne[1]]


def poison_data(file: File, rng: random.Random) -> None:
    """Put NaN, infinities, huge numbers or noise into the tensors: norms, scales, embeddings, codes."""
    from bitconv.formats.ggml_types import nbytes

    for _ in range(rng.choice([1, 1, 3, 20])):
        tensor = rng.choice(file.tensors)
        if tensor.kind in (36, 38, 39):  # the scale lies 32 bytes before the end
            at = tensor.offset + (nbytes(tensor.kind, tuple(tensor.ne[::-1])) or 32) - 32
            file.data[at : at + 4] = struct.pack("<f", rng.choice(_FLOATS))
        elif tensor.kind == 0:
            at = tensor.offset + 4 * rng.randrange(tensor.ne[0])
            file.data[at : at + 4] = struct.pack("<f", rng.choice(_FLOATS))
        else:
            at = tensor.offset + 2 * rng.randrange(tensor.ne[0])
            file.data[at : at + 2] = rng.choice([b"\x00\x7e", b"\x00\x7c", b"\x00\xfc", b"\xff\x7b", b"\x01\x00"])
    for _ in range(rng.choice([0, 0, 1, 100])):
        file.data[rng.randrange(len(file.data))] = rng.randrange(256)


# ---------------------------------------------------------------- mutations of bytes


def flip_bits(data: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random, end: int) -> None:
    del data[rng.choice([rng.randrange(end), rng.randrange(len(data)), len(data) - rng.randrange(40)]) :]


def insert(data: bytearray, rng: random.Random, end: int) -> None:
    at = rng.randrange(end)
    data[at:at] = rng.randbytes(rng.choice([1, 4, 8, 32, 1000]))


def remove(data: bytearray, rng: random.Random, end: int) -> None:
    at = rng.randrange(end)
    del data[at : at + rng.choice([1, 4, 8, 32, 1000])]


def grow_number(data: bytearray, rng: random.Random, end: int) -> None:
    """Overwrite what may be a count, a length or an offset."""
    at = rng.choice([8, 16, rng.randrange(end - 8)])
    form = rng.choice(["<I", "<Q", "<Q"])
    data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(_INTEGERS) % 2 ** (8 * struct.calcsize(form)))


def bad_text(data: bytearray, rng: random.Random, end: int) -> None:
    letters = [at for at in range(24, end) if 97 <= data[at] < 123]
    for at in rng.sample(letters, k=min(len(letters), rng.choice([1, 3]))):
        data[at] = rng.choice([0, 0x1B, 0x80, 0xC3, 0xF5, 0xFF])


_RECORDS: list[Callable[[File, random.Random], None]] = [
    set_value, set_value, set_type, shuffle_keys, add_key, change_tensor, poison_data, poison_data]  # fmt: skip
_BYTES: list[Callable[[bytearray, random.Random, int], None]] = [flip_bits, cut, insert, remove, grow_number, bad_text]


def mutate(bases: Path, rng: random.Random, folder: Path) -> Path:
    """Write one hostile file into the folder."""
    data = bytearray(rng.choice(sorted(bases.iterdir())).read_bytes())
    if rng.random() < 0.65:
        file = take_apart(bytes(data))
        with contextlib.suppress(struct.error, LookupError, ValueError):  # a record that is broken already
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                rng.choice(_RECORDS)(file, rng)
        data = bytearray(file.bytes())
    else:
        file = take_apart(bytes(data))
        end = len(data) - len(file.data) if rng.random() < 0.8 else len(data)
        rng.choice(_BYTES)(data, rng, max(end, 9))
    path = folder / "hostile.gguf"
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------- what is done with a file


def judge(path: Path) -> Sequence[str]:
    """Take a file as far as it goes; only documented errors are caught."""
    from bitconv.cli.inspect import report
    from bitconv.errors import BitconvError
    from bitconv.formats.gguf import open_gguf
    from bitconv.pipeline.inspect import inspect

    try:
        with open_gguf(path) as gguf:
            for name in gguf.tensors:
                gguf.data(name)
    except BitconvError:
        return ["1 refused by the reader"]
    stages = ["2 passed the header"]
    try:
        report(inspect(path, count_weights=True), tensors=True)
    except BitconvError:
        stages.append("3 refused by inspect --tensors")
    else:
        stages.append("3 shown by inspect --tensors")
    stages += [_forward(path), _tokenize(path)]
    if zlib.crc32(path.read_bytes()) % 4:  # what follows takes the longest
        return stages
    return [*stages, _verify(path), _quantize(path)]


def _forward(path: Path) -> str:
    import numpy as np

    import bitconv
    from bitconv.errors import BitconvError

    try:
        model = bitconv.load(path, threads=1)
    except BitconvError:
        return "4 refused by load"
    try:
        logits = model.logits([1, 2, 0])
    except BitconvError:
        return "5 refused during the forward step"
    if not np.isfinite(logits).all():
        raise AssertionError("logits that are not finite")
    return "5 made a forward step"


def _tokenize(path: Path) -> str:
    from bitconv.errors import BitconvError
    from bitconv.formats.gguf import open_gguf
    from bitconv.formats.vocabulary import read_vocabulary
    from bitconv.runtime.chat import render
    from bitconv.runtime.tokenizer import Tokenizer

    try:
        vocabulary = read_vocabulary(open_gguf(path))
        tokenizer = Tokenizer(vocabulary)
        tokenizer.decode(tokenizer.encode("The quick brown fox, 1234 times.\n"))
    except BitconvError:
        return "6 refused by the tokenizer"
    try:
        render(vocabulary, [{"role": "user", "content": "hello"}])
    except BitconvError:
        return "6 tokenized, refused by the chat template"
    return "6 tokenized and rendered"


def _verify(path: Path) -> str:
    import bitconv
    from bitconv.errors import BitconvError

    try:
        return "7 verified as sound" if bitconv.verify(path).ok else "7 verified as damaged"
    except BitconvError:
        return "7 refused by verify"


def _quantize(path: Path) -> str:
    import bitconv
    from bitconv.errors import BitconvError

    target = path.with_name("quantized.gguf")
    target.unlink(missing_ok=True)
    kind = ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0", "f32")[path.stat().st_size // 32 % 6]
    try:
        bitconv.quantize(path, target, type=kind, threads=1)
    except BitconvError:
        if {target.name, target.name + ".partial"} & {left.name for left in path.parent.iterdir()}:
            raise AssertionError("something is left of a file that was refused") from None
        return "8 refused by quantize"
    for check in bitconv.verify(target, path).tensors:
        if check.result in ("different", "missing", "rounded"):
            raise AssertionError(f"the quantized file holds something else: {check}")
    return "8 quantized and found equal"


def prepare(folder: Path) -> None:
    """Make the valid models: both graphs, every type that the converter writes, every way to a tokenizer."""
    import bitconv
    from bitconv.errors import UnsupportedError
    from bitconv.tensor_types import tensor_types
    from tests.checkpoints import make_checkpoint

    models: list[tuple[str, str, dict[str, Any]]] = [
        ("bitnet", "bitnet", {}),
        ("llama", "llama", {"embedding_type": "f32", "hf_tokenizer": False}),
        ("dense", "bitnet", {"type": "f16", "hf_tokenizer": False}),
    ]
    others = [kind.name for kind in tensor_types() if kind.name not in ("I2_S", "F32", "F16")]
    models += [(f"type-{name}", "bitnet", {"type": name.lower()}) for name in others]
    models += [(f"embedding-{name}", "bitnet", {"embedding_type": name.lower()}) for name in others]
    source = folder.parent / "source"
    for name, family, options in models:
        width = 256 if "-" in name else 128  # some types need whole blocks of 256
        make_checkpoint(source / name, family=family, n_layers=1, hidden=width, ffn=width, n_heads=2, n_kv_heads=1)
        with warnings.catch_warnings(), contextlib.suppress(UnsupportedError):  # not every type serves every purpose
            warnings.simplefilter("ignore")  # rounding in F16 is meant
            bitconv.convert(source / name, folder / f"{name}.gguf", **options)
    file = take_apart((folder / "llama.gguf").read_bytes())
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), *"▁ t h e q u i".encode().split()]
    pieces += [b"[PAD%d]" % i for i in range(301 - len(pieces))]
    file.drop("tokenizer.")
    file.keys += [
        Key(b"tokenizer.ggml.model", _STRING, _text(b"llama")),
        Key(b"tokenizer.ggml.tokens", _ARRAY, struct.pack("<IQ", _STRING, 301) + b"".join(map(_text, pieces))),
        Key(b"tokenizer.ggml.scores", _ARRAY, struct.pack("<IQ301f", 6, 301, *(-float(i) for i in range(301)))),
        Key(b"tokenizer.ggml.token_type", _ARRAY,
            struct.pack("<IQ301i", 5, 301, 2, 3, 3, *[6] * 256, *[1] * 42)),
        Key(b"tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
        Key(b"tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 2)),
        Key(b"tokenizer.chat_template", _STRING, _text(b"{% for m in messages %}{{ m['content'] }}{% endfor %}")),
    ]  # fmt: skip
    (folder / "spm.gguf").write_bytes(file.bytes())


TARGET = fuzz_harness.Target(prepare, mutate, judge)

if __name__ == "__main__":
    fuzz_harness.main(TARGET, __file__, 2000)

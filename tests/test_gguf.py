"""The GGUF reader: what it returns for good files, and the named error for every kind of bad one."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitconv.errors import BitconvError, FormatError, InputError, UnsupportedError
from bitconv.formats import ggml_types, gguf_metadata
from bitconv.formats.gguf import GgufFile, open_gguf
from tests.gguf_builder import Gguf, array, key, raw_key, simple, string, tensor
from tests.paths import SHARED

ARCH = key("general.architecture", "str", "bitnet-b1.58")
F32, F16, I2_S, ID_39 = 0, 1, 36, 39


@pytest.fixture
def opened(tmp_path):
    """Open bytes as a file."""

    def open_bytes(data: bytes) -> GgufFile:
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        return open_gguf(path)

    return open_bytes


def fails(opened, data: bytes, error: type[BitconvError], *words: str) -> None:
    with pytest.raises(error) as caught:
        opened(data)
    for word in ("m.gguf", *words):
        assert word in str(caught.value)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.isprintable)
SCALARS = st.one_of(
    st.tuples(st.just("u8"), st.integers(0, 2**8 - 1)),
    st.tuples(st.just("i16"), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just("u32"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("u64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("i64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("f32"), st.floats(width=32)),
    st.tuples(st.just("f64"), st.floats()),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("str"), st.text(st.characters(codec="utf-8"))),
    st.tuples(st.just("arr[i32]"), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)),
    st.tuples(st.just("arr[f32]"), st.lists(st.floats(width=32), max_size=5)),
    st.tuples(st.just("arr[bool]"), st.lists(st.booleans(), max_size=5)),
    st.tuples(st.just("arr[str]"), st.lists(st.text(st.characters(codec="utf-8")), max_size=5)),
)


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(same(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(wanted, float) and math.isnan(wanted):
        return math.isnan(found)
    return bool(found == wanted)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(NAMES.filter(lambda n: n != "general.alignment" and n != "split.count"), SCALARS))
def test_every_value_comes_back(opened, values):
    with opened(Gguf(keys=[key(name, *value) for name, value in values.items()]).build()) as file:
        assert list(file.metadata) == list(values)
        for name, (kind, wanted) in values.items():
            assert file.metadata_types[name] == kind
            assert same(file.metadata[name], wanted)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=5),
    type_ids=st.lists(st.sampled_from([0, 1, 24, 25, 26, 27, 28, 30]), min_size=5, max_size=5),
)
def test_every_tensor_comes_back(opened, shapes, type_ids):
    rows = [
        (f"t{i}", shape[::-1], type_id, ggml_types.nbytes(type_id, tuple(shape)))
        for i, (shape, type_id) in enumerate(zip(shapes, type_ids, strict=False))
    ]
    data = simple(rows, [ARCH])
    with opened(data) as file:
        assert list(file.tensors) == [row[0] for row in rows]
        for i, (name, ne, type_id, nbytes) in enumerate(rows):
            info = file.tensors[name]
            assert (info.shape, info.type_id, info.nbytes) == (tuple(ne[::-1]), type_id, nbytes)
            assert file.data(name).tobytes() == bytes((j * 7 + i) % 251 for j in range(nbytes))
            assert data[info.offset : info.offset + nbytes] == file.data(name).tobytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_a_named_error_or_a_consistent_file(opened, data):
    good = small_model()
    at = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(max_size=8))
    bad = good[:at] + junk + good[at + len(junk) * data.draw(st.integers(0, 1)) :]
    try:
        with opened(bad) as file:
            for info in file.tensors.values():
                assert len(file.data(info.name)) == info.nbytes
            for name in file.metadata:
                list(file.metadata[name]) if file.metadata_types[name] == "arr[str]" else None
    except BitconvError as error:
        assert "m.gguf" in str(error)


def small_model() -> bytes:
    keys = [ARCH, key("a.b", "u32", 7), key("toks", "arr[str]", ["x", "äö", ""]), key("s", "arr[f32]", [1.0, 2.0])]
    return simple([("w", (128, 4), I2_S, 160), ("n", (5,), F32, 20), ("e", (4, 3), F16, 24)], keys)


def test_a_file_cut_anywhere_before_its_last_tensor_ends_is_refused(opened):
    good = small_model()
    end = len(good) - 8  # the last tensor's 24 bytes are padded by 8, which may be missing
    for length in range(end):
        fails(opened, good[:length], FormatError)
    opened(good[:end])


def test_a_truncated_file_names_the_tensor_and_both_sizes(opened):
    good = small_model()
    fails(opened, good[:-16], FormatError, "tensor e", "24 bytes", f"{len(good) - 16}", "truncated")
    fails(opened, good[:-64], FormatError, "tensor ", "truncated")


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", FormatError, ["0 bytes"]),
        (b"GGUF", FormatError, ["version"]),
        (b"PK\x03\x04" + bytes(40), FormatError, ["not a GGUF file", "PK"]),
        (b"FUGG" + bytes(40), UnsupportedError, ["big-endian"]),
        (b"tjgg" + bytes(40), UnsupportedError, ["before GGUF"]),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), UnsupportedError, ["big-endian", "gguf-convert-endian"]),
        (Gguf(version=1).build(), UnsupportedError, ["version 1", "2 and 3"]),
        (Gguf(version=4).build(), UnsupportedError, ["version 4"]),
        (Gguf(version=0).build(), UnsupportedError, ["version 0"]),
        (Gguf(n_tensors=2**63).build(), FormatError, [str(2**63), "tensors"]),
        (Gguf(n_keys=2**63).build(), FormatError, [str(2**63), "keys"]),
        (Gguf(n_keys=2**64 - 1).build(), FormatError, ["keys"]),
        (Gguf(keys=[ARCH], n_keys=3, data=bytes(64)).build(), FormatError, ["key 1 of 3", "0 bytes long"]),
        (Gguf(keys=[ARCH], n_keys=2, data=b"\xff" * 64).build(), FormatError, ["key 1 of 2"]),
        (Gguf(keys=[ARCH, ARCH]).build(), FormatError, ["general.architecture", "twice"]),
        (Gguf(keys=[key(b"\xff\xfe", "u8", 1)]).build(), FormatError, ["UTF-8"]),
        (Gguf(keys=[key("a\x1b[2J", "u8", 1)]).build(), FormatError, ["control characters"]),
        (Gguf(keys=[key("k" * 65536, "u8", 1)]).build(), FormatError, ["65536", "65535"]),
        (Gguf(keys=[raw_key("k", 13, bytes(8))]).build(), FormatError, ["k", "type 13"]),
        (Gguf(keys=[raw_key("k", 7, b"\x02")]).build(), FormatError, ["k", "bool", "2"]),
        (Gguf(keys=[raw_key("k", 8, string("x", 2**63))]).build(), FormatError, ["k", str(2**63)]),
        (Gguf(keys=[raw_key("k", 8, string(b"\xc3\x28"))]).build(), FormatError, ["k", "UTF-8"]),
        (Gguf(keys=[raw_key("k", 8, string(b"a" * 5000 + b"\xc3"))]).build(), FormatError, ["k", "UTF-8"]),
        (Gguf(keys=[array("k", 6, 2**62, bytes(8))]).build(), FormatError, ["k", "truncated"]),
        (Gguf(keys=[array("k", 6, 2**64 - 1, bytes(8))]).build(), FormatError, ["k", "truncated"]),
        (Gguf(keys=[array("k", 8, 2**61, bytes(8))]).build(), FormatError, ["k", str(2**61)]),
        (Gguf(keys=[array("k", 8, 2, string("a") + string("b", 2**63))]).build(), FormatError, ["k", "string 1"]),
        (Gguf(keys=[array("k", 8, 2, string("a") + string("b", 99))]).build(), FormatError, ["k", "string 1"]),
        (Gguf(keys=[array("k", 8, 2, string("a", 2**64 - 1) + bytes(9))]).build(), FormatError, ["string 0"]),
        (Gguf(keys=[array("k", 7, 3, b"\0\1\2")]).build(), FormatError, ["k", "bool", "2"]),
        (Gguf(keys=[array("k", 9, 1, struct.pack("<IQ", 4, 0))]).build(), UnsupportedError, ["array of arrays"]),
        (Gguf(keys=[array("k", 99, 0, b"")]).build(), FormatError, ["k", "type 99"]),
        (Gguf(keys=[key("split.count", "u16", 3)]).build(), UnsupportedError, ["3 parts", "--merge"]),
        (Gguf(keys=[key("general.alignment", "u64", 32)]).build(), FormatError, ["general.alignment", "u64"]),
        (Gguf(keys=[key("general.alignment", "u32", 48)]).build(), FormatError, ["48", "power of two"]),
        (Gguf(keys=[key("general.alignment", "u32", 0)]).build(), FormatError, ["power of two"]),
        (Gguf(keys=[key("general.alignment", "u32", 2**31)], tensors=[tensor("t", (1,), 0, 0)]).build(),
         FormatError, ["tensor t", str(2**31)]),
        (Gguf(tensors=[tensor("t", (), 0, 0)], data=bytes(64)).build(), FormatError, ["tensor t", "0 dimensions"]),
        (Gguf(tensors=[tensor("t", (1,) * 5, 0, 0)], data=bytes(64)).build(), FormatError, ["5 dimensions"]),
        (Gguf(tensors=[tensor("t", (1,), 0, 0, n_dims=2**32 - 1)]).build(), FormatError, ["4294967295"]),
        (Gguf(tensors=[tensor("t", (0, 4), 0, 0)], data=bytes(64)).build(), FormatError, ["impossible", "[4, 0]"]),
        (Gguf(tensors=[tensor("t", (2**32, 2**32), 0, 0)], data=bytes(64)).build(), FormatError, ["impossible"]),
        (Gguf(tensors=[tensor("t", (2**62,), 0, 0)], data=bytes(64)).build(), FormatError, [str(2**64)]),
        (Gguf(tensors=[tensor("t", (4,), 0, 8)], data=bytes(64)).build(), FormatError, ["offset 8", "32"]),
        (Gguf(tensors=[tensor("t", (4,), 0, 2**63)], data=bytes(64)).build(),
         FormatError, ["tensor t at", "has ended"]),
        (Gguf(tensors=[tensor("t", (4,), 2**31, 0)], data=bytes(64)).build(), FormatError, ["type id 2147483648"]),
        (Gguf(tensors=[tensor("t", (33,), 8, 0)], data=bytes(64)).build(), FormatError, ["Q8_0", "32", "[33]"]),
        (Gguf(tensors=[tensor("t", (3,), 36, 0)], data=bytes(64)).build(), FormatError, ["I2_S", "[3]"]),
        (Gguf(tensors=[tensor("t", (4,), 0, 0), tensor("t", (4,), 0, 32)], data=bytes(64)).build(),
         FormatError, ["tensor t", "twice"]),
        (Gguf(tensors=[tensor("t", (4,), 0, 0), tensor("u", (4,), 0, 0)], data=bytes(64)).build(),
         FormatError, ["tensor t", "before the next one"]),
        (Gguf(tensors=[tensor("t", (4,), 0, 32), tensor("u", (4,), 0, 0)], data=bytes(64)).build(),
         FormatError, ["tensor t", "before the next one"]),
        (Gguf(tensors=[tensor("t", (16,), 0, 0), tensor("u", (4,), 0, 32)], data=bytes(64)).build(),
         FormatError, ["tensor t", "64 bytes", "next tensor"]),
        (Gguf(tensors=[tensor("t", (2,), 0, 0)], n_tensors=2, data=bytes(64)).build(), FormatError, ["tensor 1 of 2"]),
    ],
)  # fmt: skip
def test_malformed_file_gives_the_error_that_names_the_fault(opened, data, error, words):
    fails(opened, data, error, *words)


def test_more_records_than_any_model_has_are_unsupported(opened):
    many = Gguf(keys=[key(f"k{i}", "u8", 0) for i in range(16385)])
    fails(opened, many.build(), UnsupportedError, "16385 keys")


def test_more_strings_than_any_vocabulary_has_are_unsupported(opened, monkeypatch):
    monkeypatch.setattr(gguf_metadata, "MAX_ARRAY_STRINGS", 5)
    keys = [key("a", "arr[str]", ["x"] * 3), key("b", "arr[str]", ["y"] * 3)]
    fails(opened, Gguf(keys=keys).build(), UnsupportedError, "key b")


def test_longer_text_than_any_tokenizer_has_is_unsupported(opened, monkeypatch):
    monkeypatch.setattr(gguf_metadata, "MAX_TEXT", 20)
    keys = [key("a", "str", "x" * 11), key("b", "str", "x" * 11)]
    opened(Gguf(keys=keys[:1]).build())
    fails(opened, Gguf(keys=keys).build(), UnsupportedError, "key b", "20 bytes")
    fails(opened, Gguf(keys=[keys[0], key("c", "arr[bool]", [True] * 11)]).build(), UnsupportedError, "key c")


@pytest.mark.parametrize("kind", [8, 9])
def test_a_sparse_file_of_terabytes_is_not_read_through(tmp_path, kind):
    path = tmp_path / "m.gguf"
    size = 1 << 40
    payload = struct.pack("<Q", size) if kind == 8 else struct.pack("<IQ", 7, size)
    with open(path, "wb") as file:
        file.write(Gguf(keys=[raw_key("k", kind, payload)]).build())
        try:
            file.truncate(2 * size)
        except OSError:
            pytest.skip("the file system has no large sparse files")
    with pytest.raises(UnsupportedError, match="key k"):
        open_gguf(path)


def test_bad_utf8_in_a_string_array_is_found_when_read_and_names_key_and_index(opened):
    file = opened(Gguf(keys=[array("toks", 8, 3, string("ok") + string(b"\xff") + string("ok"))]).build())
    tokens = file.metadata["toks"]
    assert tokens[0] == tokens[-1] == "ok" and tokens.raw(1) == b"\xff"
    for decode in (lambda: tokens[1], lambda: list(tokens), lambda: tokens[:2]):
        with pytest.raises(FormatError, match=r"m\.gguf: key toks, string 1: not UTF-8"):
            decode()


def test_version_2_is_read_like_version_3(opened):
    built = Gguf(keys=[ARCH], tensors=[tensor("t", (2,), 0, 0)], data=bytes(8), version=2)
    file = opened(built.build())
    assert file.version == 2 and file.tensors["t"].nbytes == 8


def test_long_text_is_decoded_when_asked_for(opened):
    text = "añ" * 5000
    assert opened(Gguf(keys=[key("k", "str", text)]).build()).get("k", str) == text


def test_other_alignment_is_honoured(opened):
    built = Gguf(
        keys=[key("general.alignment", "u32", 256)],
        tensors=[tensor("a", (2,), 0, 0), tensor("b", (2,), 0, 256)],
        data=b"\1" * 8 + bytes(248) + b"\2" * 8,
        alignment=256,
    )
    file = opened(built.build())
    assert file.alignment == 256
    assert file.data("a").tobytes() == b"\1" * 8 and file.data("b").tobytes() == b"\2" * 8


def test_gaps_between_tensors_are_tolerated(opened):
    built = Gguf(tensors=[tensor("a", (2,), 0, 0), tensor("b", (2,), 0, 96)], data=bytes(96) + b"\2" * 8)
    assert opened(built.build()).data("b").tobytes() == b"\2" * 8


def test_unknown_types_are_listed_with_the_room_they_have(opened):
    built = Gguf(tensors=[tensor("a", (2,), 134, 0), tensor("b", (2,), 99, 64)], data=bytes(100))
    tensors = opened(built.build()).tensors
    assert (tensors["a"].type_name, tensors["a"].nbytes) == ("unknown(134)", 64)
    assert (tensors["b"].type_name, tensors["b"].nbytes) == ("unknown(99)", 36)


TL2_BYTES, MXFP4_BYTES = ggml_types.tl2_nbytes((96, 288)), ggml_types.mxfp4_nbytes((96, 288))


@pytest.mark.parametrize("arch", ["bitnet-b1.58", "llama", None])
@pytest.mark.parametrize("file_type", [38, 39, None])
@pytest.mark.parametrize(("nbytes", "name"), [(TL2_BYTES, "TL2"), (MXFP4_BYTES, "MXFP4")])
@pytest.mark.parametrize("last", [True, False])
def test_id_39_is_what_fills_its_room(opened, arch, file_type, nbytes, name, last):
    keys = [key("general.architecture", "str", arch)] if arch else []
    keys += [key("general.file_type", "u32", file_type)] if file_type else []
    rows = [("t", (288, 96), ID_39, nbytes)] + ([] if last else [("n", (1,), F32, 4)])
    info = opened(simple(rows, keys)).tensors["t"]
    assert (info.type_name, info.nbytes) == (name, nbytes)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ([ARCH], "TL2"),
        ([key("general.architecture", "str", "llama")], "MXFP4"),
        ([key("general.architecture", "str", "llama"), key("general.file_type", "u32", 39)], "TL2"),
    ],
)
def test_id_39_with_room_for_both_follows_architecture_and_file_type(opened, keys, name):
    room = MXFP4_BYTES + 64
    assert opened(simple([("t", (288, 96), ID_39, room)], keys)).tensors["t"].type_name == name


def test_id_39_that_fits_neither_is_refused(opened):
    fails(opened, simple([("t", (288, 96), ID_39, TL2_BYTES - 32)], [ARCH]), FormatError, "tensor t", "TL2", "MXFP4")
    fails(opened, simple([("t", (40, 96), ID_39, 4096)], [ARCH]), FormatError, "TL2", "MXFP4")


def test_typed_access_names_key_and_both_types(opened):
    keys = [key("n", "u32", 7), key("f", "f32", 0.5), key("b", "bool", True), key("s", "str", "x"),
            key("a", "arr[i32]", [1]), key("t", "arr[str]", ["x"]), key("inf", "f32", math.inf)]  # fmt: skip
    file = opened(Gguf(keys=keys).build())
    assert (file.get("n", int), file.get("f", float), file.get("b", bool), file.get("s", str)) == (7, 0.5, True, "x")
    assert file.get("a", np.ndarray).tolist() == [1] and list(file.get("t", list)) == ["x"]
    assert file.get("absent", int, None) is None
    for name, kind, words in [
        ("n", float, "key n must be of type float, found u32"),
        ("b", int, "key b must be of type int, found bool"),
        ("s", int, "key s must be of type int, found str"),
        ("n", bool, "key n must be of type bool, found u32"),
        ("a", list, "found arr"),
        ("t", np.ndarray, "found arr"),
        ("inf", float, "finite"),
        ("absent", int, "key absent is missing"),
    ]:
        with pytest.raises(FormatError, match=words):
            file.get(name, kind)


def test_views_are_read_only_and_outlive_the_file(opened):
    with opened(small_model()) as file:
        view, tokens, numbers = file.data("n"), file.metadata["toks"], file.metadata["s"]
        file.advise("w")
    assert view.nbytes == 20 and list(tokens) == ["x", "äö", ""] and numbers.tolist() == [1.0, 2.0]
    for part in (view, numbers):
        assert not part.flags.writeable
    with pytest.raises(ValueError, match="closed"):
        file.data("n")
    with pytest.raises(FormatError, match="no tensor absent"):
        file.data("absent")


def test_paths_that_are_no_files_are_input_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, word in [(tmp_path / "absent", "No such file"), (tmp_path, "directory"), (tmp_path / "pipe", "regular")]:
        with pytest.raises(InputError, match=word):
            open_gguf(path)
    with pytest.raises(InputError):
        open_gguf("a\0b")


def test_type_sizes_agree_with_the_gguf_package():
    from gguf.constants import GGML_QUANT_SIZES

    for kind, (block, size) in GGML_QUANT_SIZES.items():
        if kind.value != ID_39:
            assert ggml_types.nbytes(kind.value, (3, block * 2)) == 6 * size
            assert ggml_types.ggml_type(kind.value).name == kind.name
    assert ggml_types.mxfp4_nbytes((2, 64)) == 4 * 17


def test_ternary_sizes_are_those_of_the_reference():
    assert ggml_types.nbytes(36, (4, 128)) == ggml_types.nbytes(38, (4, 128)) == 160
    assert ggml_types.nbytes(39, (4096, 1536)) == 1354464
    assert ggml_types.nbytes(250, (4, 4)) is None
    assert ggml_types.file_type_name(40, {"I2_S", "F32"}) == "I2_S"
    assert ggml_types.file_type_name(40) == "Q1_0"
    assert ggml_types.file_type_name(77) == "unknown(77)"


FILES = sorted((SHARED / "data/tokenizers/gguf-vocab").glob("*.gguf")) if SHARED else []
# the gguf package takes ten seconds for some
VOCABULARIES = [pytest.param(f, marks=[pytest.mark.slow] * ("spm" not in f.stem), id=f.stem) for f in FILES]


@pytest.mark.skipif(not VOCABULARIES, reason="no reference vocabularies beside the checkout")
@pytest.mark.parametrize("path", VOCABULARIES)
def test_real_files_read_as_the_gguf_package_reads_them(path: Path):
    from gguf import GGUFReader

    fields = {name: field for name, field in GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    file = open_gguf(path)
    assert list(file.metadata) == list(fields)
    for name, reference in fields.items():
        assert same(as_plain(file.metadata[name]), reference.contents()), name


def as_plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, gguf_metadata.StringArray) else value

"""The safetensors header: judged as the library judges it, and every fault names its tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats.checkpoint import open_checkpoint
from bitconv.formats.safetensors_header import BITS, parse_header

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def bits(tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()



def library_accepts(data: bytes) -> bool:
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(data)
    except SafetensorError:
        return False
    return True


def we_accept(folder: Path, data: bytes) -> str | None:
    """None when accepted, else the message."""
    (folder / "model.safetensors").write_bytes(data)
    try:
        open_checkpoint(folder).close()
    except FormatError as error:
        assert "model.safetensors" in str(error)
        return str(error)
    return None


def file_of(header: object, body: bytes = b"") -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + body


# what we refuse and the library lets pass, by the words of our message
STRICTER = ("occurs twice", "exactly dtype, shape and data_offsets", "control characters")
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 12, 16, 2**31, 2**62, 2**63, 2**64 - 1, 2**64, -1, True, 1.0, "4", None])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F32", "F32", "BF16", "I4", "f32", "", None, 7]),
        "shape": st.lists(SIZES, max_size=3) | st.sampled_from([[1], [2], [4], [2, 2], [], [0], None, "x", {}]),
        "data_offsets": st.lists(SIZES, max_size=3) | st.sampled_from([[0, 4], [4, 8], [0, 8], [8, 4], [0, 0], None]),
    },
    optional={"extra": st.none()},
)
HEADERS = st.dictionaries(st.text(max_size=2) | st.sampled_from(["a", "b"]), ENTRY, max_size=3).flatmap(
    lambda entries: st.one_of(
        st.just(entries),
        st.builds(lambda m: {**entries, "__metadata__": m}, st.sampled_from([None, {}, {"k": "v"}, {"k": 1}, [], "x"])),
    )
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(header=HEADERS, body=st.sampled_from([0, 1, 2, 4, 8, 12, 16]))
def test_headers_are_judged_as_the_library_judges_them(folder, header, body):
    data = file_of(header, bytes(body))
    message = we_accept(folder, data)
    if library_accepts(data):
        assert message is None or any(word in message for word in STRICTER), message
    else:
        assert message is not None


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_are_judged_as_the_library_judges_them(folder, data):
    good = safetensors_torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4).half()}, {"format": "pt"})
    at = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(max_size=3) | st.sampled_from([b" ", b"0", b"9", b"-", b".", b"[", b"\\", b'"', b","]))
    bad = good[:at] + junk + good[at + len(junk) * data.draw(st.integers(0, 1)) :]
    if data.draw(st.booleans()) and len(bad) >= 8:  # make the length right again, so that the JSON is reached
        end = bad.rfind(b"}") + 1 or len(bad)
        bad = struct.pack("<Q", max(end - 8, 0)) + bad[8:]
    message = we_accept(folder, bad)
    if library_accepts(bad):
        assert message is None or any(word in message for word in STRICTER), message
    else:
        assert message is not None


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda n: n.isprintable() and n != "__metadata__"),
        st.tuples(st.sampled_from(["float32", "float16", "bfloat16", "uint8", "int64", "bool"]),
                  st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)  # fmt: skip
def test_what_the_library_writes_is_read(folder, arrays):
    made = {name: torch.ones(shape).to(getattr(torch, dtype)) for name, (dtype, shape) in arrays.items()}
    (folder / "model.safetensors").write_bytes(safetensors_torch.save(made))
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(made)
        for name, tensor in made.items():
            assert np.array_equal(checkpoint.read(name), bits(tensor))


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
         4, '"a" occurs twice'),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}, 4, "tensor a: must have exactly"),
        ({"a": ["F32", [1], [0, 4]]}, 4, "tensor a: must have exactly"),
        ({"a\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4, "control characters"),
        ({"a": {"dtype": "I4", "shape": [2], "data_offsets": [0, 1]}}, 1, "unknown dtype 'I4'"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4, "tensor a: shape .2. of F32 needs 8 bytes"),
        ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, 2, "tensor a: shape .3. of F4 needs 2 bytes"),
        ({"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}, 0, "impossible"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 5, "belong to no tensor"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 3, "truncated"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8, "tensor a .*hole"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
          "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, 6, "tensor b .*overlaps"),
    ],
)  # fmt: skip
def test_header_faults_name_the_tensor(folder, header, body, words):
    data = file_of(header, bytes(body))
    with pytest.raises(FormatError, match="model.safetensors: " + "(.*)" + words):
        parse_header(data[8 : len(data) - body], len(data), "model.safetensors")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are no safetensors"),
        (b"1234567", "7 bytes are no safetensors"),
        (struct.pack("<Q", 100_000_001) + bytes(50), "claims a header of 100000001"),
        (struct.pack("<Q", 2**63) + bytes(50), "claims a header of 9223372036854775808"),
        (struct.pack("<Q", 90_000_000) + bytes(50), "needs 90000008 bytes for its header"),
        (file_of(b""), "not valid JSON"),
    ],
)
def test_file_faults_are_named(folder, data, words):
    assert words in (we_accept(folder, data) or "")


@pytest.mark.parametrize("shape", [[1] * 100, [0, 2**62]])
def test_shapes_that_numpy_cannot_hold_are_format_errors(folder, shape):
    size = 4 if 0 not in shape else 0
    data = file_of({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(size))
    assert library_accepts(data) and we_accept(folder, data) is None
    with open_checkpoint(folder) as checkpoint, pytest.raises(FormatError, match="impossible shape"):
        checkpoint.read("a")


def test_a_dtype_below_a_byte_is_unsupported(folder):
    (folder / "model.safetensors").write_bytes(
        file_of({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x")
    )
    with open_checkpoint(folder) as checkpoint, pytest.raises(UnsupportedError, match="tensor a is F4"):
        checkpoint.read("a")

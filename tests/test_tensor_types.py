"""Packing of tensor types: what comes back is what went in, and the bytes are those of the format."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats import ggml_types
from bitconv.tensor_types import tensor_type, tensor_types
from tests.paths import SHARED

I2_S = tensor_type("i2_s")
TERNARY = [I2_S]  # the other ternary types have files of their own: test_types_tl.py, test_types_tq.py
DENSE = [one for one in tensor_types() if not one.ternary]


def g1(rows: int, cols: int) -> np.ndarray:
    """The generator of the documented examples."""
    r, c = np.ogrid[:rows, :cols]
    return ((r * r + 7 * r * c + 3 * c + c // 5) % 3 - 1).astype(np.int8)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.integers(1, 9)), 128 * draw(st.integers(1, 4))
    return draw(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))


scales = st.floats(2**-100, 2**100, width=32)


@pytest.mark.parametrize("kind", TERNARY, ids=lambda one: one.name)
@settings(max_examples=40, deadline=None)
@given(trits=matrices(), scale=scales)
def test_unpacking_returns_what_was_packed(kind, trits, scale):
    packed = kind.pack(trits, scale)
    assert packed.dtype == np.uint8 and packed.size == kind.nbytes(*trits.shape)
    found, multiplier = kind.unpack(packed, *trits.shape)
    assert found.dtype == np.int8 and np.array_equal(found, trits) and multiplier == scale


@pytest.mark.parametrize("kind", TERNARY, ids=lambda one: one.name)
@settings(max_examples=20, deadline=None)
@given(trits=matrices(), cut=st.integers(0, 9))
def test_a_tensor_packed_in_pieces_has_the_same_bytes(kind, trits, cut):
    pieces = [kind.pack_rows(part) for part in (trits[:cut], trits[cut:]) if len(part)]
    assert np.array_equal(np.concatenate([*pieces, kind.tail(0.5)]), kind.pack(trits, 0.5))


def test_documented_i2_s_bytes():
    """The first 32 bytes of the 4 x 128 example as the reference packer wrote them, its tail, its length."""
    packed = I2_S.pack(g1(4, 128), 0.75)
    first = "0105051516565a5a6a68a8a0a080810105051516565a5a6a68a8a0a080810105"
    assert packed[:32].tobytes().hex() == first
    assert packed[128:].tobytes() == np.float32(0.75).tobytes() + bytes(28) and packed.size == 160


def test_documented_i2_s_hash_of_a_large_tensor():
    packed = I2_S.pack(g1(640, 2560), 1.0)
    expected = "6e4837edf4d371910f0deeac7a7244331fba43d7ec7e1636013953b5720dd501"
    assert hashlib.sha256(packed.tobytes()).hexdigest() == expected


def test_i2_s_places_each_weight_where_the_format_says():
    """One weight at a time: index i of a row lies in byte 32 * (i // 128) + i % 32, two bits from the top."""
    for i in (0, 31, 32, 63, 64, 95, 96, 127, 128, 200, 255):
        trits = np.zeros((2, 256), np.int8)
        trits[1, i] = 1
        expected = np.full(128, 0x55, np.uint8)
        expected[64 + i // 128 * 32 + i % 32] += 1 << (6 - 2 * (i % 128 // 32))
        assert np.array_equal(I2_S.pack(trits, 1.0)[:128], expected), i


@pytest.mark.parametrize("name", ["4x128", "8x256", "32x384"])
def test_i2_s_reproduces_the_reference_vectors(name):
    if SHARED is None:
        pytest.skip("reference vectors are not beside the checkout")
    vector = np.load(SHARED / f"spec/vectors/i2s_{name}.npz")
    assert np.array_equal(I2_S.pack(vector["W"], float(vector["scale"])), vector["packed_x86"])
    trits, scale = I2_S.unpack(vector["packed_x86"], *vector["W"].shape)
    assert np.array_equal(trits, vector["W"]) and scale == float(vector["scale"])


def test_i2_s_ignores_the_bytes_after_the_scale():
    packed = I2_S.pack(g1(4, 128), 0.75)
    packed[-28:] = 0xAB
    assert np.array_equal(I2_S.unpack(packed, 4, 128)[0], g1(4, 128))


def test_i2_s_code_3_is_an_error_that_names_row_and_column():
    packed = I2_S.pack(g1(4, 256), 1.0)
    packed[2 * 64 + 32 + 5] |= 0b11000000
    with pytest.raises(FormatError, match="code 3 at row 2, column 133"):
        I2_S.unpack(packed, 4, 256)


@pytest.mark.parametrize("cols", [64, 100, 127, 8640])
def test_i2_s_refuses_columns_that_do_not_fill_blocks(cols):
    reason = I2_S.illegal(4, cols)
    assert reason is not None and f"K = {cols}" in reason
    with pytest.raises(UnsupportedError, match=f"K = {cols}"):
        I2_S.pack(np.zeros((4, cols), np.int8), 1.0)
    with pytest.raises(FormatError):
        I2_S.unpack(np.zeros(cols + 32, np.uint8), 4, cols)


def test_i2_s_of_the_wrong_length_is_an_error():
    with pytest.raises(FormatError, match="takes 160 bytes, found 159"):
        I2_S.unpack(np.zeros(159, np.uint8), 4, 128)


@pytest.mark.parametrize("kind", tensor_types(), ids=lambda one: one.name)
def test_sizes_agree_with_the_table_of_the_container(kind):
    for rows, cols in ((1, 128), (97, 256), (640, 2560)):
        if kind.illegal(rows, cols):
            continue
        assert kind.nbytes(rows, cols) == ggml_types.nbytes(kind.gguf_id, (rows, cols))


def test_registry_is_unambiguous_and_an_unknown_name_lists_the_known():
    kinds = tensor_types()
    assert len({one.name for one in kinds}) == len({one.gguf_id for one in kinds}) == len(kinds)
    for one in kinds:
        assert tensor_type(one.name.lower()) is one is tensor_type(one.gguf_id)
    for unknown in ("q4_0", 12, 36.5):
        with pytest.raises(UnsupportedError) as error:
            tensor_type(unknown)
        assert all(one.name in str(error.value) for one in kinds)


floats = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(width=32))


@settings(max_examples=100, deadline=None)
@given(values=floats)
def test_f32_keeps_every_bit(values):
    f32 = tensor_type("F32")
    assert f32.unpack(f32.pack(values), *values.shape).tobytes() == values.tobytes()


@settings(max_examples=200, deadline=None)
@given(values=hnp.arrays(np.float32, 64, elements=st.floats(-60000, 60000, width=32)))
def test_f16_and_bf16_round_to_nearest_even(values):
    """Against exact arithmetic in float64: the result is the nearest value, and on a tie the even one."""
    for kind in (tensor_type("F16"), tensor_type("BF16")):
        packed = kind.pack(values[None])
        found = kind.unpack(packed, 1, 64)[0].astype(np.float64)
        bits = packed.view("<u2").astype(np.int64)
        error = np.abs(found - values)
        for step in (-1, 1):
            neighbour = bits + step
            legal = (neighbour & 0x7FFF) < 0x7C00 if kind.name == "F16" else (neighbour & 0x7F80) < 0x7F80
            legal &= (neighbour >= 0) & (neighbour < 65536) & ((neighbour ^ bits) < 0x8000)
            other = kind.unpack((neighbour % 65536).astype("<u2").view(np.uint8), 1, 64)[0].astype(np.float64)
            distance = np.where(legal, np.abs(other - values), np.inf)
            assert (error <= distance).all()
            assert (bits[error == distance] % 2 == 0).all()


def test_dense_types_read_back_every_pattern():
    patterns = np.arange(65536, dtype="<u2")
    for kind in (tensor_type("F16"), tensor_type("BF16")):
        values = kind.unpack(patterns.view(np.uint8), 256, 256)
        finite = np.isfinite(values)
        again = kind.pack(np.where(finite, values, 0)).view("<u2").reshape(256, 256)
        assert np.array_equal(again[finite], patterns.reshape(256, 256)[finite])


@pytest.mark.parametrize(("name", "largest", "over"), [("F16", 65519.0, 65520.0), ("BF16", 3.39e38, 3.4e38)])
def test_a_value_that_overflows_is_named_with_its_place(name, largest, over):
    kind = tensor_type(name)
    values = np.zeros((3, 4), np.float32)
    values[2, 1] = -largest
    assert np.isfinite(kind.unpack(kind.pack(values), 3, 4)).all()
    values[2, 1] = -over
    with pytest.raises(UnsupportedError, match=rf"at \[2, 1\] does not fit {name}.*\nuse f32"):
        kind.pack(values)

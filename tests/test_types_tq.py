"""TQ1_0 and TQ2_0: the bytes of the format, the multiplier kept exactly, and gguf as a second reader."""

from __future__ import annotations

import math
import re

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats import ggml_types
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.ternary_blocks import float16_of
from tests.paths import SHARED
from tests.ternary_matrices import random_trits

TQ1_0, TQ2_0 = tensor_type("TQ1_0"), tensor_type("TQ2_0")
KINDS = pytest.mark.parametrize("kind", [TQ1_0, TQ2_0], ids=lambda kind: kind.name)

shapes = st.tuples(st.integers(1, 9), st.integers(1, 3).map(lambda n: 256 * n))
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(2**-100, 2**100, width=32)
halves = st.floats(2**-24, 65504, width=16)


def block_bytes(kind) -> int:
    return kind.nbytes(1, 256)


def matrix(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A matrix that is not all zero, so that it has a multiplier."""
    trits = random_trits(seed, *shape)
    trits[-1, seed % shape[1]] = 1
    return trits


def by_the_book(kind, trits: np.ndarray, d: float) -> bytes:
    """The formulas of docs/FORMAT.md, block by block."""
    out = bytearray()
    for block in trits.reshape(-1, 256):
        u = [int(trit) + 1 for trit in block]
        if kind is TQ2_0:
            out += bytes(
                sum(u[128 * h + 32 * part + p] << 2 * part for part in range(4)) for h in range(2) for p in range(32)
            )
        else:
            places = [[p + 32 * n for n in range(5)] for p in range(32)]
            places += [[160 + p + 16 * n for n in range(5)] for p in range(16)]
            places += [[240 + p + 4 * n for n in range(4)] for p in range(4)]
            values = [sum(u[place] * 3 ** (4 - n) for n, place in enumerate(digits)) for digits in places]
            out += bytes(math.ceil(256 * v / 243) for v in values)
        out += np.float16(d if block.any() else 0).tobytes()
    return bytes(out)


@KINDS
@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=seeds, scale=scales)
def test_trits_and_multiplier_come_back_exactly(kind, shape, seed, scale):
    trits = matrix(seed, shape)
    packed, companion = kind.pack(trits, scale), kind.companion_scale(scale)
    assert packed.dtype == np.uint8
    assert packed.size == kind.nbytes(*shape) == ggml_types.nbytes(kind.gguf_id, shape)
    found, d = kind.unpack(packed, *shape)
    assert found.dtype == np.int8 and np.array_equal(found, trits)
    assert d == kind.read_scale(packed, *shape)
    assert d * (1.0 if companion is None else companion) == scale


@KINDS
@settings(max_examples=40, deadline=None)
@given(scale=halves)
def test_a_scale_that_float16_holds_needs_no_companion(kind, scale):
    assert kind.companion_scale(scale) is None
    assert kind.unpack(kind.pack(matrix(1, (2, 256)), scale), 2, 256)[1] == scale


@KINDS
@pytest.mark.parametrize("scale", [float(np.float32(0.1)), 65536.0, 2.0**-25, 1e-30, 1 + 2.0**-11, 2.0**100])
def test_a_scale_that_float16_does_not_hold_is_the_companion_and_d_is_1(kind, scale):
    scale = float(np.float32(scale))
    assert kind.companion_scale(scale) == scale
    assert kind.unpack(kind.pack(matrix(1, (2, 256)), scale), 2, 256)[1] == 1


def test_the_plain_form_rounds_the_scale_to_float16():
    for scale in (0.1, 1.5, 2.0**-24, 65504.0, 65519.0):
        assert float16_of(scale) == float(np.float16(scale))
        assert TQ1_0.companion_scale(float16_of(scale)) is None
    for scale in (2.0**-26, 65520.0, 1e30):
        with pytest.raises(UnsupportedError, match="float16"):
            float16_of(scale)


@KINDS
@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=seeds, scale=halves)
def test_bytes_are_those_of_the_documented_formulas(kind, shape, seed, scale):
    trits = matrix(seed, shape)
    assert kind.pack(trits, scale).tobytes() == by_the_book(kind, trits, scale)


@KINDS
def test_zero_blocks_have_d_0_and_a_zero_matrix_has_multiplier_1(kind):
    trits = np.zeros((3, 512), np.int8)
    trits[1, 300] = -1
    packed = kind.pack(trits, 0.5)
    d = packed.reshape(-1, block_bytes(kind))[:, -2:].copy().view("<f2")[:, 0]
    assert d.tolist() == [0, 0, 0, 0.5, 0, 0]
    assert kind.unpack(packed, 3, 512)[1] == 0.5
    trits[1, 300] = 0
    found, scale = kind.unpack(kind.pack(trits, 0.5), 3, 512)
    assert not found.any() and scale == 1


@KINDS
def test_groups_of_rows_packed_in_any_order_make_the_same_bytes(kind):
    trits = matrix(7, (37, 512))
    out = np.full(kind.nbytes(37, 512), 0xAA, np.uint8)
    for start, stop in ((20, 37), (0, 3), (3, 20)):
        kind.pack_into(out, trits[start:stop], start, 37, 0.1)
    assert kind.row_group(37, 512) == 1
    assert np.array_equal(out, kind.pack(trits, 0.1))


@KINDS
def test_large_tensors_are_packed_in_batches_without_a_seam(kind):
    trits = random_trits(11, 1001, 2560)
    packed = kind.pack(trits, 1.5)
    assert np.array_equal(kind.unpack(packed, 1001, 2560)[0], trits)
    rows = [kind.pack(trits[i : i + 1], 1.5) for i in (0, 408, 409, 410, 1000)]
    size = packed.size // 1001
    assert all(
        np.array_equal(row, packed[i * size : (i + 1) * size])
        for row, i in zip(rows, (0, 408, 409, 410, 1000), strict=True)
    )


@KINDS
@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=seeds, scale=halves)
def test_gguf_reads_the_same_weights_and_writes_the_same_bytes(kind, shape, seed, scale):
    trits = matrix(seed, shape)
    packed, its_type = kind.pack(trits, scale), gguf.GGMLQuantizationType[kind.name]
    weights = trits * np.float32(scale)
    assert np.array_equal(gguf.quants.dequantize(packed.reshape(shape[0], -1), its_type), weights)
    if scale >= 2**-14:  # gguf divides by the scale, which a subnormal one does not survive exactly
        assert np.array_equal(gguf.quants.quantize(weights, its_type).reshape(-1), packed)


def vectors() -> list[str]:
    return [] if SHARED is None else sorted(path.stem for path in (SHARED / "spec" / "vectors").glob("tq[12]_0_*.npz"))


def test_the_reference_vectors_are_all_there():
    if SHARED is None:
        pytest.skip("reference vectors are not beside the checkout")
    assert len(vectors()) == 3


@pytest.mark.parametrize("name", vectors())
def test_reference_vectors_are_reproduced(name):
    assert SHARED is not None
    vector = np.load(SHARED / "spec" / "vectors" / f"{name}.npz")
    kind, trits, scale = tensor_type(name[:5]), vector["W"], float(vector["scale"])
    assert np.array_equal(kind.pack(trits, scale), vector["packed"].reshape(-1))
    found, multiplier = kind.unpack(vector["packed"].reshape(-1), *trits.shape)
    assert np.array_equal(found, trits) and multiplier == scale


@settings(max_examples=40, deadline=None)
@given(row=st.integers(0, 4), col=st.integers(0, 511))
def test_code_3_of_tq2_0_is_named_with_row_and_column(row, col):
    packed = TQ2_0.pack(matrix(3, (5, 512)), 0.5)
    e = col % 256
    packed[(row * 2 + col // 256) * 66 + e // 128 * 32 + e % 32] |= 3 << (2 * (e % 128 // 32))
    with pytest.raises(FormatError, match=f"TQ2_0 code at row {row}, column {col} "):
        TQ2_0.unpack(packed, 5, 512)


def test_bytes_of_tq1_0_that_no_number_gives_are_named_with_row_and_column():
    """Every byte value at the first byte of each group: exactly those that the formula gives are read."""
    trits = matrix(3, (5, 512))
    for byte, col, digits in ((0, 0, 5), (31, 31, 5), (32, 160, 5), (47, 175, 5), (48, 240, 4), (51, 243, 4)):
        good = {math.ceil(256 * v / 243) for v in range(0, 243, 3 ** (5 - digits))}
        for value in range(256):
            packed = TQ1_0.pack(trits, 0.5)
            packed[(3 * 2 + 1) * 54 + byte] = value
            if value in good:
                assert TQ1_0.unpack(packed, 5, 512)[1] == 0.5
                continue
            with pytest.raises(FormatError, match=f"TQ1_0 code at row 3, column {256 + col} "):
                TQ1_0.unpack(packed, 5, 512)


def with_d(kind, values: dict[int, float]) -> np.ndarray:
    """A matrix of 3 rows of 2 blocks with multiplier 0.5 and other d in some blocks."""
    trits = np.ones((3, 512), np.int8)
    trits[0] = 0
    blocks = kind.pack(trits, 0.5).reshape(-1, block_bytes(kind))
    for block, d in values.items():
        blocks[block, -2:] = np.frombuffer(np.float16(d).tobytes(), np.uint8)
    return blocks.reshape(-1)


@KINDS
def test_two_scales_in_one_tensor_are_refused_with_the_block(kind):
    packed = with_d(kind, {5: 0.25})
    where = "block at row 2, columns 256 to 511 has d = 0.25 and the block at row 1, columns 0 to 255 d = 0.5"
    for read in (kind.unpack, kind.read_scale):
        with pytest.raises(UnsupportedError, match=f"{kind.name} {where}"):
            read(packed, 3, 512)


@KINDS
@pytest.mark.parametrize("d", [-0.5, math.nan, math.inf])
def test_a_scale_that_is_none_is_an_error_with_the_block(kind, d):
    for read in (kind.unpack, kind.read_scale):
        with pytest.raises(FormatError, match=f"row 1, columns 256 to 511 has d = {re.escape(f'{d:g}')}"):
            read(with_d(kind, {3: d}), 3, 512)


@KINDS
def test_weights_that_d_makes_zero_are_refused_and_zeros_with_d_are_not(kind):
    with pytest.raises(UnsupportedError, match="row 1, columns 256 to 511 has d = 0"):
        kind.unpack(with_d(kind, {3: 0.0}), 3, 512)
    assert kind.unpack(with_d(kind, {0: 0.5}), 3, 512)[1] == 0.5


@KINDS
def test_a_wrong_shape_or_length_is_an_error(kind):
    packed = kind.pack(matrix(1, (2, 256)), 1.0)
    for wrong in (packed[:-1], packed[:0], np.append(packed, np.uint8(0))):
        with pytest.raises(FormatError, match=f"takes {packed.size} bytes, found {wrong.size}"):
            kind.unpack(wrong, 2, 256)
    for cols in (128, 3200, 8640):
        reason = kind.illegal(2, cols)
        assert reason is not None and f"K = {cols}" in reason
        with pytest.raises(UnsupportedError, match=reason):
            kind.pack(np.zeros((2, cols), np.int8), 1.0)
        with pytest.raises(FormatError, match=reason):
            kind.unpack(packed, 2, cols)

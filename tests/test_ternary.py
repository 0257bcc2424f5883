"""Ternarisation: absmean, Hugging Face's packing, and matrices that are ternary already."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitconv.errors import FormatError, UnsupportedError
from bitconv.tensor_types.ternary import (
    MASTER_DTYPES,
    WeightStatistics,
    absmean,
    absmean_rounding,
    absmean_scale,
    pack_hf,
    signs,
    storage_dtype,
    three_values,
    unpack_hf,
)
from tests.paths import SHARED

FINITE = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}
"""The largest finite magnitude of each type, as bits."""


def widen(storage: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (storage.astype(np.uint32) << 16).view(np.float32)
    return storage.astype(np.float32)


@st.composite
def masters(draw: st.DrawFn) -> tuple[np.ndarray, str]:
    """A matrix of any finite bit patterns, subnormals and huge values among them."""
    dtype = draw(st.sampled_from(MASTER_DTYPES))
    kind = np.uint32 if dtype == "F32" else np.uint16
    sign = 1 << (np.dtype(kind).itemsize * 8 - 1)
    magnitudes = st.integers(0, FINITE[dtype])
    bits = st.tuples(magnitudes, st.booleans()).map(lambda pair: pair[0] + sign * pair[1])
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 20)))
    return draw(hnp.arrays(kind, shape, elements=bits)).view(storage_dtype(dtype)), dtype


trit_matrices = hnp.arrays(
    np.int8, st.tuples(st.integers(1, 13), st.integers(1, 9)), elements=st.integers(-1, 1)
)


@settings(max_examples=200, deadline=None)
@given(master=masters(), seed=st.integers(0, 2**32 - 1))
def test_statistics_are_exact_in_every_order_and_cut(master, seed):
    storage, dtype = master
    rng = np.random.default_rng(seed)
    flat = rng.permutation(storage.reshape(-1))
    statistics = WeightStatistics(dtype)
    for piece in np.split(flat, np.sort(rng.integers(0, flat.size + 1, 3))):
        statistics.add(piece)
    values = np.abs(widen(storage, dtype)).reshape(-1)
    assert statistics.magnitude_sum() == float(sum((Fraction(float(v)) for v in values), Fraction(0)))
    assert statistics.largest == values.max()
    assert statistics.smallest == (values[values > 0].min() if values.any() else math.inf)
    assert statistics.n == values.size


@settings(max_examples=200, deadline=None)
@given(master=masters())
def test_absmean_is_the_written_formula(master):
    storage, dtype = master
    values = widen(storage, dtype)
    exact = float(sum((Fraction(abs(float(v))) for v in values.reshape(-1)), Fraction(0)))
    a = max(np.float32(exact / values.size), np.float32(1e-5))
    s = np.float32(1) / a
    with np.errstate(over="ignore", under="ignore"):
        expected = np.clip(np.rint(values * s), -1, 1).astype(np.int8)
        trits, multiplier = absmean(storage, dtype)
    assert np.array_equal(trits, expected) and multiplier == np.float32(1) / s


def test_absmean_rounds_halves_to_even():
    """Mean 1, so s = 1: 0.5 -> 0 and 1.5 -> 2 -> 1; the neighbours of 0.5 fall to their sides."""
    below, above = np.nextafter(np.float32(0.5), [np.float32(0), np.float32(1)])
    row = np.array([[0.5, -0.5, 1.5, -1.5, below, above, -above, 0.0, 0.0, 0.0]], np.float32)
    row[0, 7:] = (row.shape[1] - np.abs(row).sum(dtype=np.float64)) / 3
    assert absmean_scale_of(row) == 1
    assert absmean(row, "F32")[0][0, :7].tolist() == [0, 0, 1, -1, 0, 1, -1]


def absmean_scale_of(matrix: np.ndarray) -> np.float32:
    statistics = WeightStatistics("F32")
    statistics.add(matrix)
    return absmean_scale(statistics)[0]


def test_absmean_of_tiny_weights_uses_the_floor():
    trits, multiplier = absmean(np.full((2, 4), 1e-6, np.float32), "F32")
    assert not trits.any() and multiplier == pytest.approx(1e-5, rel=2**-23)  # two roundings of float32


@pytest.mark.parametrize("dtype", MASTER_DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_an_error(dtype, bad):
    values = np.ones((3, 5), np.float32)
    values[2, 3] = bad
    storage = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values
    with pytest.raises(FormatError, match="not finite"):
        absmean(storage.astype(storage_dtype(dtype)), dtype)


def test_absmean_reproduces_the_reference_vector():
    if SHARED is None:
        pytest.skip("reference vectors are not beside the checkout")
    vector = np.load(SHARED / "spec/vectors/absmean_64x128.npz")
    storage = vector["W_bf16_bits"]
    statistics = WeightStatistics("BF16")
    statistics.add(storage)
    scale, multiplier = absmean_scale(statistics)
    assert scale == vector["inv_scale_f32"] and np.float32(1) / scale == multiplier == vector["absmean_f32"]
    trits = absmean(storage, "BF16")[0]
    assert np.array_equal(trits, vector["ternary"])
    # the reference dequantises and casts to bf16, half to even
    bits = (trits * np.float32(multiplier)).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    assert np.array_equal(widen(rounded, "BF16"), widen(vector["weightquant_bf16_bits"], "BF16"))


@pytest.mark.parametrize("dtype", MASTER_DTYPES)
def test_the_table_of_16_bit_types_agrees_with_arithmetic(dtype):
    rng = np.random.default_rng(7)
    values = rng.standard_normal((50, 64)).astype(np.float32)
    storage = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values
    storage = storage.astype(storage_dtype(dtype))
    wide, scale = widen(storage, dtype), np.float32(1.37)
    expected = np.clip(np.rint(wide * scale), -1, 1)
    assert np.array_equal(absmean_rounding(dtype, scale)(storage), expected)
    assert np.array_equal(signs(dtype)(storage), np.sign(wide))


@settings(max_examples=100, deadline=None)
@given(trits=trit_matrices, bits=st.integers(1, FINITE["BF16"]), dtype=st.sampled_from(MASTER_DTYPES))
def test_a_matrix_of_three_values_is_recognised_exactly(trits, bits, dtype):
    a = {"BF16": np.uint16(bits), "F16": np.uint16(bits % FINITE["F16"] + 1).view(np.float16),
         "F32": np.uint32(bits << 16).view(np.float32)}[dtype]  # fmt: skip
    magnitude = float(widen(np.array([a]), dtype)[0])
    if dtype == "BF16":
        storage = np.where(trits == 0, 0, a + (trits < 0) * np.uint16(0x8000)).astype(np.uint16)
    else:
        storage = trits.astype(storage_dtype(dtype)) * a
    found = three_values(storage, dtype)
    if not trits.any():
        assert found is None
    else:
        assert found is not None and np.array_equal(found[0], trits) and found[1] == magnitude


@pytest.mark.parametrize("dtype", MASTER_DTYPES)
def test_one_weight_an_ulp_off_is_not_ternary(dtype):
    storage = np.zeros((4, 4), storage_dtype(dtype))
    bits = storage.view(np.uint32 if dtype == "F32" else np.uint16)
    bits[:3] = 0x3C00
    assert three_values(storage, dtype) is not None
    bits[1, 2] += 1
    assert three_values(storage, dtype) is None
    bits[:] = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}[dtype]
    assert three_values(storage, dtype) is None


def test_negative_zero_is_a_zero():
    storage = np.array([[1.0, -0.0, 0.0, -1.0]], np.float32)
    assert [array.tolist() for array in (three_values(storage, "F32") or ())[:1]] == [[[1, 0, 0, -1]]]
    for dtype, code in (("BF16", 0x3F80), ("F16", 0x3C00)):
        statistics = WeightStatistics(dtype)
        statistics.add(np.array([code, 0x8000, 0, code + 0x8000], np.uint16).view(storage_dtype(dtype)))
        assert statistics.distinct() == 3


def test_distance_from_the_ternary_form_is_the_relative_rms():
    rng = np.random.default_rng(3)
    half = rng.standard_normal((40, 30)).astype(np.float16)
    statistics = WeightStatistics("F16")
    statistics.add(half)
    scale, multiplier = absmean_scale(statistics)
    w = half.astype(np.float64)
    trits = absmean(half, "F16")[0]
    expected = np.sqrt(((w - multiplier * trits) ** 2).sum() / (w**2).sum())
    found = statistics.relative_distance(absmean_rounding("F16", scale), multiplier)
    assert found == pytest.approx(expected, rel=1e-12)  # the same float64 terms, summed in another order
    assert statistics.distinct() == np.unique(half).size


@settings(max_examples=200, deadline=None)
@given(trits=trit_matrices, data=st.data())
def test_hf_packing_returns_any_rows(trits, data):
    packed = pack_hf(trits)
    assert packed.shape == (-(-len(trits) // 4), trits.shape[1])
    start = data.draw(st.integers(0, len(trits)))
    stop = data.draw(st.integers(start, len(trits)))
    assert np.array_equal(unpack_hf(packed, len(trits), start, stop), trits[start:stop])
    assert np.array_equal(unpack_hf(packed, len(trits)), trits)


def test_documented_hf_packing_bytes():
    state, weights = 12345, []
    for _ in range(48):
        state = (state * 1103515245 + 12345) % 2**31
        weights.append((state >> 16) % 3 - 1)
    trits = np.array(weights, np.int8).reshape(8, 6)
    assert pack_hf(trits).tobytes().hex() == "285151548519218215a44959"


@pytest.mark.parametrize("name", ["8x6", "128x128"])
def test_hf_packing_reproduces_the_reference_vectors(name):
    if SHARED is None:
        pytest.skip("reference vectors are not beside the checkout")
    vector = np.load(SHARED / f"spec/vectors/hf_pack_{name}.npz")
    assert np.array_equal(pack_hf(vector["W"]), vector["packed"])
    assert np.array_equal(unpack_hf(vector["packed"], len(vector["W"])), vector["W"])


def test_hf_code_3_is_an_error_unless_it_lies_in_the_padding():
    trits = np.zeros((6, 3), np.int8)  # two packed rows, of which the last block has no weights
    packed = pack_hf(trits)
    packed[:, 1] |= 3 << 6
    assert not unpack_hf(packed, 6).any()
    packed[1, 2] |= 3 << 4
    with pytest.raises(FormatError, match="code 3 at row 5, column 2"):
        unpack_hf(packed, 6)
    with pytest.raises(FormatError, match="code 3 at row 5, column 2"):
        unpack_hf(packed, 6, 4, 6)


def test_other_dtypes_are_refused_with_the_supported_ones():
    with pytest.raises(UnsupportedError, match="BF16, F16, F32"):
        WeightStatistics("F64")

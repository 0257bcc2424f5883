"""Every kernel equals its scalar form bit for bit, and the scalar form equals plain NumPy."""

from __future__ import annotations

import math

import gguf.quants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitconv import _kernels
from bitconv.tensor_types import tensor_type
from tests.numpy_forward import through_cache, through_q8_0
from tests.paths import SHARED

I2_S, F32, F16, BF16 = 36, 0, 1, 30
ISAS = _kernels.isas()
finite = st.floats(-1e4, 1e4, width=32)


def pack_i2_s(trits: np.ndarray) -> np.ndarray:
    """The bytes of I2_S from its definition, one element at a time."""
    data = np.zeros(trits.size // 4, dtype=np.uint8)
    for i, trit in enumerate(trits.ravel()):
        block, j = divmod(i, 128)
        data[block * 32 + j % 32] |= (int(trit) + 1) << (6 - 2 * (j // 32))
    return data


def random_trits(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    return rng.integers(-1, 2, (rows, cols), dtype=np.int8)


def test_the_best_isa_of_this_cpu_comes_first_and_scalar_last():
    assert _kernels.all_isas()[-1] == "scalar"
    assert set(ISAS) <= set(_kernels.all_isas())
    assert ISAS[-1] == "scalar"


@given(st.integers(0, 2**32 - 1), st.integers(1, 41), st.sampled_from([128, 256, 1024, 1152, 2304]))
@settings(max_examples=25, deadline=None)
def test_i2_s_gemv_is_the_exact_product(seed, rows, cols):
    rng = np.random.default_rng(seed)
    trits = random_trits(rng, rows, cols)
    q = rng.integers(-127, 128, cols, dtype=np.int8)
    for isa in ISAS:
        sums = _kernels.gemv(pack_i2_s(trits), rows, cols, I2_S, q, isa)
        assert np.array_equal(sums, trits.astype(np.int64) @ q.astype(np.int64)), isa
        row0 = rows // 3 // 4 * 4
        assert np.array_equal(_kernels.gemv(pack_i2_s(trits), rows, cols, I2_S, q, isa, row0=row0), sums[row0:])
        for tokens in (2, 3, 4):
            many = rng.integers(-127, 128, (tokens, cols), dtype=np.int8)
            found = _kernels.few(pack_i2_s(trits), rows, cols, I2_S, many, isa, row0=row0)
            assert (found is not None) == (isa != "scalar"), isa
            assert found is None or np.array_equal(found, many.astype(np.int64) @ trits[row0:].T.astype(np.int64)), isa


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("isa", ISAS)
def test_same_sign_activations_do_not_wrap_an_accumulator(isa, sign):
    rows, cols = 5, 8192
    trits = np.ones((rows, cols), dtype=np.int8)
    q = np.full(cols, 127 * sign, dtype=np.int8)
    assert _kernels.gemv(pack_i2_s(trits), rows, cols, I2_S, q, isa).tolist() == [127 * sign * cols] * rows
    found = _kernels.few(pack_i2_s(trits), rows, cols, I2_S, np.stack([q, q, q, q]), isa)
    assert found is None or (found == 127 * sign * cols).all()
    panel = np.full((2, cols // 4, 16, 4), 2, dtype=np.uint8)
    tokens = np.full((cols // 4, 6, 4), 127 * sign, dtype=np.int8)
    assert (_kernels.tile(panel, tokens, isa) == 2 * 127 * sign * cols).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_i2_s_panels_hold_the_codes_of_32_rows(seed, rows, blocks):
    rng = np.random.default_rng(seed)
    cols = blocks * 128
    trits = random_trits(rng, rows, cols)
    for row0 in range(0, rows, 32):
        expected = trits[row0 : row0 + 32] + 1
        for isa in ISAS:
            codes = _kernels.panels(pack_i2_s(trits), rows, cols, I2_S, row0, isa)
            assert np.array_equal(codes[: len(expected)], expected), isa


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 6]), st.integers(1, 2), st.integers(1, 150))
@settings(max_examples=25, deadline=None)
def test_tile_kernel_is_the_exact_product(seed, tile, row_tiles, groups):
    rng = np.random.default_rng(seed)
    panel = rng.integers(0, 3, (row_tiles, groups, 16, 4), dtype=np.uint8)
    tokens = rng.integers(-127, 128, (groups, tile, 4), dtype=np.int8)
    expected = np.einsum("hgri,gti->thr", panel.astype(np.int64), tokens.astype(np.int64)).reshape(tile, -1)
    for isa in ISAS:
        assert np.array_equal(_kernels.tile(panel, tokens, isa), expected), isa


@given(hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(max_examples=60, deadline=None)
def test_activation_codes_follow_the_definition(x):
    most = max(np.abs(x).max(), np.float32(1e-5))
    scale = np.float32(np.float32(1) / most) * np.float32(127)
    for isa in ISAS:
        codes, got_scale, total, is_finite = _kernels.quantise(x, isa)
        assert is_finite
        assert np.float32(got_scale) == scale
        assert np.array_equal(codes, np.rint(x * scale).astype(np.int8)), isa
        assert total == codes.sum(dtype=np.int64)
        assert np.abs(codes.astype(int)).max() <= 127


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at", [0, 31, 32, 76])
def test_a_row_that_is_not_finite_gives_zeros_and_a_flag(isa, value, at):
    x = np.ones(77, dtype=np.float32)
    x[at] = value
    codes, _, total, is_finite = _kernels.quantise(x, isa)
    assert not is_finite
    assert not codes.any()
    assert total == 0


@pytest.mark.parametrize("isa", ISAS)
def test_the_codes_of_a_wide_row_are_summed_exactly(isa):
    codes, _, total, _ = _kernels.quantise(np.full(2_200_003, 3.5, dtype=np.float32), isa)
    assert (codes[:2_200_003] == 127).all()
    assert total == 127 * 2_200_003


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_norm_is_the_same_on_every_isa_and_near_float64(seed, n):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    g = rng.standard_normal(n).astype(np.float32)
    results = [_kernels.norm(x, g, 1e-5, isa) for isa in ISAS]
    for result in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), result.view(np.uint32))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean() + 1e-5) * g
    # 32 partial sums of n/32 terms, then five roundings: well under 1e-6 relative
    assert np.allclose(results[0], expected, rtol=1e-6, atol=0)


def test_exp_is_the_same_on_every_isa_and_within_two_ulp():
    x = np.concatenate([np.linspace(-110, 95, 100_003), [0.0, -0.0, -np.inf, np.inf]]).astype(np.float32)
    results = [_kernels.exp(x, isa) for isa in ISAS]
    for result in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), result.view(np.uint32))
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(np.float32)
    normal = (expected > 1.2e-38) & np.isfinite(expected)
    ulp = np.abs(results[0].view(np.int32)[normal] - expected.view(np.int32)[normal])
    assert ulp.max() <= 2
    assert np.array_equal(np.isinf(results[0]), np.isinf(expected))
    assert results[0][-4:].tolist() == [1.0, 1.0, 0.0, np.inf]
    assert np.isnan(_kernels.exp(np.full(1, np.nan, np.float32), ISAS[0]))[0]


@pytest.mark.parametrize("relu2", [False, True])
def test_gate_product_is_the_same_on_every_isa(relu2):
    rng = np.random.default_rng(1)
    gate, up = (rng.standard_normal((2, 4096)) * 8).astype(np.float32)
    results = [_kernels.gate_mul(gate, up, relu2, isa) for isa in ISAS]
    for result in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), result.view(np.uint32))
    wide = gate.astype(np.float64)
    expected = np.maximum(wide, 0) ** 2 * up if relu2 else wide / (1 + np.exp(-wide)) * up
    assert np.allclose(results[0], expected, rtol=1e-6, atol=1e-30)


def as_type(values: np.ndarray, type_id: int) -> np.ndarray:
    if type_id == F32:
        return values.astype(np.float32)
    if type_id == F16:
        return values.astype(np.float16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def widen(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


@pytest.mark.parametrize("type_id", [F32, F16, BF16])
@pytest.mark.parametrize(("cols", "tokens"), [(1, 1), (31, 2), (32, 3), (100, 4), (333, 7)])
def test_dense_product_is_the_same_on_every_isa_and_batch(type_id, cols, tokens):
    rng = np.random.default_rng(cols)
    stored = as_type(rng.standard_normal((11, cols)), type_id)
    x = np.zeros((tokens, -(-cols // 32) * 32), dtype=np.float32)
    x[:, :cols] = rng.standard_normal((tokens, cols))
    data = np.ascontiguousarray(stored).view(np.uint8).ravel()
    results = [_kernels.dense(data, 11, cols, type_id, x, isa) for isa in ISAS]
    for result in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), result.view(np.uint32))
    alone = np.concatenate([_kernels.dense(data, 11, cols, type_id, x[i : i + 1], ISAS[0]) for i in range(tokens)])
    assert np.array_equal(results[0], alone)
    expected = x[:, :cols].astype(np.float64) @ widen(stored).astype(np.float64).T
    assert np.allclose(results[0], expected, rtol=0, atol=1e-6 * cols)  # at most cols/32 + 5 roundings of O(1) terms


def test_integer_activations_of_q6_k_change_nothing_that_counts():
    rng = np.random.default_rng(5)
    rows, cols = 3000, 2560
    data = tensor_type("Q6_K").pack_rows(rng.standard_normal((rows, cols), dtype=np.float32)).ravel()
    weights = tensor_type("Q6_K").unpack(data, rows, cols).astype(np.float64)
    x = rng.standard_normal((1, cols)).astype(np.float32)
    x[0, 7] = 40.0  # an outlier takes digits from the others
    got = _kernels.dense(data, rows, cols, 14, x, ISAS[0])[0]
    exact = weights @ x[0].astype(np.float64)
    # each block has a step of its own, a power of two
    steps = [2.0 ** math.ceil(math.log2(np.abs(block).max() / 32512)) for block in x[0].reshape(-1, 256)]
    assert (min(steps), max(steps)) == (2**-13, 2**-9)
    error = math.sqrt(sum(256 * step**2 / 12 for step in steps))  # of a sum whose weights have a deviation of 1
    assert np.abs(got - exact).max() < 5 * error  # the largest of 3000 lies within five of its deviations
    assert error < 3e-4 * exact.std()


@pytest.mark.parametrize("tokens", range(1, 8))
@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3, deadline=None)
def test_block_types_multiply_as_the_gguf_package_dequantises_them(name, tokens, seed):
    kind = getattr(gguf.GGMLQuantizationType, name)
    rng = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = 5, 512
    blocks = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    scales = rng.uniform(-2, 2, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    at = 0 if name == "Q8_0" else size - 2  # Q8_0 begins with its scale, Q6_K ends with it
    blocks[:, at : at + 2] = scales
    data = blocks.reshape(-1)
    weights = gguf.quants.dequantize(blocks.reshape(rows, -1), kind)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    identity = np.eye(cols, dtype=np.float32)
    for isa in ISAS:
        assert np.array_equal(_kernels.dense(data, rows, cols, kind, identity, isa).T, weights), isa
    results = [_kernels.dense(data, rows, cols, kind, x, isa) for isa in ISAS]
    for result in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), result.view(np.uint32))
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    each = 1e-6 if name == "Q8_0" else np.abs(x).max() / 32512  # what an activation may be moved by
    assert np.allclose(results[0], expected, rtol=0, atol=each * np.abs(weights).max() * cols)


def test_every_half_is_widened_as_numpy_does():
    halves = np.arange(65536, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, 0] = 1.0
    keep = np.isfinite(expected)
    for isa in ISAS:
        rows = np.zeros((65536, 32), dtype=np.uint16)
        rows[:, 0] = halves
        got = _kernels.dense(rows.view(np.uint8).ravel(), 65536, 32, F16, x, isa)[0]
        assert np.array_equal(got[keep], expected[keep])


@given(
    st.integers(0, 999),
    st.integers(1, 100) | st.integers(255, 258) | st.just(600),
    st.integers(1, 24),
    st.sampled_from([2, 12, 64, 80, 100, 128]),
    st.sampled_from(list(_kernels.CACHE_TYPES)),
)
@settings(max_examples=60, deadline=None)
def test_attention_is_softmax_of_scores_times_values(seed, n, queries, dim, kind):
    rng = np.random.default_rng(seed)
    type_id = _kernels.CACHE_TYPES[kind]
    q, k, v = (rng.standard_normal((rows, dim)).astype(np.float32) for rows in (min(n, queries), n, n))
    scale = 1 / np.sqrt(dim)
    results = [_kernels.attention(q, k, v, type_id, scale, isa, split) for isa in ISAS for split in (False, True)]
    for result in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), result.view(np.uint32))
    keys, values = through_cache(k.astype(np.float64), kind), through_cache(v.astype(np.float64), kind)
    for i in range(len(q)):
        seen = n - len(q) + 1 + i
        alone = _kernels.attention(q[i : i + 1].copy(), k[:seen].copy(), v[:seen].copy(), type_id, scale, ISAS[0])
        assert np.array_equal(results[0][i : i + 1], alone)
        scores = keys[:seen] @ q[i].astype(np.float64) * scale
        weights = np.exp(scores - scores.max())
        expected = weights / weights.sum() @ values[:seen]
        assert np.allclose(results[0][i], expected, rtol=0, atol=1e-5)  # O(1) values, float32 throughout


def test_attention_of_the_largest_heads():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((rows, _kernels.MAX_HEAD_DIM)).astype(np.float32) for rows in (3, 300, 300))
    results = [_kernels.attention(q, k, v, F16, 0.03, isa) for isa in ISAS]
    assert all(np.array_equal(results[0], result) for result in results)
    with pytest.raises(ValueError, match="wrong arguments"):
        _kernels.attention(np.zeros((4, 1024), np.float32), k, v, F16, 0.03, ISAS[0])


def as_stored(values: np.ndarray, kind: str, isa: str) -> np.ndarray:
    """What a cache gives back: with one key the result of attention is its value."""
    q = np.zeros_like(values[None])
    return _kernels.attention(q, q, values[None], _kernels.CACHE_TYPES[kind], 1.0, isa)[0]


def test_halves_are_rounded_to_nearest_even_on_the_way_into_the_cache():
    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.standard_normal(4000) * 10.0 ** rng.integers(-9, 5, 4000),
        [65504.0, 65519.9, 0.0, -0.0, 6e-8, 2.98e-8, 2.99e-8, 1 + 2**-11, 1 + 3 * 2**-11, 6.1e-5, 6.0975e-5],
    ]).astype(np.float32)
    values = values[np.abs(values) < 65520]
    for isa in ISAS:
        for start in range(0, values.size, 1000):
            v = values[start : start + 1000]
            assert np.array_equal(as_stored(v, "f16", isa), v.astype(np.float16).astype(np.float32)), isa


@pytest.mark.parametrize("dim", [2, 12, 32, 80, 96, 100, 1024])
def test_a_q8_0_cache_holds_f16_scales_and_codes_of_32_dimensions(dim):
    rng = np.random.default_rng(dim)
    for exponent in range(-44, 21):  # scales of zero, subnormal ones, the largest
        v = (rng.standard_normal(dim) * 2.0**exponent).astype(np.float32)
        v[rng.integers(0, dim)] = 0.0
        for isa in ISAS:
            assert np.array_equal(as_stored(v, "q8_0", isa), through_q8_0(v).astype(np.float32)), (isa, exponent)
    normal = rng.standard_normal(dim).astype(np.float32)
    bound = np.abs(normal).max() / 127 * (0.5 + 127 * 2.0**-11)  # half a code, or the rounding of the scale at +-127
    assert np.abs(as_stored(normal, "q8_0", ISAS[0]) - normal).max() <= bound


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e9])
def test_what_a_q8_0_cache_cannot_hold_becomes_nan_and_so_an_error(wrong):
    v = np.ones(64, dtype=np.float32)
    v[40] = wrong  # 1e9 / 127 is beyond the halves
    for isa in ISAS:
        got = as_stored(v, "q8_0", isa)
        assert np.isnan(got[32:]).all()
        assert np.array_equal(got[:32], through_q8_0(v[:32]).astype(np.float32))


def test_rope_table_is_within_one_ulp_of_float64():
    inv_freq = (10000.0 ** -(np.arange(0, 64, 2) / 64)).astype(np.float32)
    cos, sin = _kernels.rope_table(inv_freq, 5000)
    angle = (inv_freq[None, :] * np.arange(5000, dtype=np.float32)[:, None]).astype(np.float64)
    assert np.array_equal(cos, np.cos(angle).astype(np.float32))
    assert np.array_equal(sin, np.sin(angle).astype(np.float32))


@pytest.mark.skipif(SHARED is None, reason="reference vectors are not beside the checkout")
@pytest.mark.parametrize("isa", ISAS)
def test_reference_activation_codes_and_bitlinear(isa):
    vectors = SHARED / "spec" / "vectors"
    act = np.load(vectors / "actquant_3x128.npz")
    linear = np.load(vectors / "bitlinear_32x128.npz")
    packed = pack_i2_s(linear["W"])
    for row in range(3):
        codes, scale, _, _ = _kernels.quantise(act["X"][row], isa)
        assert np.array_equal(codes, act["q"][row])
        assert np.float32(scale) == act["scale"][row, 0]
        sums = _kernels.gemv(packed, 32, 128, I2_S, codes, isa)
        assert np.array_equal(sums, linear["acc_i32"][row])
        y = sums.astype(np.float32) / np.float32(scale) * linear["weight_scale_mul"]
        assert np.array_equal(y, linear["y_f32"][row])

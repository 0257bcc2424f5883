"""Q8_0 and Q6_K: gguf reads the same numbers, and what quantisation costs stays within its bound."""

from __future__ import annotations

import json
import math
import re

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from bitconv.errors import FormatError, UnsupportedError
from bitconv.formats import ggml_types
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.tensor_types import tensor_type
from tests.paths import REPOSITORY
from tests.ternary_matrices import g1

Q8_0, Q6_K = tensor_type("Q8_0"), tensor_type("Q6_K")
KINDS = pytest.mark.parametrize("kind", [Q8_0, Q6_K], ids=lambda kind: kind.name)
TINY = REPOSITORY / "models" / "tiny"


def gguf_type(kind) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[kind.name]


def relative_rmse(kind, values: np.ndarray) -> float:
    error = kind.unpack(kind.pack(values), *values.shape).astype(np.float64) - values
    return math.sqrt((error**2).sum() / (values.astype(np.float64) ** 2).sum())


def samples(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Matrices of kinds that embeddings come in: even, heavy-tailed, with outlier columns, tiny, huge, skewed."""
    shape = 64, 512
    normal = rng.standard_normal(shape)
    outliers = normal * np.where(rng.random(512) < 0.02, 30, 1)
    found = {
        "normal": normal,
        "uniform": rng.uniform(-1, 1, shape),
        "heavy tails": rng.standard_t(3, shape),
        "outlier columns": outliers,
        "tiny": normal * 1e-4,
        "huge": normal * 1e6,
        "positive": rng.random(shape),
        "rows of different size": normal * np.exp(rng.standard_normal((64, 1)) * 2),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def simple_q6_k(values: np.ndarray) -> np.ndarray:
    """The plainest quantiser of the format: the extreme of each group is -32, the extreme of the steps -128."""
    groups = values.reshape(-1, 16, 16).astype(np.float64)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    steps = extreme / -32
    largest = np.take_along_axis(steps, np.abs(steps).argmax(axis=1)[:, None], axis=1)
    d = (largest / -128).astype(np.float16).astype(np.float64)
    steps = d * np.clip(np.rint(steps / d), -128, 127)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.clip(np.rint(groups / steps[:, :, None]), -32, 31)
    return np.where(steps[:, :, None] == 0, 0, codes * steps[:, :, None]).reshape(values.shape)


@KINDS
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3))
def test_gguf_reads_every_pattern_as_we_do(kind, seed, rows, blocks):
    cols = blocks * 256
    rng = np.random.default_rng(seed)
    size = kind.nbytes(1, 32 if kind is Q8_0 else 256)
    packed = rng.integers(0, 256, kind.nbytes(rows, cols), dtype=np.uint8).reshape(-1, size)
    d = np.where(rng.random(len(packed)) < 0.1, 0, rng.standard_normal(len(packed))).astype("<f2")
    place = slice(0, 2) if kind is Q8_0 else slice(208, 210)
    packed[:, place] = d[:, None].view(np.uint8)
    expected = gguf.quants.dequantize(packed.reshape(rows, -1), gguf_type(kind))
    assert np.array_equal(kind.unpack(packed.reshape(-1), rows, cols), expected)


@KINDS
@settings(max_examples=40, deadline=None)
@given(values=hnp.arrays(np.float32, (2, 256), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_gguf_reads_what_we_write(kind, values):
    packed = kind.pack(values)
    assert packed.dtype == np.uint8
    assert packed.size == kind.nbytes(2, 256) == ggml_types.nbytes(kind.gguf_id, (2, 256))
    expected = gguf.quants.dequantize(packed.reshape(2, -1), gguf_type(kind))
    assert np.array_equal(kind.unpack(packed, 2, 256), expected)


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, (2, 96), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_q8_0_writes_the_bytes_of_ggml(values):
    largest = np.abs(values.reshape(-1, 32)).max(axis=1)
    values = np.where((largest < 2.0**-16).repeat(32).reshape(values.shape), 0, values)  # see the next test
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(Q8_0.pack(values), expected.reshape(-1))


@KINDS
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-39, 1e-20, 1e-8, 1e-6])
def test_numbers_next_to_zero_become_zero_or_come_close(kind, size):
    """Below the smallest float16 d nothing but zeros is left; above it no number may grow or change its sign."""
    values = (np.random.default_rng(1).uniform(-1, 1, (3, 512)) * size).astype(np.float32)
    found = kind.unpack(kind.pack(values), 3, 512)
    # the smallest step is 2^-24; a rounded code is off by at most half of one, a clipped one by the number itself
    assert (np.abs(found - values) <= np.maximum(2.0**-25, np.abs(values))).all()


@settings(max_examples=60, deadline=None)
@given(values=hnp.arrays(np.float32, (1, 64), elements=st.floats(-1000, 1000, width=32)))
def test_q8_0_is_off_by_at_most_half_a_step(values):
    step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
    error = np.abs(Q8_0.unpack(Q8_0.pack(values), 1, 64) - values).reshape(-1, 32)
    # half a step, and up to 127 steps times the rounding of d to 11 bits (absolute next to zero)
    assert (error <= step * (0.5 + 127 * 2.0**-11) + 127 * 2.0**-25).all()


def test_q6_k_on_normal_values_beats_the_reference_quantiser():
    """llama.cpp's own quantiser reaches 0.0177 on such a matrix."""
    values = np.random.default_rng(0).standard_normal((1000, 256)).astype(np.float32)
    assert relative_rmse(Q6_K, values) < 0.0167
    assert relative_rmse(Q8_0, values) < 0.0055


@pytest.mark.parametrize("name", samples(np.random.default_rng(0)))
def test_q6_k_loses_less_than_the_plainest_quantiser(name):
    values = samples(np.random.default_rng(2))[name]
    wide = values.astype(np.float64)
    error = ((Q6_K.unpack(Q6_K.pack(values), *values.shape) - wide) ** 2).sum()
    plain = ((simple_q6_k(values) - wide) ** 2).sum()
    assert error < 0.98 * plain


def test_q6_k_is_as_good_on_numbers_whose_d_is_next_to_zero():
    """There float16 is so coarse that a d rounded down would clip the largest steps: 4 % instead of 1.7 %."""
    assert relative_rmse(Q6_K, samples(np.random.default_rng(2))["tiny"]) < 0.0175


@KINDS
def test_bundled_embedding_loses_little(kind):
    path = TINY / "model.safetensors"
    if not path.is_file():
        pytest.skip("models/tiny is not there")
    hidden = json.loads((TINY / "config.json").read_text())["hidden_size"]
    with safe_open(path, "pt") as tensors:
        values = tensors.get_tensor("model.embed_tokens.weight").float().numpy()
    assert values.shape[1] == hidden
    assert relative_rmse(kind, values) < (0.0055 if kind is Q8_0 else 0.0167)  # what normal values lose


@KINDS
def test_zeros_stay_zero_and_stand_for_no_minus_zero(kind):
    found = kind.unpack(kind.pack(np.zeros((2, 512), np.float32)), 2, 512)
    assert found.tobytes() == bytes(2 * 512 * 4)


@KINDS
def test_rows_packed_apart_have_the_same_bytes_whatever_their_number(kind):
    values = np.random.default_rng(4).standard_normal((300, 1024)).astype(np.float32)
    whole = kind.pack(values)
    pieces = [kind.pack_rows(part) for part in (values[:1], values[1:150], values[150:])]
    assert np.array_equal(np.concatenate(pieces), whole)
    size = whole.size // 300
    assert np.array_equal(kind.unpack(whole[7 * size : 9 * size], 2, 1024), kind.unpack(whole, 300, 1024)[7:9])


@KINDS
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -1e10])
def test_a_number_that_float16_scales_cannot_hold_is_named_with_its_place(kind, value):
    values = np.random.default_rng(4).standard_normal((300, 1024)).astype(np.float32)
    values[257, 700] = value
    with pytest.raises(UnsupportedError, match=re.escape(f"value {np.float32(value):g} at [257, 700]")):
        kind.pack(values)
    assert kind.pack(values[:257]).size == kind.nbytes(257, 1024)


@KINDS
def test_the_largest_numbers_that_fit_are_kept(kind):
    largest = 65000 * (127 if kind is Q8_0 else 128 * 23)  # 23 is the coarsest coding of the extreme in Q6_K
    values = np.full((1, 256), largest, np.float32)
    values[0, ::2] *= -0.5
    found = kind.unpack(kind.pack(values), 1, 256)
    assert (np.abs(found - values) <= 0.5 / 23 * 1.1 * largest).all()  # half a step and a little


@KINDS
def test_a_wrong_shape_or_length_is_an_error(kind):
    packed = kind.pack(np.ones((2, 256), np.float32))
    for wrong in (packed[:-1], packed[:0], np.append(packed, np.uint8(0))):
        with pytest.raises(FormatError, match=f"takes {packed.size} bytes, found {wrong.size}"):
            kind.unpack(wrong, 2, 256)
    for cols in (16, 250) if kind is Q8_0 else (640, 3200):
        reason = kind.illegal(2, cols)
        assert reason is not None and f"K = {cols}" in reason
        with pytest.raises(UnsupportedError, match=reason):
            kind.pack(np.zeros((2, cols), np.float32))
        with pytest.raises(FormatError, match=reason):
            kind.unpack(packed, 2, cols)


def test_gguf_opens_a_file_of_all_these_types_and_reads_the_same_weights(tmp_path):
    """The independent reader sees types, shapes and numbers; our own reader sees the same bytes."""
    path, shape = tmp_path / "types.gguf", (8, 512)
    trits = g1(*shape)
    dense = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensors = {
        **{name: tensor_type(name).pack(trits, 0.75) for name in ("TQ1_0", "TQ2_0")},
        **{name: tensor_type(name).pack(dense) for name in ("Q8_0", "Q6_K")},
    }
    with GgufWriter(path, "llama") as writer:
        for name in tensors:
            writer.declare(name, shape, tensor_type(name).gguf_id)
        for name, data in tensors.items():
            writer.write(name, data)
        writer.finish()
    for tensor in gguf.GGUFReader(path).tensors:
        assert tensor.tensor_type.name == tensor.name
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor_type(tensor.name)
        if kind.ternary:
            found, scale = kind.unpack(tensors[tensor.name], *shape)
            assert np.array_equal(weights, found * np.float32(scale)) and np.array_equal(found, trits)
        else:
            assert np.array_equal(weights, kind.unpack(tensors[tensor.name], *shape))
    with open_gguf(path) as file:
        assert all(np.array_equal(file.data(name), data) for name, data in tensors.items())

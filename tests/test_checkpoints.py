"""The random checkpoints are what transformers and safetensors take them for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import (
    FAMILIES,
    FORMS,
    absmean_trits,
    from_bf16,
    make_checkpoint,
    pack_rows,
    read_tensors,
    to_bf16,
    widened,
)
from tests.numpy_forward import unpack_rows
from tests.tiny_tokenizer import byte_alphabet, merges, tokenizer_json


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_packed_rows_come_back(rows, cols, seed):
    trits = np.random.default_rng(seed).integers(-1, 2, (rows, cols), dtype=np.int8)
    packed = pack_rows(trits)
    assert packed.shape == (-(-rows // 4), cols) and packed.dtype == np.uint8
    assert np.array_equal(unpack_rows(packed, rows), trits)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_bfloat16_rounds_as_torch_does(values):
    torch = pytest.importorskip("torch")
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    assert np.array_equal(to_bf16(array), expected.view(torch.uint16).numpy())
    assert np.array_equal(from_bf16(to_bf16(array)), expected.float().numpy())


def test_absmean_rounds_ties_to_even():
    weight = np.array([[0.5, 1.5, -0.5, -1.5]], np.float32)  # mean 1: 0.5 -> 0, 1.5 -> 2 -> 1
    trits, multiplier = absmean_trits(weight)
    assert trits.tolist() == [[0, 1, 0, -1]] and multiplier == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_safetensors_library_reads_the_same_tensors(tmp_path, family, form, dtype):
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    sizes = {"n_layers": 2, "hidden": 128, "ffn": 128}
    make_checkpoint(tmp_path, family=family, form=form, dtype=dtype, shards=3, **sizes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {file: load_file(tmp_path / file) for file in set(index["weight_map"].values())}
    assert len(files) == 3
    theirs = {name: files[file][name] for name, file in index["weight_map"].items()}
    ours = read_tensors(tmp_path)
    assert theirs.keys() == ours.keys() and sum(map(len, files.values())) == len(ours)
    packed = form.startswith("packed")
    for name, tensor in theirs.items():
        expected = torch.uint8 if packed and name.endswith("proj.weight") else getattr(torch, dtype)
        assert tensor.dtype == expected
        if expected != torch.uint8:
            assert np.array_equal(tensor.float().numpy(), widened(ours[name]))
    assert sum(name.endswith("weight_scale") for name in ours) == (14 if packed else 0)


def test_a_dequantised_matrix_has_three_values_and_a_master_many(tmp_path):
    name = "model.layers.0.mlp.down_proj.weight"
    dequantised = make_checkpoint(tmp_path / "a", family="llama", form="dequantised", dtype="bfloat16")
    master = make_checkpoint(tmp_path / "b", family="llama", form="master", dtype="bfloat16")
    values = np.unique(widened(read_tensors(dequantised)[name]))
    assert len(values) == 3 and values[0] == -values[2] and values[1] == 0
    assert len(np.unique(widened(read_tensors(master)[name]))) > 100


def test_the_same_seed_gives_the_same_files(tmp_path):
    first, again = (make_checkpoint(tmp_path / name, seed=3) for name in "ab")
    other = make_checkpoint(tmp_path / "c", seed=4)
    data = [(path / "model.safetensors").read_bytes() for path in (first, again, other)]
    assert data[0] == data[1] != data[2]


def test_the_byte_alphabet_is_the_tokenizers_librarys():
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert [byte_alphabet()[byte] for byte in b" \nA\xc3"] == ["Ġ", "Ċ", "A", "Ã"]


@pytest.mark.parametrize("size", [97, 259, 301])
def test_the_tokenizer_fits_its_vocabulary_and_round_trips(size):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(size)))
    assert tokenizer.get_vocab_size() == min(size, 259 + 32)
    text = "the quick brown fox: 42!"
    encoding = tokenizer.encode(text)
    assert encoding.ids[0] == 1 and max(encoding.ids) < size
    assert tokenizer.decode(encoding.ids) == text
    assert (len(encoding.ids) < len(text)) == (size == 301)  # merges exist only where they fit


def test_merges_are_the_most_frequent_pairs():
    assert merges(1)[0] == ("Ġ", "t")  # more words of the text begin with t than any pair occurs
    left, right = zip(*merges(20), strict=True)
    known = set(byte_alphabet())
    for a, b in zip(left, right, strict=True):
        assert a in known and b in known
        known.add(a + b)

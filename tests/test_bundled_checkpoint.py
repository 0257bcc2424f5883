"""models/tiny is what models/README.md says: complete, small, legal for every type, and not copied from its text."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.formats.checkpoint import open_checkpoint, to_float32
from bitconv.tensor_types import tensor_types
from bitconv.tensor_types.ternary import unpack_hf
from tests.paths import REPOSITORY

TINY = REPOSITORY / "models" / "tiny"
README = REPOSITORY / "models" / "README.md"
FILES = {
    "config.json", "generation_config.json", "heldout.txt", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
SIZE_LIMIT = 4_000_000
LINEARS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


@pytest.fixture(scope="module")
def checkpoint():
    with open_checkpoint(TINY) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundled") / "tiny.gguf"
    bitconv.convert(TINY, out)
    return bitconv.load(out, threads=1)


@pytest.fixture(scope="module")
def held_out() -> str:
    return (TINY / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def corpus():
    """The training text, rebuilt; other Python versions document their library with other words."""
    trained_with = re.search(r"Python (\d+\.\d+\.\d+)", README.read_text(encoding="utf-8")).group(1)
    running = ".".join(map(str, sys.version_info[:3]))
    if running != trained_with:
        pytest.skip(f"the text was read from Python {trained_with}, this is {running}")
    path = REPOSITORY / "tools" / "stdlib_corpus.py"
    spec = importlib.util.spec_from_file_location("stdlib_corpus", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["stdlib_corpus"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.build_corpus()


def shapes() -> dict[str, tuple[int, int]]:
    """Every linear layer's rows and columns, from config.json."""
    c = json.loads((TINY / "config.json").read_text())
    hidden, ffn, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    kv = hidden // heads * c["num_key_value_heads"]
    layer = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    layer += [(ffn, hidden), (ffn, hidden), (hidden, ffn)]
    return {
        f"model.layers.{i}.{name}_proj": shape
        for i in range(c["num_hidden_layers"])
        for name, shape in zip(LINEARS, layer, strict=True)
    }


def test_folder_is_complete_and_within_four_megabytes():
    assert {path.name for path in TINY.iterdir()} == FILES
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= SIZE_LIMIT


def test_config_is_that_of_the_published_packed_form():
    config = json.loads((TINY / "config.json").read_text())
    assert config["architectures"] == ["BitNetForCausalLM"]
    assert (config["hidden_act"], config["tie_word_embeddings"]) == ("relu2", True)
    quantization = config["quantization_config"]
    assert quantization["linear_class"] == "autobitlinear"
    assert quantization["quantization_mode"] == "offline"


@pytest.mark.parametrize("tensor_type", [t for t in tensor_types() if t.ternary], ids=lambda t: t.name)
def test_every_linear_is_legal_for_every_ternary_type(tensor_type):
    assert {name: tensor_type.illegal(*shape) for name, shape in shapes().items()} == dict.fromkeys(shapes())


def test_every_linear_is_legal_for_the_types_still_to_come():
    # 256 columns a block in TQ1_0 and TQ2_0, 32 rows a step in TL1 and TL2
    assert [name for name, (rows, cols) in shapes().items() if rows % 32 or cols % 256] == []


def test_packed_codes_are_ternary_and_scales_positive(checkpoint):
    for name, (rows, cols) in shapes().items():
        packed = checkpoint.read(f"{name}.weight")
        assert (packed.shape, packed.dtype) == ((rows // 4, cols), np.uint8)
        codes = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)])
        assert codes.max() == 2, f"{name}: code 3 has no meaning"
        trits = unpack_hf(packed, rows)
        # absmean leaves |w| < mean/2 at zero: 31 % of a normal distribution, and training moves it some way
        assert 0.1 < (trits == 0).mean() < 0.6, name
        assert abs(trits.mean(dtype=np.float64)) < 0.05, f"{name}: signs should nearly balance"
        scale = to_float32(checkpoint.read(f"{name}.weight_scale"), "BF16")
        assert scale.shape == (1,)
        assert 0 < scale[0] < 1


def test_embeddings_and_norms_are_finite(checkpoint):
    dense = [entry for entry in checkpoint.tensors.values() if entry.dtype == "BF16"]
    assert len(dense) == 2 + len(shapes()) + len(shapes()) // len(LINEARS) * 4
    for entry in dense:
        assert np.isfinite(to_float32(checkpoint.read(entry.name), entry.dtype)).all(), entry.name
    assert len(dense) + len(shapes()) == len(checkpoint.tensors)


@settings(max_examples=200, deadline=None)
@given(text=st.text().filter(lambda text: "<|" not in text))  # special tokens leave no text
def test_tokenizer_returns_any_text(model, text):
    assert model.detokenize(model.tokenize(text)) == text


def test_tokenizer_agrees_with_the_tokenizers_library(model, held_out):
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for line in held_out.splitlines()[:1000]:
        assert model.tokenize(line) == library.encode(line).ids


def test_perplexity_is_at_most_a_third_of_the_unigram_models(model, held_out):
    ids = np.array(model.tokenize(held_out))
    assert len(ids) >= 20_000
    counts = np.bincount(ids)
    # the best unigram model there is for these tokens: their own frequencies
    unigram = math.exp(-np.log(counts[ids] / len(ids)).mean())
    result = bitconv.perplexity(model, held_out)
    print(f"\nperplexity {result.perplexity:.2f} over {result.tokens} tokens, unigram {unigram:.1f}")
    assert result.tokens >= 20_000
    assert result.perplexity <= unigram / 3


def quoted_sample() -> str:
    block = re.search(r"^```text sample\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    return block.group(1).removesuffix("\n")


def test_quoted_sample_is_what_the_model_writes(model):
    prompt = re.search(r"greedy tokens after `(.+?)`", README.read_text(encoding="utf-8")).group(1)
    generation = model.generate(prompt, max_tokens=64, temperature=0.0)
    assert prompt + "".join(generation) == quoted_sample()
    assert len(generation.ids) == 64


def test_quoted_sample_copies_no_long_line(corpus):
    sample = quoted_sample()
    lines = [line for line in corpus.training_lines() if len(line) > 60]
    assert len(lines) > 10_000
    assert [line for line in lines if line in sample] == []
    text = "\n".join(lines)
    assert [line for line in sample.splitlines() if len(line.strip()) > 60 and line.strip() in text] == []


def test_held_out_text_is_rebuilt_and_shares_no_line_with_training(corpus, held_out):
    assert corpus.held_out == held_out
    training = corpus.training_lines()
    assert [line for line in held_out.splitlines() if line.strip() in training] == []


def test_readme_names_every_held_out_module(corpus):
    text = re.sub(r"\s+", " ", README.read_text(encoding="utf-8"))
    assert " ".join(corpus.held_out_modules) in text


def test_scripts_that_the_readme_names_exist():
    named = re.findall(r"tools/\w+\.py", README.read_text(encoding="utf-8"))
    assert "tools/train_tiny.py" in named
    assert [name for name in named if not Path(REPOSITORY / name).is_file()] == []

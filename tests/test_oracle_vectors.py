"""The reference vectors' two tiny models give the recorded logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bitconv
from tests.checkpoints import write_checkpoint
from tests.numpy_forward import forward, read_network
from tests.paths import SHARED

pytestmark = pytest.mark.skipif(SHARED is None, reason="reference vectors are not beside the checkout")
MODELS = {
    "bitnet": ("BitNetForCausalLM", {"linear_class": "autobitlinear", "quantization_mode": "offline"}),
    "llama": ("LlamaForCausalLM", {}),
}
# Absolute; the recorded logits are float32 with a standard deviation of 6, and hold no rounding flip.
TOLERANCE = 1e-4


def checkpoint_of(name: str, path: Path, **options) -> tuple[Path, dict[str, np.ndarray]]:
    assert SHARED is not None
    stem = SHARED / "spec" / "vectors" / f"tiny_{name}_e2e"
    arrays = dict(np.load(f"{stem}.npz"))
    architecture, quantization = MODELS[name]
    config = json.loads(Path(f"{stem}.config.json").read_text()) | {
        "architectures": [architecture],
        "model_type": name,
        "quantization_config": {"quant_method": "bitnet", **quantization},
    }
    tensors = {}
    for key, array in arrays.items():
        if key.endswith(".packed_u8"):
            tensors[key.removesuffix(".packed_u8")] = ("U8", array)
        elif key.startswith(("model.", "lm_head.")) and not key.endswith(".ternary"):
            tensors[key] = ("F32", array)
    return write_checkpoint(path, config, tensors, **options), arrays


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shards", [1, 3])
def test_converted_vectors_give_the_recorded_logits(tmp_path, name, shards):
    checkpoint, arrays = checkpoint_of(name, tmp_path / "model", shards=shards)
    out = tmp_path / "model.gguf"
    bitconv.convert(checkpoint, out, type="i2_s", embedding_type="f32", threads=1)
    ids = arrays["input_ids"].tolist()
    for isa in ("scalar", None):
        logits = bitconv.load(out, cache_type="f32", threads=1, isa=isa).logits(ids)
        assert logits.dtype == np.float32 and logits.shape == arrays["logits_f32"].shape
        assert np.abs(logits - arrays["logits_f32"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_the_numpy_pass_gives_the_recorded_logits(tmp_path, name):
    checkpoint, arrays = checkpoint_of(name, tmp_path)
    network = read_network(checkpoint)
    trits = arrays["model.layers.1.mlp.down_proj.weight.ternary"]
    assert np.array_equal(network.layers[1]["down"].trits, trits)
    logits, _ = forward(network, arrays["input_ids"].tolist())
    assert np.abs(logits - arrays["logits_f32"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_recorded_logits(tmp_path, name):
    pytest.importorskip("transformers")
    from tests.transformers_oracle import Reference

    checkpoint, arrays = checkpoint_of(name, tmp_path)
    logits = Reference(checkpoint).logits(arrays["input_ids"].tolist())
    assert np.abs(logits - arrays["logits_f32"]).max() <= TOLERANCE

"""The two oracles agree with each other, and see the mistakes they are there for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checkpoints import make_checkpoint
from tests.numpy_forward import PINNED, Network, Ternary, forward, read_network

pytest.importorskip("transformers")
from tests.transformers_oracle import Reference

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
MODELS = {
    "bitnet": {"family": "bitnet", "form": "packed_autobitlinear"},
    "bitnet-silu": {"family": "bitnet_silu", "form": "master", "dtype": "float16"},
    "head-dim-12": {
        "family": "llama", "form": "packed_bitlinear", "n_heads": 32, "n_kv_heads": 8, "head_dim": 12},
    "llama3-rope": {"family": "llama", "form": "dequantised", "rope_scaling": LLAMA3, "rope_theta": 5e5},
    "llama3-nested": {
        "family": "llama", "form": "online", "rope_scaling": LLAMA3, "rope_key": "rope_parameters"},
}  # fmt: skip


def rounded(unrounded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {site: np.rint(values).astype(np.int8) for site, values in unrounded.items()}


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 301, 96).tolist()


@pytest.mark.parametrize("model", MODELS)
def test_pinned_passes_agree(tmp_path, ids, model):
    path = make_checkpoint(tmp_path, **MODELS[model])
    ours, activations = forward(read_network(path), ids)
    codes = rounded(activations.unrounded)
    theirs, their_unrounded = Reference(path).pinned_logits(ids, codes)
    assert np.abs(ours - theirs).max() <= PINNED * theirs.std()
    assert codes.keys() == their_unrounded.keys()
    for site, values in their_unrounded.items():
        assert np.abs(codes[site] - values).max() <= 0.5 + 1e-3, site


def test_pinning_is_undone(tmp_path, ids):
    path = make_checkpoint(tmp_path, form="packed_bitlinear", n_layers=1)
    reference = Reference(path)
    before = reference.logits(ids)
    codes = {site: np.zeros((96, module.in_features), np.int8) for site, module in reference.linears.items()}
    assert not np.array_equal(reference.pinned_logits(ids, codes)[0], before)
    assert np.array_equal(reference.logits(ids), before)


def _scaled(network: Network, factor: float) -> Network:
    layer = dict(network.layers[1])
    layer["down"] = Ternary(layer["down"].trits, layer["down"].multiplier * factor)
    return _with_layer(network, layer)


def _with_layer(network: Network, layer: dict) -> Network:
    layers = [network.layers[0], layer, *network.layers[2:]]
    return Network(network.config, network.embedding, network.head, network.norm, layers)


def _changed(network: Network, **config: object) -> Network:
    values = {**network.config, **config}
    return Network(values, network.embedding, network.head, network.norm, network.layers)


def _interleaved(network: Network) -> Network:
    """q and k rows in the order of the other rotary style."""
    heads = network.config["num_attention_heads"]
    layer = dict(network.layers[1])
    for role, count in (("q", heads), ("k", network.config["num_key_value_heads"])):
        trits = layer[role].trits
        half = len(trits) // count // 2
        mixed = trits.reshape(count, 2, half, -1).swapaxes(1, 2).reshape(trits.shape)
        layer[role] = Ternary(mixed, layer[role].multiplier)
    return _with_layer(network, layer)


def _swapped_heads(network: Network) -> Network:
    """kv heads assigned to query heads in turn rather than in groups."""
    layer = dict(network.layers[1])
    heads, kv_heads = network.config["num_attention_heads"], network.config["num_key_value_heads"]
    trits = layer["q"].trits
    turned = trits.reshape(kv_heads, heads // kv_heads, -1, trits.shape[1]).swapaxes(0, 1)
    layer["q"] = Ternary(turned.reshape(trits.shape), layer["q"].multiplier)
    return _with_layer(network, layer)


def _without_sub_norm(network: Network) -> Network:
    return _with_layer(network, {k: v for k, v in network.layers[1].items() if k != "attn_sub_norm"})


MISTAKES = {
    "multiplier off by 1e-4": lambda network: _scaled(network, 1 + 1e-4),
    "wrong epsilon": lambda network: _changed(network, rms_norm_eps=1e-5),
    "wrong activation": lambda network: _changed(network, hidden_act="silu"),
    "wrong theta": lambda network: _changed(network, rope_theta=500000.0),
    "rotary rows interleaved": _interleaved,
    "kv heads in turn": _swapped_heads,
    "sub-norm left out": _without_sub_norm,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_tolerance_sees_a_mistake(tmp_path, ids, mistake):
    network = read_network(make_checkpoint(tmp_path, rms_eps=1e-3))
    right, activations = forward(network, ids)
    wrong, _ = forward(MISTAKES[mistake](network), ids, pinned=rounded(activations.unrounded))
    assert np.abs(wrong - right).max() > 2 * PINNED * right.std()

"""Model families: what config.json and GGUF metadata mean, and what is refused."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitconv.errors import BitconvWarning, FormatError, UnsupportedError
from bitconv.formats.config import Config
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.models import (
    LINEARS,
    Hyperparameters,
    families,
    family_of_gguf,
    family_of_hf,
    gguf_tensor_names,
    read_gguf,
)
from bitconv.models.hf_config import WeightForm, llama3_factors, read_hf
from tests.paths import SHARED

BITNET = {
    "architectures": ["BitNetForCausalLM"], "hidden_act": "relu2", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": True, "vocab_size": 97,
}  # fmt: skip
LLAMA = BITNET | {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
HP = Hyperparameters(
    arch="bitnet-b1.58", n_layers=2, hidden=128, ffn=256, n_heads=4, n_kv_heads=2, head_dim=32, vocab=97,
    context=64, rms_eps=1e-5, rope_theta=5e5, rope_style="neox", activation="relu2", sub_norms=True, tied_head=True,
)  # fmt: skip


def read(config: dict[str, Any], tensor_names: tuple[str, ...] = ()):
    return read_hf(Config(config, "config.json"), tensor_names)


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_registry_is_unambiguous_and_an_unknown_name_lists_the_known():
    hf = [name for family in families() for name in family.hf_architectures]
    gguf = [name for family in families() for name in family.gguf_architectures]
    assert len(set(hf)) == len(hf) and len(set(gguf)) == len(gguf)
    for family in families():
        assert all(family_of_hf(name) is family for name in family.hf_architectures)
        assert all(family_of_gguf(name) is family for name in family.gguf_architectures)
        for activation in family.activations:
            for tied in (False, True):
                assert family.gguf_arch(activation, tied) in family.gguf_architectures
        assert all(f"blk.{{n}}.{linear}.weight" in family.hf_names for linear in LINEARS)
    for find, known in ((family_of_hf, hf), (family_of_gguf, gguf)):
        with pytest.raises(UnsupportedError) as error:
            find("gpt-17")
        assert all(name in str(error.value) for name in known)


# config.json ----------------------------------------------------------------------------------------------------


def test_bitnet_config_gives_its_hyperparameters():
    settings = read(BITNET)
    assert settings.hyperparameters == HP and not settings.notes
    assert settings.family.name == "bitnet" and settings.form is WeightForm.ONLINE


def test_both_spellings_of_the_bitnet_class_are_read():
    assert read(BITNET | {"architectures": ["BitnetForCausalLM"]}) == read(BITNET)


@pytest.mark.parametrize(
    ("family", "activation", "tied", "arch", "noted"),
    [
        (BITNET, "relu2", True, "bitnet-b1.58", False),
        (BITNET, "relu2", False, "bitnet-b1.58", False),
        (BITNET, "silu", True, "bitnet", False),
        (BITNET, "silu", False, "bitnet-b1.58", True),
        (LLAMA, "silu", True, "llama", False),
        (LLAMA, "silu", False, "llama", False),
    ],
)
def test_architecture_follows_activation_and_head(family, activation, tied, arch, noted):
    settings = read(family | {"hidden_act": activation, "tie_word_embeddings": tied})
    hp = settings.hyperparameters
    assert (hp.arch, hp.activation, hp.tied_head) == (arch, activation, tied)
    assert bool(settings.notes) == noted


def test_a_config_silent_on_tying_is_decided_by_the_head():
    silent = without(LLAMA, "tie_word_embeddings")
    assert read(silent).hyperparameters.tied_head
    assert not read(silent, ("lm_head.weight",)).hyperparameters.tied_head


def test_theta_is_read_from_all_its_places():
    for where in ({"rope_theta": 7e4}, {"rope_parameters": {"rope_theta": 7e4}},
                  {"rope_theta": 7e4, "rope_parameters": {"rope_type": "default", "rope_theta": 7e4}},
                  {"rope_theta": 70000, "rope_scaling": None}):  # fmt: skip
        assert read(without(BITNET, "rope_theta") | where).hyperparameters.rope_theta == 7e4
    assert read(without(LLAMA, "rope_theta")).hyperparameters.rope_theta == 10000
    with pytest.raises(FormatError, match="rope_theta is missing"):
        read(without(BITNET, "rope_theta"))
    with pytest.raises(FormatError, match="rope_theta is given as 70000 and as 500000"):
        read(BITNET | {"rope_theta": 7e4, "rope_parameters": {"rope_theta": 5e5}})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_divides_frequencies_as_transformers_does(key):
    """The formula of transformers 5, written out again in float64; ours is rounded to float32 once."""
    theta, dim = 5e5, 64
    config = LLAMA | {"head_dim": dim, key: LLAMA3 | ({"rope_theta": theta} if key == "rope_parameters" else {})}
    factors = read(config).hyperparameters.rope_factors
    assert factors is not None and factors.dtype == np.float32 and factors.shape == (dim // 2,)
    frequencies = theta ** (-np.arange(0, dim, 2) / dim)
    expected = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    assert np.allclose(frequencies / factors, expected, rtol=2**-23, atol=0)
    assert factors[0] == 1 and factors[-1] == 8 and (np.diff(factors) >= 0).all()
    assert "rope_freqs.weight" in gguf_tensor_names(read(config).hyperparameters)


def test_llama3_scaling_defaults_to_the_trained_context():
    scaling = without(LLAMA3, "original_max_position_embeddings")
    factors = read(LLAMA | {"rope_scaling": scaling}).hyperparameters.rope_factors
    assert np.array_equal(factors, llama3_factors(5e5, 32, 8.0, 1.0, 4.0, 64))


def test_rope_type_default_scales_nothing():
    for key in ("rope_type", "type"):
        assert read(LLAMA | {"rope_scaling": {key: "default"}}).hyperparameters.rope_factors is None


UNSUPPORTED = [
    ({"hidden_act": "gelu"}, 'hidden_act is "gelu"; supported: "relu2", "silu"'),
    ({"attention_bias": True}, "attention_bias is true"),
    ({"mlp_bias": True}, "mlp_bias is true"),
    ({"sliding_window": 4096}, "sliding_window is 4096"),
    ({"sliding_window": 4096, "use_sliding_window": True}, "sliding_window is 4096"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'type is "linear"; supported: "default", "llama3"'),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type is "yarn"'),
    ({"rope_parameters": {"rope_type": "dynamic"}}, 'rope_type is "dynamic"'),
    ({"rope_scaling": {"rope_type": "default", "type": "linear"}}, 'type is "linear"'),
    ({"use_rms_norm": True}, "use_rms_norm is true"),
    ({"weight_bits": 2}, "weight_bits is 2"),
    ({"input_bits": 4}, "input_bits is 4"),
    ({"architectures": ["MixtralForCausalLM"]}, "BitNetForCausalLM, BitnetForCausalLM, LlamaForCausalLM"),
    ({"quantization_config": {"quant_method": "gptq"}}, 'quant_method is "gptq"; supported: "bitnet"'),
    ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm is true"),
    ({"quantization_config": {"quant_method": "bitnet", "linear_class": "mylinear"}}, "linear_class"),
    ({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}, "quantization_mode"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED, ids=lambda value: str(value)[:60])
def test_a_setting_that_is_not_computed_is_refused(change, message):
    with pytest.raises(UnsupportedError, match="config.json") as error:
        read(BITNET | change)
    assert message in str(error.value)


def test_an_unused_sliding_window_is_no_obstacle():
    for unused in ({"sliding_window": None}, {"sliding_window": 4096, "use_sliding_window": False}):
        assert read(BITNET | unused).hyperparameters == HP


MALFORMED = [
    ({"hidden_size": "128"}, "hidden_size must be an integer"),
    ({"hidden_size": True}, "hidden_size must be an integer"),
    ({"hidden_size": 128.0}, "hidden_size must be an integer"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected 1 to 10000"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"num_key_value_heads": 3}, "4 heads cannot share 3 key-value heads"),
    ({"num_attention_heads": 3, "num_key_value_heads": 3}, "3 heads do not divide 128"),
    ({"head_dim": 31}, "head dimension 31 is odd"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ({"rope_theta": 0.0}, "rope_theta is 0"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"architectures": []}, "architectures must hold one name"),
    ({"architectures": ["LlamaForCausalLM", "BitNetForCausalLM"]}, "architectures must hold one name"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor 4 must be below"),
    ({"rope_scaling": without(LLAMA3, "factor")}, "factor is missing"),
    ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}}, "contradict each other"),
    ({"quantization_config": {}}, "quant_method is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MALFORMED, ids=lambda value: str(value)[:60])
def test_a_malformed_setting_is_named(change, message):
    with pytest.raises(FormatError, match="config.json") as error:
        read(BITNET | change)
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["hidden_act", "hidden_size", "rms_norm_eps", "vocab_size", "architectures"])
def test_a_missing_setting_is_an_error_and_not_a_default(key):
    with pytest.raises(FormatError, match=f"{key} is missing"):
        read(without(BITNET, key))


@pytest.mark.parametrize(
    ("config", "quantization", "form"),
    [
        (BITNET, None, WeightForm.ONLINE),
        (LLAMA, None, WeightForm.EXACT),
        (LLAMA, {}, WeightForm.PACKED_DIVIDE),
        (BITNET, {"linear_class": "bitlinear"}, WeightForm.PACKED_DIVIDE),
        (BITNET, {"linear_class": "bitlinear", "quantization_mode": "offline"}, WeightForm.PACKED_DIVIDE),
        (BITNET, {"linear_class": "autobitlinear"}, WeightForm.PACKED_MULTIPLY),
        (LLAMA, {"linear_class": "autobitlinear", "quantization_mode": "offline"}, WeightForm.PACKED_MULTIPLY),
        (LLAMA, {"linear_class": "autobitlinear", "quantization_mode": "online"}, WeightForm.ONLINE),
        (LLAMA, {"modules_to_not_convert": None}, WeightForm.PACKED_DIVIDE),
        (LLAMA, {"modules_to_not_convert": ["lm_head"]}, WeightForm.PACKED_DIVIDE),
        (LLAMA, {"modules_to_not_convert": ["lm_head", "model.embed_tokens"]}, WeightForm.PACKED_DIVIDE),
    ],
)
def test_form_of_the_weights_follows_quantization_config(config, quantization, form):
    if quantization is not None:
        config = config | {"quantization_config": {"quant_method": "bitnet"} | quantization}
    assert read(config).form is form


@pytest.mark.parametrize(
    "entry",
    ["q_proj", "model.layers.0", "model.layers.1.mlp", "mlp.down_proj", "model", "", "layers.*", "model.layers.7."],
)
def test_a_linear_that_stays_dense_is_refused(entry):
    quantization = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head", entry]}
    with pytest.raises(UnsupportedError, match="modules_to_not_convert has"):
        read(LLAMA | {"quantization_config": quantization})


def test_a_ternary_head_is_refused():
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    with pytest.raises(UnsupportedError, match="makes the head ternary"):
        read(LLAMA | {"quantization_config": online | {"modules_to_not_convert": ["model.norm"]}})


def test_keys_that_change_nothing_are_listed():
    config = Config(BITNET | {"use_cache": True, "quantization_config": {"quant_method": "bitnet", "note": 1}}, "c")
    read_hf(config, ())
    assert config.unread() == ["use_cache", "quantization_config.note"]


def test_published_configs_are_read():
    if SHARED is None:
        pytest.skip("published configurations are not beside the checkout")
    published = json.loads((SHARED / "data/configs/bitnet-b1.58-2B-4T-bf16.config.json").read_text())
    settings = read(published)
    hp = settings.hyperparameters
    assert (hp.arch, hp.head_dim, hp.n_kv_heads, hp.rope_theta) == ("bitnet-b1.58", 128, 5, 5e5)
    assert settings.form is WeightForm.ONLINE
    partial = json.loads((SHARED / "data/configs/bitnet_b1_58-3B.config.partial.json").read_text())
    settings = read(partial | {"vocab_size": 32002})
    hp = settings.hyperparameters
    assert (hp.arch, hp.activation, hp.head_dim, settings.form) == ("bitnet", "silu", 100, WeightForm.ONLINE)


# GGUF -----------------------------------------------------------------------------------------------------------


def metadata(hp: Hyperparameters) -> dict[str, tuple[Any, str]]:
    """The least that other programs write."""
    numbers = {"embedding_length": hp.hidden, "feed_forward_length": hp.ffn, "block_count": hp.n_layers,
               "context_length": hp.context, "attention.head_count": hp.n_heads,
               "attention.head_count_kv": hp.n_kv_heads}  # fmt: skip
    keys: dict[str, tuple[Any, str]] = {f"{hp.arch}.{key}": (value, "u32") for key, value in numbers.items()}
    keys[f"{hp.arch}.attention.layer_norm_rms_epsilon"] = hp.rms_eps, "f32"
    keys[f"{hp.arch}.rope.freq_base"] = hp.rope_theta, "f32"
    return keys


def write_gguf(
    path: Path, hp: Hyperparameters, *, keys: dict[str, tuple[Any, str] | None] | None = None,
    tensors: dict[str, tuple[int, ...] | None] | None = None,
) -> Path:  # fmt: skip
    """Write a file of F32 ones; `keys` and `tensors` add to, change or (None) leave out what hp implies."""
    shapes = {**gguf_tensor_names(hp), **(tensors or {})}
    with GgufWriter(path, hp.arch, overwrite=True) as writer:
        for key, entry in {**metadata(hp), **(keys or {})}.items():
            if entry is not None:
                writer.add(key, *entry)
        kept = {name: shape for name, shape in shapes.items() if shape is not None}
        for name, shape in kept.items():
            writer.declare(name, shape, 0)
        for name, shape in kept.items():
            writer.write(name, np.ones(shape, np.float32))
        writer.finish()
    return path


def reread(path: Path, hp: Hyperparameters = HP, **changes: Any) -> Hyperparameters:
    with open_gguf(write_gguf(path / "model.gguf", hp, **changes)) as gguf:
        return read_gguf(gguf)


def like(hp: Hyperparameters, **changes: Any) -> Hyperparameters:
    from dataclasses import replace

    return replace(hp, **changes)


def test_a_gguf_file_gives_its_hyperparameters(tmp_path):
    found = reread(tmp_path)
    assert found == like(HP, rms_eps=float(np.float32(1e-5)))


@pytest.mark.parametrize(
    ("arch", "style", "activation", "sub_norms"),
    [("bitnet", "neox", "silu", True), ("bitnet-25", "neox", "relu2", True),
     ("bitnet-b1.58", "neox", "relu2", True), ("llama", "norm", "silu", False)],
)  # fmt: skip
def test_every_architecture_spelling_has_its_conventions(tmp_path, arch, style, activation, sub_norms):
    found = reread(tmp_path, like(HP, arch=arch, sub_norms=sub_norms))
    assert (found.rope_style, found.activation, found.sub_norms) == (style, activation, sub_norms)


def test_output_weight_makes_an_untied_head_whatever_the_architecture(tmp_path):
    for arch in ("bitnet", "bitnet-b1.58"):
        assert not reread(tmp_path, like(HP, arch=arch, tied_head=False)).tied_head


def test_declared_activation_wins_over_the_architecture(tmp_path):
    declared = {"bitnet-b1.58.hidden_activation": ("silu", "str")}
    assert reread(tmp_path, keys=declared).activation == "silu"
    with pytest.raises(UnsupportedError, match="'gelu' is not supported; supported: relu2, silu"):
        reread(tmp_path, keys={"bitnet-b1.58.hidden_activation": ("gelu", "str")})


@pytest.mark.parametrize("hidden,ffn,vocab,activation", [
    (1536, 4096, 32002, "silu"), (3200, 8640, 32002, "silu"),
    (1536, 4096, 32000, "relu2"), (1536, 8640, 32002, "relu2"), (2560, 6912, 32002, "relu2"),
])  # fmt: skip
def test_the_mislabelled_silu_models_are_known_by_vocabulary_and_layout(hidden, ffn, vocab, activation):
    family = family_of_gguf("bitnet-b1.58")
    found, guess = family.gguf_activation("bitnet-b1.58", vocab, hidden, ffn)
    assert found == activation and bool(guess) == (activation == "silu")


def test_a_guessed_activation_is_one_warning_and_can_be_overridden(tmp_path):
    hp = like(HP, hidden=1536, ffn=4096, vocab=32002, n_heads=16, n_kv_heads=16, head_dim=96, n_layers=1)
    path = write_gguf(tmp_path / "large.gguf", hp)
    with open_gguf(path) as gguf:
        with pytest.warns(BitconvWarning, match="assuming SiLU") as caught:
            assert read_gguf(gguf).activation == "silu"
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_gguf(gguf, hidden_act="relu2").activation == "relu2"


def test_optional_keys_have_their_documented_defaults(tmp_path):
    absent = {"bitnet-b1.58.attention.head_count_kv": None, "bitnet-b1.58.rope.freq_base": None}
    found = reread(tmp_path, like(HP, n_kv_heads=4), keys=absent)
    assert (found.n_kv_heads, found.rope_theta, found.head_dim) == (4, 10000.0, 32)


def test_key_length_gives_a_head_dimension_of_its_own(tmp_path):
    hp = like(HP, arch="llama", sub_norms=False, head_dim=20)
    keys = {f"llama.attention.{key}": (20, "u32") for key in ("key_length", "value_length")}
    assert reread(tmp_path, hp, keys={**keys, "llama.rope.dimension_count": (20, "u32")}).head_dim == 20


def test_per_layer_arrays_are_read_when_all_layers_agree(tmp_path):
    key = "bitnet-b1.58.attention.head_count"
    assert reread(tmp_path, keys={key: ([4, 4], "arr[i32]")}).n_heads == 4
    with pytest.raises(UnsupportedError, match="differs between layers"):
        reread(tmp_path, keys={key: ([4, 2], "arr[i32]")})


def test_rotary_factors_are_read_and_checked(tmp_path):
    hp = like(HP, arch="llama", sub_norms=False, rope_factors=np.ones(16, np.float32))
    assert np.array_equal(reread(tmp_path, hp).rope_factors, np.ones(16, np.float32))
    with pytest.raises(FormatError, match=r"rope_freqs.weight is \[15\]; expected \[16\]"):
        reread(tmp_path, hp, tensors={"rope_freqs.weight": (15,)})


REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (FormatError, {"keys": {"block_count": None}}, "block_count is missing"),
    (FormatError, {"keys": {"block_count": (0, "u32")}}, "block_count is 0"),
    (FormatError, {"keys": {"block_count": (2**31, "u32")}}, "expected 1 to 10000"),
    (FormatError, {"keys": {"block_count": (3, "u32")}}, "tensor blk.2.attn_norm.weight is missing"),
    (FormatError, {"keys": {"block_count": ("2", "str")}}, "block_count"),
    (FormatError, {"keys": {"context_length": (0, "u32")}}, "context_length is 0"),
    (FormatError, {"keys": {"embedding_length": (64, "u32")}}, "token_embd.weight is [97, 128]"),
    (FormatError, {"keys": {"vocab_size": (96, "u32")}}, "97 rows but bitnet-b1.58.vocab_size is 96"),
    (FormatError, {"keys": {"attention.head_count_kv": (3, "u32")}}, "cannot share 3"),
    (FormatError, {"keys": {"attention.head_count": (5, "u32"), "attention.head_count_kv": None}}, "do not divide"),
    (FormatError, {"keys": {"attention.layer_norm_rms_epsilon": (math.nan, "f32")}}, "layer_norm_rms_epsilon"),
    (FormatError, {"keys": {"attention.layer_norm_rms_epsilon": (-1.0, "f32")}}, "expected 0 to 1"),
    (FormatError, {"keys": {"rope.freq_base": (0.0, "f32")}}, "rope.freq_base is 0"),
    (FormatError, {"keys": {"attention.key_length": (33, "u32")}}, "33 is odd"),
    (UnsupportedError, {"keys": {"rope.dimension_count": (16, "u32")}}, "rope.dimension_count is 16"),
    (UnsupportedError, {"keys": {"attention.value_length": (16, "u32")}}, "attention.value_length is 16"),
    (UnsupportedError, {"keys": {"rope.scaling.type": ("yarn", "str")}}, "rope.scaling.type = 'yarn'"),
    (UnsupportedError, {"keys": {"rope.scaling.factor": (2.0, "f32")}}, "rope.scaling.factor = 2.0"),
    (UnsupportedError, {"keys": {"attention.sliding_window": (512, "u32")}}, "sliding_window"),
    (UnsupportedError, {"keys": {"expert_count": (8, "u32")}}, "expert_count = 8"),
    (UnsupportedError, {"keys": {"expert_count": ([8], "arr[i32]")}}, "expert_count"),
    (UnsupportedError, {"keys": {"attention.causal": (False, "bool")}}, "attention.causal"),
    (FormatError, {"tensors": {"token_embd.weight": None}}, "token_embd.weight is missing"),
    (FormatError, {"tensors": {"blk.1.ffn_sub_norm.weight": None}}, "blk.1.ffn_sub_norm.weight is missing"),
    (FormatError, {"tensors": {"blk.0.attn_k.weight": (128, 128)}}, "attn_k.weight is [128, 128]; expected [64, 128]"),
    (FormatError, {"tensors": {"output_norm.weight": (1, 128)}}, "output_norm.weight is [1, 128]"),
    (UnsupportedError, {"tensors": {"blk.0.attn_q.bias": (128,)}}, "blk.0.attn_q.bias"),
    (UnsupportedError, {"tensors": {"blk.0.attn_q.scale": (1,)}}, "blk.0.attn_q.scale"),
    (UnsupportedError, {"tensors": {"blk.0.ffn_gate_exps.weight": (4, 128)}}, "ffn_gate_exps"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_a_gguf_file_that_cannot_run_says_why(tmp_path, kind, changes, message):
    changes = {what: dict(entries) for what, entries in changes.items()}
    if "keys" in changes:
        changes["keys"] = {f"bitnet-b1.58.{key}": entry for key, entry in changes["keys"].items()}
    with pytest.raises(kind) as error:
        reread(tmp_path, **changes)
    assert message in str(error.value) and "model.gguf" in str(error.value)


def test_neutral_scaling_keys_are_accepted(tmp_path):
    keys = {"bitnet-b1.58.rope.scaling.type": ("linear", "str"), "bitnet-b1.58.rope.scaling.factor": (1.0, "f32"),
            "bitnet-b1.58.attention.causal": (True, "bool"), "bitnet-b1.58.expert_count": (0, "u32")}  # fmt: skip
    assert reread(tmp_path, keys=keys).n_layers == 2


def test_another_layout_of_i2_s_is_never_misread(tmp_path):
    assert reread(tmp_path, keys={"bitconv.i2_s.layout": ("x86-128", "str")}).n_layers == 2
    with pytest.raises(UnsupportedError, match="layout 'arm64' is not supported; 'x86-128' is"):
        reread(tmp_path, keys={"bitconv.i2_s.layout": ("arm64", "str")})


def test_an_unknown_architecture_lists_the_known(tmp_path):
    with pytest.raises(UnsupportedError, match="bitnet-b1.58, bitnet-25, bitnet, llama"):
        reread(tmp_path, like(HP, arch="qwen3"))

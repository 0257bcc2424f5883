"""Checkpoints that must not be converted: each error says what, where, and what to do; nothing is written."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import BitconvError, BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats.gguf import open_gguf
from bitconv.tensor_types import tensor_type
from tests.checkpoints import (
    Stored,
    absmean_trits,
    make_checkpoint,
    read_tensors,
    stored,
    to_bf16,
    widened,
    write_checkpoint,
)

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
Edit = Callable[[dict[str, Stored]], Any]


def edited(path: Path, edit: Edit, *, config: dict[str, Any] | None = None, **options: Any) -> Path:
    """Make a one-layer checkpoint and save it again with its tensors changed."""
    src = make_checkpoint(path, **{"n_layers": 1, **options})
    tensors = dict(read_tensors(src))
    edit(tensors)
    return write_checkpoint(src, {**json.loads((src / "config.json").read_text()), **(config or {})}, tensors)


def refused(src: Path, kind: type[BitconvError], *parts: str, **options: Any) -> str:
    """Convert, expect this very error with these parts in its message, and nothing new on disk."""
    before = sorted(src.iterdir())
    with pytest.raises(kind) as error:
        bitconv.convert(src, **options)
    message = str(error.value)
    assert error.type is kind
    for part in parts:
        assert part in message, message
    assert sorted(src.iterdir()) == before
    return message


def put(name: str, index: Any, value: float) -> Edit:
    """Return an edit that sets one value of a float tensor."""

    def edit(tensors: dict[str, Stored]) -> None:
        code, array = tensors[name]
        array = array.copy()
        array[index] = to_bf16(np.float32([value]))[0] if code == "BF16" else value
        tensors[name] = code, array

    return edit


def replace(name: str, tensor: Stored) -> Edit:
    return lambda tensors: tensors.update({name: tensor})


def zeros(shape: tuple[int, ...], dtype: str = "float32") -> Stored:
    return stored(np.zeros(shape, np.float32), dtype)


# tensors that are missing, left over or of the wrong shape --------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", Q, f"{Q}_scale", "model.layers.0.input_layernorm.weight"],
)
def test_a_missing_tensor_is_named(tmp_path, name):
    refused(edited(tmp_path, lambda t: t.pop(name)), FormatError, "1 tensor is missing", name)


def test_a_missing_sub_norm_is_named_in_every_spelling(tmp_path):
    src = edited(tmp_path, lambda t: t.pop("model.layers.0.mlp.ffn_sub_norm.weight"))
    refused(src, FormatError, "mlp.ffn_sub_norm.weight or model.layers.0.mlp.ffn_layernorm.weight")


def test_many_missing_tensors_are_counted(tmp_path):
    src = edited(tmp_path, lambda t: None, config={"num_hidden_layers": 3})
    refused(src, FormatError, "22 tensors are missing", "and 17 more")


def test_a_missing_untied_head_is_named(tmp_path):
    src = edited(tmp_path, lambda t: t.pop("lm_head.weight"), family="llama", form="packed_bitlinear")
    refused(src, FormatError, "lm_head.weight")


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.extra.weight", "model.layers.1.input_layernorm.weight", f"{UP}_scale"]
)
def test_a_leftover_tensor_is_named(tmp_path, name):
    src = edited(tmp_path, replace(name, zeros((4,))), form="online")
    refused(src, FormatError, "1 tensor is unknown to this architecture", name)


@pytest.mark.parametrize("name", [Q.replace("weight", "bias"), Q.replace("weight", "rms_norm.weight")])
def test_a_bias_or_an_inner_norm_is_unsupported(tmp_path, name):
    refused(edited(tmp_path, replace(name, zeros((256,)))), UnsupportedError, name, "not supported")


@pytest.mark.parametrize(
    ("name", "tensor", "found", "expected"),
    [
        (Q, ("U8", np.ones((63, 256), np.uint8)), "[63, 256]", "[64, 256]"),
        (Q, ("U8", np.ones((256, 64), np.uint8)), "[256, 64]", "[64, 256]"),
        (Q, ("U8", np.ones((64 * 256,), np.uint8)), "[16384]", "[64, 256]"),
        ("model.norm.weight", zeros((1, 256)), "[1, 256]", "[256]"),
        ("model.embed_tokens.weight", zeros((300, 256)), "[300, 256]", "[301, 256]"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, name, tensor, found, expected):
    refused(edited(tmp_path, replace(name, tensor)), FormatError, name, found, expected)


# the form of the weights -----------------------------------------------------------------------------------------


def test_packed_weights_under_a_config_that_says_masters(tmp_path):
    online = {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                      "quantization_mode": "online"}}  # fmt: skip
    src = edited(tmp_path, lambda t: t.pop(f"{Q}_scale"), config=online)
    refused(src, FormatError, Q, "is packed (U8), but by config.json linears are masters")


def test_masters_under_a_config_that_says_packed(tmp_path):
    master = stored(np.random.default_rng(0).standard_normal((256, 256)), "float32")
    divide = {"quantization_config": {"quant_method": "bitnet"}}
    message = refused(edited(tmp_path / "a", replace(Q, master), config=divide), FormatError, Q, "is F32")
    assert "packed, divided by weight_scale (U8)" in message
    refused(edited(tmp_path / "b", replace(Q, master)), FormatError, Q, "neither packed nor {-a, 0, +a}")


@pytest.mark.parametrize("code", ["I8", "F64"])
def test_other_types_of_linears_are_unsupported(tmp_path, code):
    array = np.ones((256, 256), {"I8": np.int8, "F64": np.float64}[code])
    src = edited(tmp_path, replace(Q, (code, array)), form="online")
    refused(src, UnsupportedError, Q, f"is {code}", "BF16, F16, F32 or packed U8")


def test_code_3_is_named_with_its_place(tmp_path):
    def edit(tensors: dict[str, Stored]) -> None:
        array = tensors[UP][1].copy()
        array[5, 7] = 0b11010101  # rows 5, 101, 197 and 293 of 384; the last holds code 3
        tensors[UP] = "U8", array

    refused(edited(tmp_path, edit), FormatError, UP, "code 3 at row 293, column 7")


@pytest.mark.parametrize("form", ["packed_bitlinear", "packed_autobitlinear"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, 1e-45])
def test_a_useless_scale_is_named(tmp_path, form, value):
    src = edited(tmp_path, replace(f"{UP}_scale", stored(np.float32([value]), "float32")), form=form)
    if form == "packed_autobitlinear" and value == np.float32(1e-45):
        bitconv.convert(src)  # absurd but a legal multiplier; its reciprocal would not be
    else:
        refused(src, FormatError, UP, "above 0")


def test_a_scale_per_row_is_named(tmp_path):
    refused(edited(tmp_path, replace(f"{UP}_scale", zeros((384,)))), FormatError, f"{UP}_scale is [384]")


def test_a_scale_of_no_dimension_is_read(tmp_path):
    src = edited(tmp_path, lambda t: t.update({f"{UP}_scale": ("F32", t[f"{UP}_scale"][1].reshape(()))}))
    assert bitconv.convert(src).n_tensors == 13


# values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["online", "packed_autobitlinear"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_all_zero_weights_are_named(tmp_path, form, dtype):
    if form == "online":
        src = edited(tmp_path, replace(UP, zeros((384, 256), dtype)), form=form, dtype=dtype)
    else:
        src = edited(tmp_path, replace(UP, ("U8", np.full((96, 256), 0x55, np.uint8))), form=form, dtype=dtype)
    refused(src, FormatError, UP, "all weights are zero")


def test_weights_below_the_floor_of_absmean_are_all_zero(tmp_path):
    tiny = np.random.default_rng(0).standard_normal((384, 256)).astype(np.float32) * np.float32(1e-7)
    src = edited(tmp_path, replace(UP, stored(tiny, "float32")), form="online")
    refused(src, FormatError, UP, "all weights are zero")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value, dtype):
    src = edited(tmp_path, put(UP, (383, 255), value), form="online", dtype=dtype)
    refused(src, FormatError, UP, "not finite")
    refused(src, FormatError, UP, "not finite", type="f32")


@pytest.mark.parametrize(
    ("name", "index", "place"),
    [
        ("model.embed_tokens.weight", (300, 5), "[300, 5]"),
        ("model.norm.weight", (7,), "[7]"),
        ("model.layers.0.self_attn.attn_sub_norm.weight", (255,), "[255]"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_other_values_that_are_not_finite_are_named_with_their_place(tmp_path, name, index, place, value):
    src = edited(tmp_path, put(name, index, value))
    refused(src, FormatError, name, f"at {place} is not finite")


def test_an_embedding_that_overflows_f16_needs_another_type(tmp_path):
    src = edited(tmp_path, put("model.embed_tokens.weight", (2, 3), 70000.0))
    refused(src, UnsupportedError, "model.embed_tokens.weight", "70000 at [2, 3] does not fit F16", "use f32")
    assert bitconv.convert(src, embedding_type="bf16").n_tensors == 13


def test_a_multiplier_that_f16_cannot_hold_needs_another_type(tmp_path):
    for value, message in ((1e-9, "becomes 0 in F16"), (1e6, "does not fit F16")):
        scale = stored(np.float32([value]), "float32")
        src = edited(tmp_path / str(value), replace(f"{UP}_scale", scale))
        refused(src, UnsupportedError, UP, message, "use f32", type="f16")


# shapes that a type cannot hold ----------------------------------------------------------------------------------


def test_columns_that_are_no_blocks_name_tensor_and_way_out(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", ffn=264, n_layers=1)
    refused(src, UnsupportedError, "blk.0.ffn_down.weight", "mlp.down_proj.weight", "[256, 264]", "K = 264",
            "--type f16")  # fmt: skip
    with pytest.warns(BitconvWarning):
        report = bitconv.convert(src, type="f16")
    assert {row.type for row in report.tensors} == {"F16", "F32"}


# models that are not ternary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_is_not_ternary_is_refused_with_a_table(tmp_path, dtype):
    """Two tensors: one of a dense model, one ternary but for a single weight; the rest stays out of the table."""
    rng = np.random.default_rng(1)

    def edit(tensors: dict[str, Stored]) -> None:
        tensors[Q] = stored(rng.standard_normal((256, 256)).astype(np.float32), dtype)
        put(UP, (3, 4), 0.25)(tensors)

    src = edited(tmp_path / "m", edit, family="llama", form="dequantised", dtype=dtype)
    message = refused(src, UnsupportedError, "2 of 7 linears are not ternary", "--force")
    rows = [line.split() for line in message.splitlines() if line.startswith("  model.")]
    assert [row[0] for row in rows] == [Q, UP]
    for row, name in zip(rows, (Q, UP), strict=True):
        values = widened(read_tensors(src)[name]).astype(np.float64)
        trits, a = absmean_trits(values.astype(np.float32))
        distance = np.sqrt(((values - trits * np.float64(a)) ** 2).sum() / (values**2).sum())
        distinct = np.unique(values).size
        assert row[1:-1] == (["4"] if name == UP else [">", "1000"]) and (distinct > 1000) == (name == Q)
        assert row[-1] == f"{distance:.3f}"


def test_force_rounds_by_absmean_and_says_so(tmp_path):
    src = edited(tmp_path / "m", put(UP, (3, 4), 0.25), family="llama", form="dequantised")
    with pytest.warns(BitconvWarning, match=r"1 of 7 linears are not ternary.*rounded by absmean") as caught:
        report = bitconv.convert(src, force=True)
    assert len(caught) == 1 and len(report.warnings) == 1
    values = {name: widened(read_tensors(src)[name]) for name in (UP, UP.replace("up_proj", "gate_proj"))}
    with open_gguf(report.path) as gguf:
        i2_s = tensor_type("i2_s")
        trits, multiplier = i2_s.unpack(gguf.data("blk.0.ffn_up.weight"), 384, 256)
        expected = absmean_trits(values[UP])
        assert np.array_equal(trits, expected[0]) and multiplier == expected[1]
        trits, multiplier = i2_s.unpack(gguf.data("blk.0.ffn_gate.weight"), 384, 256)
        gate = values[UP.replace("up_proj", "gate_proj")]
        assert multiplier == np.abs(gate).max() and np.array_equal(trits, np.sign(gate))


# arguments and settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"type": "q4_0"}, UnsupportedError, "I2_S (id 36)"),
        ({"embedding_type": "i2_s"}, UnsupportedError, "cannot be I2_S; supported are f32, f16, "),
        ({"output_type": "q5_k"}, UnsupportedError, "'q5_k' is not supported"),
        ({"type": "q8_0"}, UnsupportedError, "linears cannot be Q8_0; supported are f32, f16, bf16, "),
        ({"fallback": "tl1"}, InputError, "fallback is 'tl1'; expected tl2, i2_s, error"),
        ({"tq_scale": "f32"}, InputError, "tq_scale is 'f32'; expected exact or f16"),
        ({"kernel_config": "tl2:1,2"}, InputError, "is not M,K,BM,BK"),
        ({"threads": 0}, InputError, "threads is 0"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, options, kind, message):
    refused(make_checkpoint(tmp_path / "m", n_layers=1), kind, message, **options)


def test_an_output_folder_that_does_not_exist(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1)
    refused(src, InputError, "cannot be written", out=tmp_path / "nowhere" / "m.gguf")


def test_a_setting_of_the_config_is_refused_before_anything_is_written(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1, config={"hidden_act": "gelu"})
    refused(src, UnsupportedError, "config.json", 'hidden_act is "gelu"')


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    refused(make_checkpoint(tmp_path / "m", n_layers=1, tokenizer=False), InputError, "tokenizer")


@pytest.mark.parametrize("cut", [1, 1000, 100000])
def test_a_truncated_shard_is_named(tmp_path, cut):
    src = make_checkpoint(tmp_path / "m", form="online", shards=3)
    shard = src / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-cut])
    refused(src, FormatError, shard.name)


def test_a_missing_shard_is_named(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", shards=3)
    (src / "model-00003-of-00003.safetensors").unlink()
    refused(src, FormatError, "model-00003-of-00003.safetensors")


def test_pickled_weights_need_consent(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1)
    (src / "model.safetensors").rename(src / "pytorch_model.bin")
    refused(src, InputError, "--allow-pickle")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=JSON)
def test_any_damage_to_config_json_is_a_documented_error(base, data, value):
    """One key of one object gets any JSON value; the result is an error of bitconv's, or still a conversion."""
    config = json.loads((base / "intact.json").read_text())
    target = data.draw(st.sampled_from([config, config["quantization_config"], config["rope_parameters"]]))
    target[data.draw(st.sampled_from(sorted(target)))] = value
    (base / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(BitconvError), warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        assert bitconv.convert(base, base / "out.gguf", overwrite=True).n_tensors >= 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    src = make_checkpoint(
        tmp_path_factory.mktemp("fuzz") / "m", n_layers=1, hidden=128, ffn=128, rope_key="rope_parameters",
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 64},
    )  # fmt: skip
    (src / "config.json").rename(src / "intact.json")
    return src

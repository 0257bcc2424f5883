"""Conversion: what the GGUF file holds is what the checkpoint says, for every form, family and type."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import BitconvWarning, InputError
from bitconv.formats.gguf import GgufFile, open_gguf
from bitconv.formats.vocabulary import read_vocabulary
from bitconv.models import read_gguf
from bitconv.pipeline.plan import rotary_rows
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.ternary import unpack_hf
from tests.checkpoints import FAMILIES, FORMS, make_checkpoint, read_tensors, stored, widened, write_checkpoint
from tests.paths import REPOSITORY, SHARED

ROLES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}  # fmt: skip
NORMS = {"attn_norm": ("input_layernorm",), "ffn_norm": ("post_attention_layernorm",),
         "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
         "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm")}  # fmt: skip
COMBINATIONS = [
    (family, form) for family in FAMILIES for form in FORMS if (family, form) != ("llama", "master")
]


def expected_linear(path: Path, form: str, hf_name: str) -> tuple[np.ndarray, np.float32]:
    """Trits and multiplier of one linear, from the definition of each form and nothing of the package's plan."""
    tensors = read_tensors(path)
    weight = tensors[f"{hf_name}.weight"]
    if form.startswith("packed"):
        scale = widened(tensors[f"{hf_name}.weight_scale"])[0]
        packed = weight[1]
        trits = unpack_hf(packed, 4 * len(packed))
        return trits, scale if form == "packed_autobitlinear" else np.float32(1) / scale
    values = widened(weight)
    if form == "dequantised":
        return np.sign(values).astype(np.int8), np.abs(values).max()
    a = np.float32(np.abs(values).astype(np.float64).sum() / values.size)
    s = np.float32(1) / a
    return np.clip(np.rint(values * s), -1, 1).astype(np.int8), np.float32(1) / s


def head_pairs(trits: np.ndarray, head_dim: int) -> np.ndarray:
    """Row 2i + j of a head is row j * D/2 + i of the checkpoint, written as plainly as can be."""
    result = np.empty_like(trits)
    for row in range(len(trits)):
        head, k = divmod(row, head_dim)
        result[row] = trits[head * head_dim + (k % 2) * (head_dim // 2) + k // 2]
    return result


def linear(gguf: GgufFile, name: str) -> tuple[np.ndarray, float]:
    info = gguf.tensors[name]
    trits, multiplier = tensor_type(info.type_id).unpack(gguf.data(name), *info.shape)
    return trits, multiplier


def dense(gguf: GgufFile, name: str) -> np.ndarray:
    info = gguf.tensors[name]
    rows = 1 if len(info.shape) == 1 else info.shape[0]
    return tensor_type(info.type_id).unpack(gguf.data(name), rows, info.shape[-1]).reshape(info.shape)


def quietly(src: Path, out: Path | None = None, **options: Any) -> bitconv.ConvertReport:
    """Convert, with any warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", BitconvWarning)
        return bitconv.convert(src, out, **options)


@pytest.mark.parametrize(("family", "form"), COMBINATIONS)
@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 3), ("float16", 1)])
def test_every_form_of_every_family_becomes_its_trits_and_multiplier(tmp_path, family, form, dtype, shards):
    if form == "dequantised" and family != "llama":
        form = "online"  # without quantization_config a BitNet checkpoint is online; see the test below
    options = {"head_dim": 32, "n_heads": 12, "hidden": 128} if family == "llama" else {"head_dim": 64}
    src = make_checkpoint(tmp_path / "m", family=family, form=form, dtype=dtype, shards=shards, **options)
    report = quietly(src, tmp_path, embedding_type="f32")
    assert report.path == tmp_path / "m-i2_s.gguf"
    with open_gguf(report.path) as gguf:
        hp = read_gguf(gguf)
        assert hp.n_layers == 3 and hp.activation == ("relu2" if family == "bitnet" else "silu")
        for layer in range(3):
            for role, hf_role in ROLES.items():
                expected, multiplier = expected_linear(src, form, f"model.layers.{layer}.{hf_role}")
                if family == "llama" and role in ("attn_q", "attn_k"):
                    expected = head_pairs(expected, 32)
                found, scale = linear(gguf, f"blk.{layer}.{role}.weight")
                assert np.array_equal(found, expected), role
                assert scale == multiplier, role
        check_dense(gguf, src, hp)


def check_dense(gguf: GgufFile, src: Path, hp: Any) -> None:
    tensors = read_tensors(src)
    pairs = {"token_embd.weight": ("model.embed_tokens",), "output_norm.weight": ("model.norm",)}
    if not hp.tied_head:
        pairs["output.weight"] = ("lm_head",)
    for layer in range(hp.n_layers):
        for role, spellings in NORMS.items():
            if hp.sub_norms or "sub" not in role:
                names = tuple(f"model.layers.{layer}.{spelling}" for spelling in spellings)
                pairs[f"blk.{layer}.{role}.weight"] = names
    for name, spellings in pairs.items():
        source = next(tensors[f"{one}.weight"] for one in spellings if f"{one}.weight" in tensors)
        assert gguf.tensors[name].type_name == "F32"
        assert np.array_equal(dense(gguf, name), widened(source)), name
    assert len(pairs) + 7 * hp.n_layers == len(gguf.tensors)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", dtype="bfloat16")
    first = quietly(src, tmp_path / "a.gguf").path.read_bytes()
    assert quietly(src, tmp_path / "b.gguf").path.read_bytes() == first
    sharded = make_checkpoint(tmp_path / "n" / "m", form="online", dtype="bfloat16", shards=3)
    assert quietly(sharded, tmp_path / "c.gguf").path.read_bytes() == first


@pytest.mark.parametrize("chunk", [1, 1000, 20000])
def test_the_size_of_pieces_changes_nothing(tmp_path, monkeypatch, chunk):
    for form in ("online", "packed_bitlinear"):
        src = make_checkpoint(tmp_path / form, family="llama", form=form, n_layers=1)
        whole = quietly(src, tmp_path / "a.gguf", overwrite=True).path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("bitconv.pipeline.linears.CHUNK_WEIGHTS", chunk)
            assert quietly(src, tmp_path / "b.gguf", overwrite=True).path.read_bytes() == whole


@settings(max_examples=50, deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 9), cols=st.integers(1, 3))
def test_rotary_rows_pair_the_halves_of_each_head(heads, half, cols):
    rows = heads * 2 * half
    matrix = np.arange(rows * cols).reshape(rows, cols)
    assert np.array_equal(rotary_rows(matrix, 2 * half), head_pairs(matrix, 2 * half))


def test_dividing_and_multiplying_scales_are_told_apart(tmp_path):
    """The trap: the same bytes mean 1 / weight_scale or weight_scale, by linear_class alone."""
    multipliers = {}
    for form in ("packed_bitlinear", "packed_autobitlinear"):
        src = make_checkpoint(tmp_path / form, family="llama", form=form, n_layers=1)
        tensors = dict(read_tensors(src))
        for name in tensors:
            if name.endswith("weight_scale"):
                tensors[name] = stored(np.array([40.0], np.float32), "bfloat16")
        write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
        multipliers[form] = {row.multiplier for row in quietly(src, tmp_path / f"{form}.gguf").tensors}
    assert multipliers["packed_bitlinear"] == {None, float(np.float32(1) / np.float32(40))}
    assert multipliers["packed_autobitlinear"] == {None, 40.0}


def test_offline_weights_saved_as_floats_are_read(tmp_path):
    """An AutoBitLinear runs from -1.0, 0.0 and 1.0 as well as from packed bytes; weight_scale multiplies both."""
    src = make_checkpoint(tmp_path / "m", form="packed_autobitlinear", n_layers=1)
    packed = quietly(src, tmp_path / "a.gguf").path.read_bytes()
    tensors = dict(read_tensors(src))
    for name, (code, array) in tensors.items():
        if code == "U8":
            tensors[name] = stored(unpack_hf(array, 4 * len(array)).astype(np.float32), "bfloat16")
    write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
    assert quietly(src, tmp_path / "b.gguf").path.read_bytes() == packed


def test_rows_that_do_not_fill_packed_bytes_are_cut(tmp_path):
    """386 rows are packed as 4 x 97; the last two of them are no weights."""
    src = make_checkpoint(tmp_path / "m", family="llama", form="packed_bitlinear", n_layers=1, ffn=386)
    with open_gguf(quietly(src, type="f32").path) as gguf:
        trits, a = expected_linear(src, "packed_bitlinear", "model.layers.0.mlp.up_proj")
        assert trits.shape == (388, 256)
        assert np.array_equal(dense(gguf, "blk.0.ffn_up.weight"), trits[:386] * a)


def test_dense_output_holds_the_dequantised_values_and_says_so(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="packed_autobitlinear", dtype="bfloat16")  # bf16 fits all three
    for kind, file_type in (("f32", 0), ("f16", 1), ("bf16", 32)):
        report = quietly(src, tmp_path / f"{kind}.gguf", type=kind)
        with open_gguf(report.path) as gguf:
            assert gguf.get("bitconv.activation_bits", int) == 8
            assert gguf.get("general.file_type", int) == file_type
            assert "bitconv.i2_s.layout" not in gguf.metadata
            for layer, (role, hf_role) in enumerate(list(ROLES.items())[:3]):
                trits, a = expected_linear(src, "packed_autobitlinear", f"model.layers.{layer}.{hf_role}")
                assert gguf.tensors[f"blk.{layer}.{role}.weight"].type_name == kind.upper()
                assert np.array_equal(dense(gguf, f"blk.{layer}.{role}.weight"), trits * a)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_multiplier_that_is_rounded_is_one_warning(tmp_path, kind):
    src = make_checkpoint(tmp_path / "m", form="online", dtype="float32")
    with pytest.warns(BitconvWarning, match=f"{kind.upper()} rounds the multiplier of 21 tensors") as caught:
        report = bitconv.convert(src, tmp_path / "m.gguf", type=kind)
    assert len(caught) == 1 and report.warnings == (str(caught[0].message),)


def test_embedding_and_head_have_types_of_their_own(tmp_path):
    src = make_checkpoint(tmp_path / "m", family="llama", form="packed_bitlinear", n_layers=1)
    for options, expected in (
        ({}, ("F16", "F16")),
        ({"embedding_type": "bf16"}, ("BF16", "BF16")),
        ({"embedding_type": "f16", "output_type": "f32"}, ("F16", "F32")),
    ):
        report = quietly(src, tmp_path / "m.gguf", overwrite=True, **options)
        types = {row.name: row.type for row in report.tensors}
        assert (types["token_embd.weight"], types["output.weight"]) == expected
        assert types["output_norm.weight"] == types["blk.0.attn_norm.weight"] == "F32"
    source = widened(read_tensors(src)["model.embed_tokens.weight"])
    with open_gguf(report.path) as gguf:
        assert np.array_equal(dense(gguf, "token_embd.weight"), source.astype(np.float16).astype(np.float32))
        assert np.array_equal(dense(gguf, "output.weight"), widened(read_tensors(src)["lm_head.weight"]))


def test_metadata_names_everything_a_runtime_needs(tmp_path):
    src = make_checkpoint(
        tmp_path / "model", family="llama", form="packed_bitlinear", head_dim=20, n_heads=32, n_kv_heads=32,
        hidden=640, ffn=128, n_layers=1, vocab=300, rope_theta=123456.0, rms_eps=3e-6, context=77,
    )  # fmt: skip
    with open_gguf(quietly(src).path) as gguf:
        expected = {
            "general.architecture": ("llama", "str"), "general.type": ("model", "str"),
            "general.name": ("model", "str"), "general.quantization_version": (2, "u32"),
            "general.file_type": (40, "u32"), "llama.vocab_size": (300, "u32"),
            "llama.context_length": (77, "u32"), "llama.embedding_length": (640, "u32"),
            "llama.block_count": (1, "u32"), "llama.feed_forward_length": (128, "u32"),
            "llama.rope.dimension_count": (20, "u32"), "llama.attention.head_count": (32, "u32"),
            "llama.attention.head_count_kv": (32, "u32"), "llama.attention.key_length": (20, "u32"),
            "llama.attention.value_length": (20, "u32"), "llama.rope.freq_base": (123456.0, "f32"),
            "llama.attention.layer_norm_rms_epsilon": (float(np.float32(3e-6)), "f32"),
            "llama.hidden_activation": ("silu", "str"), "bitconv.version": (bitconv.__version__, "str"),
            "bitconv.i2_s.layout": ("x86-128", "str"), "bitconv.tokenizer_json_is_expressed": (True, "bool"),
        }  # fmt: skip
        found = {key: (gguf.metadata[key], gguf.metadata_types[key]) for key in expected}
        assert found == expected
        assert all(key in expected or key.startswith("tokenizer.") for key in gguf.metadata)
        assert len(read_vocabulary(gguf)) == 300


def test_llama3_scaling_becomes_a_tensor(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    src = make_checkpoint(tmp_path / "m", family="llama", form="packed_bitlinear", rope_scaling=scaling, n_layers=1)
    with open_gguf(quietly(src).path) as gguf:
        factors = read_gguf(gguf).rope_factors
        assert factors is not None and factors[0] == 1 and factors[-1] == 8
        assert gguf.tensors["rope_freqs.weight"].type_name == "F32"


def test_an_untied_silu_model_with_sub_norms_is_one_warning(tmp_path):
    src = make_checkpoint(tmp_path / "m", family="bitnet_silu", tied=False, n_layers=1)
    with pytest.warns(BitconvWarning, match="other runtimes ignore the head") as caught:
        report = bitconv.convert(src)
    assert len(caught) == 1 and report.warnings == (str(caught[0].message),)
    with open_gguf(report.path) as gguf:
        hp = read_gguf(gguf)
        assert (hp.arch, hp.activation, hp.tied_head) == ("bitnet-b1.58", "silu", False)


def test_a_tied_checkpoint_that_holds_its_head_too(tmp_path):
    """The head is never written; one that differs from the embedding is a warning."""
    src = make_checkpoint(tmp_path / "m", n_layers=1)
    tensors = dict(read_tensors(src))
    config = json.loads((src / "config.json").read_text())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(src, config, tensors)
    assert "output.weight" not in {row.name for row in quietly(src, tmp_path / "a.gguf").tensors}
    code, array = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = code, array + 1
    write_checkpoint(src, config, tensors)
    with pytest.warns(BitconvWarning, match="lm_head.weight differs from the embedding"):
        report = bitconv.convert(src, tmp_path / "b.gguf")
    assert report.path.read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_ternary_masters_of_a_bitnet_model_are_ternarised_again_as_the_reference_does(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="dequantised", n_layers=1)
    with pytest.warns(BitconvWarning, match=r"7 linears.* hold \{-a, 0, \+a\} already"):
        report = bitconv.convert(src)
    values = widened(read_tensors(src)["model.layers.0.mlp.up_proj.weight"])
    row = next(row for row in report.tensors if row.name == "blk.0.ffn_up.weight")
    assert row.multiplier == pytest.approx(np.abs(values).mean(dtype=np.float64), rel=2**-22)  # three roundings
    assert row.density == np.count_nonzero(values) / values.size


def test_unused_rotary_tables_are_skipped(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1)
    tensors = dict(read_tensors(src))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = stored(np.ones(32, np.float32), "float32")
    write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
    assert quietly(src).n_tensors == 3 + 10


def test_the_report_and_the_progress_add_up(tmp_path):
    for form, passes in (("packed_autobitlinear", 1), ("online", 2)):
        calls: list[tuple[int, int]] = []
        src = make_checkpoint(tmp_path / form, form=form, config={"use_cache": True, "made_up": 1})
        report = quietly(src, progress=lambda done, total, calls=calls: calls.append((done, total)))
        tensors = read_tensors(src)
        assert report.bytes_in == sum(array.nbytes for _, array in tensors.values())
        assert report.bytes_out == report.path.stat().st_size and report.seconds > 0
        assert {"use_cache", "made_up", "model_type"} <= set(report.ignored_keys)
        assert "hidden_act" not in report.ignored_keys
        assert report.type == "I2_S" and report.n_tensors == len(report.tensors) and not report.warnings
        linears = [row for row in report.tensors if row.multiplier is not None]
        assert len(linears) == 21 and all(row.density and 0.6 < row.density < 0.75 for row in linears)
        done = [call[0] for call in calls]
        read = sum(array.nbytes * (passes if "proj" in name else 1) for name, (_, array) in tensors.items()
                   if "scale" not in name)  # fmt: skip
        assert done == sorted(done) and calls[-1] == (read, read)


def test_output_goes_where_it_should(tmp_path, monkeypatch):
    src = make_checkpoint(tmp_path / "model.v1", n_layers=1)
    assert quietly(src).path == src / "model.v1-i2_s.gguf"
    assert quietly(src, type="F32", threads=1).path == src / "model.v1-f32.gguf"
    assert quietly(src, tmp_path).path == tmp_path / "model.v1-i2_s.gguf"
    assert quietly(src, tmp_path / "x.gguf").path == tmp_path / "x.gguf"
    monkeypatch.chdir(src)
    assert quietly(Path("."), "y.gguf").path == Path("y.gguf")
    with open_gguf("y.gguf") as gguf:
        assert gguf.metadata["general.name"] == "model.v1"


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1)
    out = tmp_path / "out.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        bitconv.convert(src, out)
    assert out.read_bytes() == b"precious"
    assert quietly(src, out, overwrite=True).bytes_out == out.stat().st_size > 1000


def test_tokenizer_json_is_kept_unless_asked_not_to(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1)
    key = "tokenizer.huggingface.json"
    with open_gguf(quietly(src).path) as gguf:
        assert json.loads(gguf.metadata[key]) == json.loads((src / "tokenizer.json").read_text())
    with open_gguf(quietly(src, tmp_path, hf_tokenizer=False).path) as gguf:
        assert key not in gguf.metadata


@pytest.mark.parametrize("name", ["tiny_bitnet_e2e", "tiny_llama_e2e"])
def test_reference_models_convert_exactly(tmp_path, name):
    """Packed, both scale directions: trits equal, multipliers equal to the last bit."""
    if SHARED is None:
        pytest.skip("reference vectors are not beside the checkout")
    vector = np.load(SHARED / f"spec/vectors/{name}.npz")
    config = json.loads((SHARED / f"spec/vectors/{name}.config.json").read_text())
    bitnet = "bitnet" in name
    config["architectures"] = ["BitNetForCausalLM" if bitnet else "LlamaForCausalLM"]
    config["quantization_config"] = {"quant_method": "bitnet"} | ({"linear_class": "autobitlinear"} if bitnet else {})
    tensors = {}
    for key in vector.files:
        if key.endswith(".packed_u8"):
            tensors[key.removesuffix(".packed_u8")] = "U8", vector[key]
        elif key.endswith((".weight", ".weight_scale")):
            tensors[key] = "F32", vector[key]
    report = quietly(write_checkpoint(tmp_path / name, config, tensors))
    with open_gguf(report.path) as gguf:
        for layer in range(2):
            for role, hf_role in ROLES.items():
                hf_name = f"model.layers.{layer}.{hf_role}.weight"
                expected, scale = vector[f"{hf_name}.ternary"], vector[f"{hf_name}_scale"][0]
                if not bitnet and role in ("attn_q", "attn_k"):
                    expected = head_pairs(expected, 32)
                trits, multiplier = linear(gguf, f"blk.{layer}.{role}.weight")
                assert np.array_equal(trits, expected)
                assert multiplier == (scale if bitnet else np.float32(1) / scale)


def test_conversion_imports_no_torch(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1, form="online")
    code = f"import sys, bitconv; bitconv.convert({str(src)!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)


@pytest.mark.parametrize("family", ["bitnet", "llama"])
@pytest.mark.parametrize("form", ["online", "packed_bitlinear"])
def test_what_transformers_saves_converts_to_the_same_bytes(tmp_path, family, form):
    """transformers 5 moves theta to rope_parameters and adds its own keys to config.json."""
    transformers = pytest.importorskip("transformers")
    src = make_checkpoint(tmp_path / "a" / "m", family=family, form=form, n_layers=1, rope_theta=7e4)
    model = transformers.AutoModelForCausalLM.from_pretrained(src, dtype="float32")
    saved = tmp_path / "b" / "m"
    model.save_pretrained(saved)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).write_bytes((src / name).read_bytes())
    assert "rope_theta" not in json.loads((saved / "config.json").read_text())
    assert quietly(saved).path.read_bytes() == quietly(src).path.read_bytes()


def test_pickled_checkpoints_convert_to_the_same_bytes(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    src = make_checkpoint(tmp_path / "m", form="online", dtype="bfloat16", n_layers=1)
    expected = quietly(src, tmp_path / "a.gguf").path.read_bytes()
    torch.save(load_file(src / "model.safetensors"), src / "pytorch_model.bin")
    (src / "model.safetensors").unlink()
    assert quietly(src, tmp_path / "b.gguf", allow_pickle=True).path.read_bytes() == expected


@pytest.mark.slow
def test_memory_stays_bounded_by_one_tensor(tmp_path):
    """61 MB of embedding and 100 MB of masters, converted by a process that never has 100 MB."""
    src = make_checkpoint(
        tmp_path / "m", form="online", dtype="bfloat16", hidden=1024, ffn=4096, n_heads=8, n_kv_heads=8,
        vocab=30000, n_layers=3,
    )  # fmt: skip
    code = (
        f"import bitconv; report = bitconv.convert({str(src)!r})\n"
        "status = open('/proc/self/status').read()  # unlike ru_maxrss, not inherited from the parent\n"
        "print(report.bytes_in, int(status.split('VmHWM:')[1].split()[0]) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    bytes_in, peak = map(int, done.stdout.split())
    assert bytes_in > 150e6 and peak < 100e6

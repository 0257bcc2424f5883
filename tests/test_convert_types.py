"""Conversion to every tensor type: exact, with fallbacks, companion scales and tiles, on any number of threads."""

from __future__ import annotations

import json
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats.gguf import open_gguf
from bitconv.models import LINEARS
from bitconv.pipeline import linear_job
from bitconv.pipeline.choice import choose, choose_dense, file_type, layout_metadata, stored_scale
from bitconv.pipeline.linears import chunk_bounds
from bitconv.pipeline.native import Rounding, Survey
from bitconv.pipeline.workers import Progress, Stopped, Task, in_order
from bitconv.tensor_types import tensor_type, tensor_types
from bitconv.tensor_types.stored import StoredTernary
from bitconv.tensor_types.ternary import MASTER_DTYPES, WeightStatistics, absmean_rounding, signs, storage_dtype
from bitconv.tensor_types.tiles import Tile, default_tile, illegal_tile, parse_tiles
from tests.checkpoints import make_checkpoint, read_tensors, stored, widened, write_checkpoint
from tests.test_convert import expected_linear, head_pairs, quietly

TERNARY = [kind.name for kind in tensor_types() if kind.ternary]
DENSE = ["F32", "F16", "BF16"]
HF = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
      "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
      "ffn_down": "mlp.down_proj"}  # fmt: skip


def ternary_tensors(path: Path) -> dict[str, tuple[str, np.ndarray, float]]:
    """Type, trits and whole multiplier of every ternary tensor of a file."""
    with open_gguf(path) as gguf:
        reader = StoredTernary(gguf)
        names = [info.name for info in gguf.tensors.values() if info.type_name in TERNARY]
        return {
            name: (one.type.name, one.unpack(*gguf.tensors[name].shape), one.scale)
            for name in names
            for one in [reader.read(name)]
        }


def check_exact(path: Path, src: Path, form: str, head_dim: int = 0) -> None:
    found = ternary_tensors(path)
    layers = sum(name.endswith("attn_q.weight") for name in found)
    assert len(found) == 7 * layers > 0
    for name, (_, trits, scale) in found.items():
        _, layer, role, _ = name.split(".")
        expected, multiplier = expected_linear(src, form, f"model.layers.{layer}.{HF[role]}")
        if head_dim and role in ("attn_q", "attn_k"):
            expected = head_pairs(expected, head_dim)
        assert np.array_equal(trits, expected[: len(trits)]), name
        assert scale == multiplier, name


# every type from every form --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERNARY)
@pytest.mark.parametrize("form", ["packed_bitlinear", "packed_autobitlinear", "online", "dequantised"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_type_holds_the_trits_and_multipliers_of_the_checkpoint(tmp_path, kind, form, dtype):
    family = "llama" if form == "dequantised" or dtype == "float16" else "bitnet"
    shape = {"hidden": 256, "ffn": 768, "n_heads": 8, "n_kv_heads": 4, "head_dim": 64 if family == "llama" else None}
    if shape["head_dim"] is None:
        shape |= {"n_heads": 4, "n_kv_heads": 2}
    src = make_checkpoint(tmp_path / "m", family=family, form=form, dtype=dtype, n_layers=2, shards=2, **shape)
    report = quietly(src, type=kind.lower())
    assert report.type == kind and {row.type for row in report.tensors} <= {kind, "F16", "F32"}
    check_exact(report.path, src, form, 64 if family == "llama" else 0)
    with open_gguf(report.path) as gguf:
        assert gguf.metadata["general.file_type"] == tensor_type(kind).file_type


@pytest.mark.parametrize("kind", [*TERNARY, *DENSE])
@pytest.mark.parametrize("form", ["online", "packed_bitlinear"])
def test_threads_and_the_size_of_pieces_change_no_byte(tmp_path, monkeypatch, kind, form):
    src = make_checkpoint(tmp_path / "m", family="llama", form=form, dtype="bfloat16", n_layers=2, ffn=512)
    expected = None
    for threads, chunk, part, held in ((1, 19, 23, 40), (2, 12, 14, 0), (3, 10, 13, 0), (5, 14, 40, 40), (2, 4, 4, 0)):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", BitconvWarning)  # F16 and BF16 round multipliers, and say so
            patch.setattr("bitconv.pipeline.linears.CHUNK_WEIGHTS", 1 << chunk)
            patch.setattr(linear_job, "PART_WEIGHTS", 1 << part)
            patch.setattr(linear_job, "HELD_BYTES", held << 20)
            path = bitconv.convert(src, tmp_path / f"{threads}.gguf", type=kind.lower(), threads=threads).path
        data = path.read_bytes()
        path.unlink()
        assert expected is None or data == expected
        expected = data


@pytest.mark.parametrize("kind", ["TL2", "TQ1_0", "I2_S"])
def test_types_without_packing_kernels_are_packed_by_numpy_to_the_same_bytes(tmp_path, monkeypatch, kind):
    for form in ("online", "packed_bitlinear"):
        src = make_checkpoint(tmp_path / form, family="llama", form=form, n_layers=1, ffn=512)
        native = quietly(src, tmp_path / "a.gguf", type=kind, overwrite=True).path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("bitconv.pipeline.native.can_pack", lambda kind: False)
            patch.setattr("bitconv.pipeline.linear_job.can_pack", lambda kind: False)
            assert quietly(src, tmp_path / "b.gguf", type=kind, overwrite=True).path.read_bytes() == native


def test_the_file_is_the_same_without_avx2(tmp_path, monkeypatch):
    from bitconv.pipeline import native

    src = make_checkpoint(tmp_path / "m", form="online", dtype="bfloat16", n_layers=1)
    fast = quietly(src, tmp_path / "a.gguf", type="tl2").path.read_bytes()
    native._packer.cache_clear()
    monkeypatch.setenv("BITCONV_ISA", "scalar")
    try:
        assert native._packer() == "plain"
        assert quietly(src, tmp_path / "b.gguf", type="tl2").path.read_bytes() == fast
    finally:
        native._packer.cache_clear()


# rounding --------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(dtype=st.sampled_from(MASTER_DTYPES), bits=st.integers(1, 0x7F7FFFFF), near=st.integers(-3, 3), data=st.data())
def test_the_threshold_is_where_rounding_starts(dtype, bits, near, data):
    """Any scale that absmean can give; the two magnitudes around the threshold, and any other."""
    mean = max(np.uint32(bits).view(np.float32), np.float32(1e-5))
    scale = np.float32(1) / mean
    rounding = Rounding(dtype, scale)
    width = np.uint32 if dtype == "F32" else np.uint16
    infinity = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype]
    for magnitude in (rounding.threshold + near, data.draw(st.integers(0, infinity - 1))):
        if 0 <= magnitude < infinity:
            stored_weight = np.array([magnitude], width).view(storage_dtype(dtype))
            with np.errstate(over="ignore"):
                trit = absmean_rounding(dtype, scale)(stored_weight)[0]
            assert trit == (magnitude >= rounding.threshold)
    assert Rounding(dtype, None).threshold == 1
    assert signs(dtype)(np.array([1], width).view(storage_dtype(dtype)))[0] == 1


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(MASTER_DTYPES), seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 3000), max_size=4),
)  # fmt: skip
def test_a_survey_in_pieces_is_the_statistics_of_the_whole(dtype, seed, cuts):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(3000) * 2.0 ** rng.integers(-60, 60, 3000)).astype(np.float32)
    values[rng.random(3000) < 0.2] = 0
    name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    with np.errstate(over="ignore"):
        _, storage = stored(np.clip(values, -6e4, 6e4) if dtype == "F16" else values, name)
    survey, statistics = Survey(dtype), WeightStatistics(dtype)
    statistics.add(storage)
    for piece in rng.permutation(np.array(np.split(storage, sorted(cuts)), object)) if cuts else [storage]:
        survey.add(np.asarray(piece, storage.dtype))
    for key in ("n", "largest", "smallest"):
        assert getattr(survey, key) == getattr(statistics, key)
    assert survey.magnitude_sum() == statistics.magnitude_sum()


# fallback --------------------------------------------------------------------------------------------------------


def layout_of_3b(tmp_path: Path, **options: Any) -> Path:
    """A model whose ffn_down has columns that I2_S cannot hold, as bitnet_b1_58-3B; 320 = 64 mod 128."""
    shape = {"n_layers": 2, "hidden": 256, "ffn": 320} | options
    return make_checkpoint(tmp_path / "m", family="bitnet_silu", form="master", **shape)


def test_what_i2_s_cannot_hold_becomes_tl2_exactly_with_a_line_for_each(tmp_path):
    src = layout_of_3b(tmp_path)
    with pytest.warns(BitconvWarning) as caught:
        report = bitconv.convert(src)
    lines = [str(one.message) for one in caught]
    assert lines == list(report.warnings) and len(lines) == 2
    for layer, line in enumerate(lines):
        assert line == (
            f"blk.{layer}.ffn_down.weight [256, 320] is written as TL2: "
            "I2_S needs a multiple of 128 columns and K = 320 is none"
        )
    found = ternary_tensors(report.path)
    assert {name for name, (kind, _, _) in found.items() if kind == "TL2"} == {
        f"blk.{layer}.ffn_down.weight" for layer in (0, 1)
    }
    check_exact(report.path, src, "online")
    with open_gguf(report.path) as gguf:
        assert gguf.metadata["bitconv.tl2.config"] == "256,320,128,96"
        assert gguf.metadata["bitconv.i2_s.layout"] == "x86-128"
        assert gguf.metadata["general.file_type"] == 40


@pytest.mark.slow
def test_a_layer_of_bitnet_b1_58_3b_becomes_i2_s_exactly(tmp_path):
    """Its real shapes; ffn_down has 8640 columns, which I2_S cannot hold, and no matrix fits TQ."""
    sizes = {"hidden": 3200, "ffn": 8640, "n_heads": 32, "n_kv_heads": 32, "vocab": 400}
    src = layout_of_3b(tmp_path, n_layers=1, dtype="bfloat16", **sizes)
    with pytest.warns(BitconvWarning) as caught:
        report = bitconv.convert(src)
    reason = "I2_S needs a multiple of 128 columns and K = 8640 is none"
    assert [str(one.message) for one in caught] == [f"blk.0.ffn_down.weight [3200, 8640] is written as TL2: {reason}"]
    assert bitconv.verify(report.path, src).ok
    kinds = {name: kind for name, (kind, _, _) in ternary_tensors(report.path).items()}
    assert kinds.pop("blk.0.ffn_down.weight") == "TL2" and set(kinds.values()) == {"I2_S"}
    expected = bitconv.load(report.path).logits([1, 2, 3])
    for kind in ("tl1", "tl2", "tq1_0"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BitconvWarning)  # of the fallbacks
            other = bitconv.quantize(report.path, tmp_path / f"{kind}.gguf", type=kind)
        assert bitconv.verify(other.path, report.path).ok
        assert np.array_equal(bitconv.load(other.path).logits([1, 2, 3]), expected)


def test_a_fallback_that_may_not_be_is_an_error_that_names_the_way_out(tmp_path):
    src = layout_of_3b(tmp_path)
    for options, hint in (({"fallback": "error"}, "--fallback tl2"), ({"fallback": "i2_s"}, "--fallback tl2")):
        with pytest.raises(UnsupportedError, match=r"ffn_down\.weight.*K = 320") as caught:
            bitconv.convert(src, **options)
        assert hint in str(caught.value)
    assert not list(src.glob("*.gguf*"))


def test_tq_falls_back_to_tl2_or_to_i2_s(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", n_layers=1, hidden=256, ffn=384)
    for fallback, other in (("tl2", "TL2"), ("i2_s", "I2_S")):
        with pytest.warns(BitconvWarning, match=f"ffn_down.weight .* is written as {other}: TQ2_0 needs"):
            report = bitconv.convert(src, type="tq2_0", fallback=fallback, overwrite=True)
        kinds = {name: kind for name, (kind, _, _) in ternary_tensors(report.path).items()}
        assert kinds["blk.0.ffn_down.weight"] == other and kinds["blk.0.ffn_up.weight"] == "TQ2_0"
        check_exact(report.path, src, "online")


def test_the_file_type_is_that_of_most_linears_where_none_has_the_wanted_one(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", n_layers=1, hidden=384, ffn=384, n_heads=6, n_kv_heads=6)
    with pytest.warns(BitconvWarning, match="is written as TL2"):
        report = bitconv.convert(src, type="tq1_0")
    with open_gguf(report.path) as gguf:
        assert gguf.metadata["general.file_type"] == 39
        assert {info.type_name for info in gguf.tensors.values()} == {"TL2", "F32", "F16"}
    assert file_type(tensor_type("tq1_0"), []) == 36


@settings(max_examples=300, deadline=None)
@given(
    wanted=st.sampled_from(TERNARY), rows=st.integers(1, 40), cols=st.integers(1, 40),
    unit=st.sampled_from([1, 16, 32, 64, 128, 256]), fallback=st.sampled_from(["tl2", "i2_s", "error"]),
)  # fmt: skip
def test_a_choice_is_legal_and_the_wanted_type_wherever_that_can_be(wanted, rows, cols, unit, fallback):
    kind, rows, cols = tensor_type(wanted), rows * unit, cols * unit
    order = {"tl2": ["TL2", "I2_S"], "i2_s": ["I2_S"], "error": []}[fallback]
    legal = [name for name in (wanted, *order) if tensor_type(name).illegal(rows, cols) is None]
    if not legal:
        with pytest.raises(UnsupportedError):
            choose(kind, rows, cols, fallback=fallback)
        return
    chosen = choose(kind, rows, cols, fallback=fallback)
    assert chosen.type.name == legal[0]
    if chosen.tile is not None:
        assert illegal_tile(chosen.type.name, rows, cols, chosen.tile) is None
    assert (chosen.tile is None) == (chosen.type.default_tile is None)


# tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["TL1", "TL2"])
def test_the_tiles_of_every_shape_are_in_the_metadata(tmp_path, kind):
    src = make_checkpoint(tmp_path / "m", form="online", n_layers=1, hidden=256, ffn=768)
    with open_gguf(quietly(src, type=kind).path) as gguf:
        key, other = (f"bitconv.{name}.config" for name in (("tl1", "tl2") if kind == "TL1" else ("tl2", "tl1")))
        assert other not in gguf.metadata and "bitconv.i2_s.layout" not in gguf.metadata
        tiles = parse_tiles(kind, gguf.metadata[key], key)
        shapes = {info.shape for info in gguf.tensors.values() if info.type_name == kind}
        assert tiles == {shape: default_tile(kind, *shape) for shape in shapes}
        assert list(tiles) == sorted(tiles) and " " not in gguf.metadata[key]


def test_other_tiles_than_the_default_are_written_when_asked_for(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", n_layers=1, hidden=256, ffn=768)
    spec = "tl1:768,256,64,32,64;256,768,256,256,32;tl2:256,256,64,192"
    with pytest.warns(BitconvWarning) as caught:
        report = bitconv.convert(src, type="tl1", kernel_config=spec)
    assert [str(one.message) for one in caught] == ["kernel config: no TL2 tensor has the shape [256, 256]"]
    with open_gguf(report.path) as gguf:
        expected = "128,256,128,64,32;256,256,128,64,32;256,768,256,256,32;768,256,64,32,64"
        assert gguf.metadata["bitconv.tl1.config"] == expected
    check_exact(report.path, src, "online")


def test_a_tile_that_cannot_be_is_refused_before_anything_is_read(tmp_path):
    for spec in ("tl1:768,256,48,32,32", "tl2:256,256,64", "i2_s:1,2", "tl2:256,256,64,96;256,256,128,96", ""):
        with pytest.raises(InputError):
            bitconv.convert(tmp_path / "nowhere", kernel_config=spec)


def test_the_keys_cannot_express_two_tiles_for_a_shape():
    tl1 = tensor_type("tl1")
    with pytest.raises(ValueError, match="different tiles"):
        layout_metadata([(tl1, 64, 64, Tile(32, 64)), (tl1, 64, 64, Tile(64, 64))])


# multipliers of TQ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_a_multiplier_that_float16_cannot_hold_is_stored_beside_the_tensor(tmp_path, kind):
    """One matrix with the multiplier 0.5, the others with what float32 masters happen to have."""
    src = make_checkpoint(tmp_path / "m", form="packed_autobitlinear", n_layers=1, hidden=256, ffn=512)
    tensors = dict(read_tensors(src))
    half = "model.layers.0.mlp.up_proj.weight_scale"
    tensors[half] = stored(np.array([0.5], np.float32), "float32")
    write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
    report = quietly(src, type=kind)
    check_exact(report.path, src, "packed_autobitlinear")
    with open_gguf(report.path) as gguf:
        scales = [name for name in gguf.tensors if name.endswith(".scale")]
        assert scales == [f"blk.0.{role}.scale" for role in LINEARS if role != "ffn_up"]
        names = list(gguf.tensors)
        for name in scales:
            assert gguf.tensors[name].type_name == "F32" and gguf.tensors[name].shape == (1,)
            assert names.index(name) == names.index(name.replace(".scale", ".weight")) + 1
    rows = {row.name: row for row in report.tensors}
    assert rows["blk.0.attn_q.scale"].source is None and rows["blk.0.ffn_up.weight"].multiplier == 0.5


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("form", ["online", "packed_bitlinear"])
def test_the_form_for_llama_cpp_rounds_multipliers_to_float16(tmp_path, kind, form):
    src = make_checkpoint(tmp_path / "m", form=form, n_layers=1, hidden=256, ffn=512)
    exact, rounded = (quietly(src, tmp_path / f"{one}.gguf", type=kind, tq_scale=one) for one in ("exact", "f16"))
    a, b = ternary_tensors(exact.path), ternary_tensors(rounded.path)
    assert list(a) == list(b)
    for name, (_, trits, scale) in a.items():
        assert np.array_equal(b[name][1], trits) and b[name][2] == float(np.float16(scale))
    assert not [row for row in rounded.tensors if row.name.endswith(".scale")]


def test_a_multiplier_that_float16_makes_zero_names_its_tensor(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="packed_autobitlinear", n_layers=1, ffn=512)
    tensors = dict(read_tensors(src))
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors[name] = stored(np.array([1e-9], np.float32), "float32")
    write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
    with pytest.raises(UnsupportedError, match=r"up_proj.*becomes 0 in float16; the exact form keeps it"):
        bitconv.convert(src, type="tq2_0", tq_scale="f16")
    assert not list(src.glob("*.gguf*"))
    check_exact(quietly(src, type="tq2_0").path, src, "packed_autobitlinear")


@given(scale=st.floats(2.0**-126, 2.0**127, width=32))
def test_what_is_stored_and_its_companion_make_the_multiplier(scale):
    for kind in map(tensor_type, TERNARY):
        packed, companion = stored_scale(kind, scale)
        assert packed == scale and (companion is None) == (kind.companion_scale(scale) is None)
        if companion is not None:
            assert companion == scale and float(np.float16(min(scale, 65504))) != scale


# embeddings and heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_embedding_and_head_hold_what_their_types_make_of_the_checkpoint(tmp_path, kind, dtype):
    src = make_checkpoint(tmp_path / "m", family="llama", n_layers=1, dtype=dtype)
    report = quietly(src, embedding_type=kind.lower(), output_type="q8_0")
    with open_gguf(report.path) as gguf:
        for name, wanted in (("token_embd.weight", kind), ("output.weight", "Q8_0")):
            hf_name = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}[name]
            assert gguf.tensors[name].type_name == wanted
            expected = tensor_type(wanted).pack(widened(read_tensors(src)[hf_name]))
            assert np.array_equal(gguf.data(name), expected)


def test_q6_k_falls_back_to_q8_0_in_one_line(tmp_path):
    src = make_checkpoint(tmp_path / "m", n_layers=1, hidden=384, n_heads=6, n_kv_heads=6, ffn=768)
    with pytest.warns(BitconvWarning) as caught:
        report = bitconv.convert(src, embedding_type="q6_k")
    assert [str(one.message) for one in caught] == [
        "token_embd.weight [301, 384] is written as Q8_0: Q6_K needs a multiple of 256 columns and K = 384 is none"
    ]
    assert next(row.type for row in report.tensors if row.name == "token_embd.weight") == "Q8_0"
    with pytest.raises(UnsupportedError, match="K = 40"):
        choose_dense(tensor_type("q6_k"), 10, 40)


# errors on other threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERNARY)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_in_the_order_of_the_file_is_the_one_that_is_told(tmp_path, kind, threads):
    src = make_checkpoint(tmp_path / "m", form="online", n_layers=2, ffn=512)
    tensors = dict(read_tensors(src))
    for layer, value in ((1, np.inf), (0, np.nan)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        code, weight = tensors[name]
        weight = weight.copy()
        weight[3, 4] = value
        tensors[name] = code, weight
    write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
    with pytest.raises(FormatError, match=r"layers\.0\.mlp\.up_proj\.weight: a weight is not finite"):
        bitconv.convert(src, type=kind, threads=threads)
    assert not list(src.glob("*.gguf*"))


@pytest.mark.parametrize("kind", TERNARY)
def test_code_3_names_its_place_in_every_type(tmp_path, kind):
    src = make_checkpoint(tmp_path / "m", n_layers=1, ffn=512)
    tensors = dict(read_tensors(src))
    name = "model.layers.0.mlp.gate_proj.weight"
    packed = tensors[name][1].copy()
    packed[5, 7] |= 3 << 4
    tensors[name] = "U8", packed
    write_checkpoint(src, json.loads((src / "config.json").read_text()), tensors)
    with pytest.raises(FormatError, match=rf"gate_proj\.weight: code 3 at row {2 * 128 + 5}, column 7"):
        bitconv.convert(src, type=kind)


def test_progress_is_told_on_the_calling_thread_only(tmp_path):
    src = make_checkpoint(tmp_path / "m", form="online", n_layers=1)
    seen = set()
    quietly(src, threads=3, progress=lambda done, total: seen.add(threading.get_ident()))
    assert seen == {threading.get_ident()}


# the threads themselves ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), threads=st.integers(1, 4), budget=st.integers(0, 50), seed=st.integers(0, 99))
def test_results_come_in_order_and_within_the_budget(n, threads, budget, seed):
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(0, 20, n)]
    started: list[int] = []

    def run(i: int) -> int:
        started.append(i)
        return i

    taken = 0
    tasks = (Task(partial(run, i), sizes[i]) for i in range(n))
    for i, result in enumerate(in_order(tasks, threads=threads, budget=budget, progress=Progress(0, None))):
        assert result == i
        ahead = sizes[i : max(started) + 1]
        assert sum(ahead) <= budget or len(ahead) == 1
        taken += 1
    assert taken == n and sorted(started) == list(range(n))


def test_a_closed_run_starts_nothing_more():
    started: list[int] = []
    progress = Progress(0, None)
    tasks = (Task(partial(started.append, i), 1) for i in range(100))
    results = in_order(tasks, threads=2, budget=3, progress=progress)
    next(results)
    results.close()
    assert len(started) <= 4
    with pytest.raises(Stopped):
        progress.count(1)


def test_pieces_cover_the_rows_in_whole_groups():
    for rows, cols, multiple in ((1, 1, 1), (320, 256, 32), (96, 1 << 21, 96), (1000, 3000, 7)):
        bounds = list(chunk_bounds(rows, cols, multiple))
        assert bounds[0][0] == 0 and bounds[-1][1] == rows
        assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:], strict=False))
        assert all(start % multiple == 0 for start, _ in bounds)

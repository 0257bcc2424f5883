"""Requantising: the same trits and multipliers in every type, all else carried over, nothing written on errors."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitconv
from bitconv.errors import BitconvWarning, FormatError, InputError, UnsupportedError
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.pipeline.inspect import inspect
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.stored import StoredTernary, companion_name, ternary_type
from bitconv.tensor_types.tiles import Tile
from tests import gguf_builder as gb
from tests.checkpoints import make_checkpoint
from tests.paths import SHARED
from tests.ternary_files import TERNARY, Tensor, arm64, packed, random_trits, scalar, write_tensors

pytestmark = pytest.mark.filterwarnings("ignore::bitconv.errors.BitconvWarning")

NAME = "blk.0.attn_q.weight"
ALL = (*TERNARY, "F32")


def quietly(*args: Any, **options: Any) -> bitconv.QuantizeReport:
    """bitconv.quantize without the warnings that the models of these tests deserve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        return bitconv.quantize(*args, **options)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random model in every type: multipliers beyond float16, and 384 columns, which TQ cannot hold."""
    folder = tmp_path_factory.mktemp("quantize")
    make_checkpoint(folder / "model", n_layers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        bitconv.convert(folder / "model", folder)
    found = {"I2_S": folder / "model-i2_s.gguf"}
    for kind in ALL[1:]:
        found[kind] = quietly(found["I2_S"], type=kind.lower()).path
    return found


def contents(path: Path) -> dict[str, tuple[np.ndarray, float]]:
    """Trits and multiplier of every ternary tensor."""
    with open_gguf(path) as gguf:
        ternary = StoredTernary(gguf)
        found = {}
        for info in gguf.tensors.values():
            if ternary_type(info) is not None:
                stored = ternary.read(info.name)
                found[info.name] = stored.unpack(*info.shape), stored.scale
        return found


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("target", ALL)
def test_every_type_leads_to_the_same_file(files: dict[str, Path], tmp_path: Path, source: str, target: str) -> None:
    report = quietly(files[source], tmp_path / "out.gguf", type=target.lower())
    assert report.path.read_bytes() == files[target].read_bytes()
    assert not list(tmp_path.glob("*.partial"))


OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "i2_s with TL2 in it": ({"family": "bitnet_silu", "form": "master", "ffn": 320}, {"type": "i2_s"}),
    "other tiles of tl1": ({}, {"type": "tl1", "kernel_config": "tl1:256,256,64,32,64"}),
    "other tiles of tl2": ({}, {"type": "tl2", "kernel_config": "tl2:256,256,32,192"}),
    "tq1_0 with I2_S in it": ({}, {"type": "tq1_0", "fallback": "i2_s"}),
    "tq2_0 for llama.cpp": ({"ffn": 512}, {"type": "tq2_0", "tq_scale": "f16"}),
    "tq2_0 with a head": ({"family": "llama", "ffn": 512}, {"type": "tq2_0", "output_type": "q8_0"}),
    "q6_k embedding": ({"family": "llama"}, {"type": "i2_s", "embedding_type": "q6_k"}),
    "f16": ({}, {"type": "f16"}),
    "bf16": ({"family": "llama"}, {"type": "bf16", "embedding_type": "f32"}),
}


@pytest.mark.parametrize("case", OWN)
def test_a_file_of_ours_in_its_own_type_is_the_same_file(tmp_path: Path, case: str) -> None:
    model, options = OWN[case]
    make_checkpoint(tmp_path / "model", n_layers=1, **model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        source = bitconv.convert(tmp_path / "model", tmp_path / "a.gguf", **options).path
    again = quietly(source, tmp_path / "b.gguf", type=options["type"], threads=3).path
    assert again.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", TERNARY)
def test_direct_conversion_gives_the_same_bytes(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        report = bitconv.convert(files["I2_S"].parent / "model", tmp_path / "out.gguf", type=kind.lower())
    assert report.path.read_bytes() == files[kind].read_bytes()


@pytest.mark.parametrize("kind", [*TERNARY[1:], "F32"])
def test_logits_are_those_of_the_source(files: dict[str, Path], kind: str) -> None:
    ids = [1, 7, 42, 300, 8]
    expected = bitconv.load(files["I2_S"], threads=1).logits(ids)
    np.testing.assert_array_equal(bitconv.load(files[kind], threads=1).logits(ids), expected)


@st.composite
def tensors_of_a_type(draw: st.DrawFn) -> tuple[str, np.ndarray, float, Tile | None]:
    kind = draw(st.sampled_from(TERNARY))
    rows = 32 * draw(st.integers(1, 6))
    cols = (256 if kind.startswith("TQ") else 128) * draw(st.integers(2, 4))
    density = draw(st.sampled_from([0.01, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    trits = (rng.choice([-1, 1], (rows, cols)) * (rng.random((rows, cols)) < density)).astype(np.int8)
    trits[0, 0] = 1
    scale = np.float32(draw(st.floats(2**-20, 2**20, width=32)))
    tile = None
    if kind == "TL1":
        step = draw(st.sampled_from([s for s in (32, 64) if rows % s == 0]))
        tile = Tile(draw(st.sampled_from([n for n in range(step, rows + 1, step) if rows % n == 0])), 64, step)
    elif kind == "TL2":
        heights = [n for n in range(32, rows + 1, 32) if rows % n == 0]
        widths = [n for n in range(24, 241, 24) if cols % n % 32 == 0 and n <= cols]
        tile = Tile(draw(st.sampled_from(heights)), draw(st.sampled_from(widths)))
    return kind, trits, float(scale), tile


@given(tensors_of_a_type(), st.sampled_from(TERNARY), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_matrix_survives_any_type(
    tmp_path_factory: pytest.TempPathFactory, tensor: tuple[str, np.ndarray, float, Tile | None], target: str, own: bool
) -> None:
    kind, trits, scale, tile = tensor
    folder = tmp_path_factory.mktemp("any")
    tensors = {NAME: packed(kind, trits, scale, tile)}
    companion = tensor_type(kind).companion_scale(scale)
    if companion is not None:
        tensors[companion_name(NAME)] = scalar(companion)
    config = None if tile is None else ",".join(map(str, (*trits.shape, *(tile if kind == "TL1" else tile[:2]))))
    keys = {f"bitconv.{kind.lower()}.config": config} if config else {}
    source = write_tensors(folder / "a.gguf", tensors, keys)
    target = kind if own else target
    report = quietly(source, folder / "b.gguf", type=target)
    ((back, multiplier),) = contents(report.path).values()
    np.testing.assert_array_equal(back, trits)
    assert multiplier == scale
    again = quietly(report.path, folder / "c.gguf", type=target, threads=3)
    assert again.path.read_bytes() == report.path.read_bytes()
    if own:
        with open_gguf(source) as one, open_gguf(report.path) as other:
            assert one.data(NAME).tobytes() == other.data(NAME).tobytes()


# what is carried over --------------------------------------------------------------------------------------------

KEYS: list[tuple[str, str, Any]] = [
    ("general.name", "str", "x"), ("a.u8", "u8", 200), ("a.i8", "i8", -5), ("a.u16", "u16", 60000),
    ("a.i16", "i16", -3), ("a.i32", "i32", -70000), ("a.f32", "f32", 0.1), ("a.bool", "bool", True),
    ("a.u64", "u64", 2**63), ("a.i64", "i64", -(2**62)), ("a.f64", "f64", 0.1), ("a.long", "str", "é" * 5000),
    ("a.words", "arr[str]", ["", "zwei", "\N{PARTY POPPER}"]), ("a.none", "arr[str]", []),
    ("a.floats", "arr[f32]", [0.5, -1.25]), ("a.flags", "arr[bool]", [True, False]), ("a.ints", "arr[i32]", [1, -1]),
    ("a.big", "arr[u64]", [2**63, 1]), ("bitconv.eog_token_ids", "arr[i32]", [3]),
]  # fmt: skip


def test_keys_are_carried_over_with_their_types_and_order(tmp_path: Path) -> None:
    kind, shape, data = packed("I2_S", random_trits(32, 256), 0.5)
    with GgufWriter(tmp_path / "a.gguf", "llama") as writer:
        writer.add("general.file_type", 40, "u32")
        for key, value_type, value in KEYS:
            writer.add(key, value, value_type)
        writer.add("bitconv.version", "0.0.1", "str")
        writer.add("bitconv.i2_s.layout", "x86-128", "str")
        writer.add("z.last", 1, "u32")
        writer.declare(NAME, shape, 36)
        writer.write(NAME, data)
        writer.finish()
    report = quietly(tmp_path / "a.gguf", tmp_path / "b.gguf", type="tl2")
    with open_gguf(tmp_path / "a.gguf") as a, open_gguf(report.path) as b:
        order = [key for key in a.metadata if key != "bitconv.i2_s.layout"]
        order.insert(order.index("z.last"), "bitconv.tl2.config")
        assert list(b.metadata) == order
        for key, value_type, _ in KEYS:
            assert b.metadata_types[key] == a.metadata_types[key] == value_type
            one, other = a.metadata[key], b.metadata[key]
            assert list(one) == list(other) if value_type.startswith("arr") else one == other
        assert b.metadata["general.file_type"] == 39
        assert b.metadata["bitconv.version"] == bitconv.__version__
        assert b.metadata["bitconv.tl2.config"] == "32,256,32,96"


def test_a_file_of_another_program_gets_our_keys_at_the_end(tmp_path: Path) -> None:
    tensors = {NAME: packed("I2_S", random_trits(32, 256), 0.5)}
    source = write_tensors(tmp_path / "a.gguf", tensors, {"general.name": "x"})
    with open_gguf(quietly(source, tmp_path / "b.gguf", type="i2_s").path) as gguf:
        own = ["general.file_type", "bitconv.version", "bitconv.i2_s.layout"]
        assert list(gguf.metadata) == ["general.architecture", "general.name", *own]


def test_only_unspecified_bytes_of_a_foreign_file_change(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"blk.0.attn_norm.weight": ("F16", (256,), np.full(512, 60, np.uint8))}
    for i, kind in enumerate(("I2_S", "TL1", "TL2", "TQ1_0", "TQ2_0")):
        data = packed(kind, random_trits(1536, 1536, i), 0.5)[2].copy()
        if not kind.startswith("TQ"):
            data[-28:] = 0xAB
        tensors[f"blk.{i}.attn_q.weight"] = kind, (1536, 1536), data
    source = write_tensors(tmp_path / "a.gguf", tensors)
    for kind in TERNARY:
        with open_gguf(quietly(source, tmp_path / f"{kind}.gguf", type=kind).path) as gguf:
            for name, (own, _, data) in tensors.items():
                if own in (kind, "F16"):
                    kept = len(data) - (28 if own in ("I2_S", "TL1", "TL2") else 0)
                    assert gguf.data(name)[:kept].tobytes() == data[:kept].tobytes()
                    assert not gguf.data(name)[kept:].any()


def test_another_alignment_becomes_that_of_the_format(tmp_path: Path) -> None:
    kind, shape, data = packed("I2_S", random_trits(4, 128), 0.5)
    raw = gb.Gguf(
        keys=[gb.key("general.architecture", "str", "llama"), gb.key("general.alignment", "u32", 128)],
        tensors=[gb.tensor(NAME, (128, 4), 36, 0), gb.tensor("blk.0.attn_k.weight", (128, 4), 36, 256)],
        data=data.tobytes() + bytes(256 - data.size) + data.tobytes(), alignment=128,
    ).build()  # fmt: skip
    (tmp_path / "a.gguf").write_bytes(raw)
    report = quietly(tmp_path / "a.gguf", tmp_path / "b.gguf", type="i2_s")
    with open_gguf(report.path) as gguf:
        assert "general.alignment" not in gguf.metadata
        assert gguf.data("blk.0.attn_k.weight").tobytes() == data.tobytes()


# embeddings, fallbacks, tiles, layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q6_K"])
def test_embedding_and_head_are_recoded(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    report = quietly(files["TL2"], tmp_path / "a.gguf", type="tl1", embedding_type=kind.lower())
    with open_gguf(files["TL2"]) as source, open_gguf(report.path) as gguf:
        info = source.tensors["token_embd.weight"]
        values = tensor_type("F16").unpack(source.data(info.name), *info.shape)
        assert gguf.tensors[info.name].type_name == kind
        assert gguf.data(info.name).tobytes() == tensor_type(kind).pack(values).tobytes()


def test_the_head_follows_the_embedding_unless_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    data = tensor_type("F32").pack(values)
    tensors = {"token_embd.weight": ("F32", (8, 64), data), "output.weight": ("F32", (8, 64), data)}
    source = write_tensors(tmp_path / "a.gguf", {**tensors, NAME: packed("I2_S", random_trits(32, 256), 0.5)})

    def types(**options: str) -> list[str]:
        report = quietly(source, tmp_path / "b.gguf", type="i2_s", overwrite=True, **options)
        return [tensor.type for tensor in report.tensors[:2]]

    assert types() == ["F32", "F32"]
    assert types(embedding_type="f16") == ["F16", "F16"]
    assert types(embedding_type="f16", output_type="bf16") == ["F16", "BF16"]
    assert types(output_type="q8_0") == ["F32", "Q8_0"]
    assert types(embedding_type="q6_k") == ["Q8_0", "Q8_0"]  # 64 columns have no Q6_K form
    with pytest.raises(UnsupportedError, match="cannot be I2_S"):
        types(embedding_type="i2_s")


def test_a_value_that_is_not_finite_is_named_when_recoded(tmp_path: Path) -> None:
    values = np.ones((8, 64), np.float32)
    values[3, 5] = np.inf
    tensors = {"token_embd.weight": ("F32", (8, 64), tensor_type("F32").pack(values))}
    source = write_tensors(tmp_path / "a.gguf", {**tensors, NAME: packed("I2_S", random_trits(4, 128), 0.5)})
    with pytest.raises(FormatError, match=r"token_embd.weight: value inf at \[3, 5\]"):
        bitconv.quantize(source, tmp_path / "b.gguf", type="i2_s", embedding_type="f16")


def test_a_fallback_is_one_warning_for_each_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.warns(BitconvWarning) as caught:
        report = bitconv.quantize(files["I2_S"], tmp_path / "a.gguf", type="tq1_0")
    down = [tensor for tensor in report.tensors if tensor.name.endswith("ffn_down.weight")]
    assert [tensor.type for tensor in down] == ["TL2", "TL2"]
    assert [str(w.message).split()[0] for w in caught] == [tensor.name for tensor in down]
    report = quietly(files["I2_S"], tmp_path / "b.gguf", type="tq1_0", fallback="i2_s")
    assert [t.type for t in report.tensors if t.name.endswith("ffn_down.weight")] == ["I2_S", "I2_S"]
    again = quietly(report.path, tmp_path / "c.gguf", type="tq1_0")
    assert again.path.read_bytes() == report.path.read_bytes(), "a file of the type keeps the fallback it has"
    with pytest.raises(UnsupportedError, match="ffn_down.*multiple of 256"):
        bitconv.quantize(files["I2_S"], tmp_path / "d.gguf", type="tq1_0", fallback="error")
    assert not (tmp_path / "d.gguf").exists()


def test_tiles_are_kept_or_chosen_and_stated(tmp_path: Path) -> None:
    trits = random_trits(64, 384)
    source = write_tensors(
        tmp_path / "a.gguf", {NAME: packed("TL2", trits, 0.5, Tile(32, 192))}, {"bitconv.tl2.config": "64,384,32,192"}
    )

    def config(source: Path, kind: str, given: str | None = None) -> str:
        report = quietly(source, tmp_path / "b.gguf", type=kind, kernel_config=given, overwrite=True)
        np.testing.assert_array_equal(contents(report.path)[NAME][0], trits)
        with open_gguf(report.path) as gguf:
            return str(gguf.metadata[f"bitconv.{kind}.config"])

    assert config(source, "tl2") == "64,384,32,192"
    assert config(source, "tl2", "tl2:64,384,64,96") == "64,384,64,96"
    assert config(source, "tl1") == "64,384,64,64,32"
    assert config(source, "tl1", "tl1:64,384,64,32,64") == "64,384,64,32,64"
    with pytest.raises(InputError, match="BM = 48"):
        config(source, "tl1", "tl1:64,384,48,32,32")


def test_a_file_without_tiles_needs_the_kernel_config(tmp_path: Path) -> None:
    trits = random_trits(64, 384)
    source = write_tensors(tmp_path / "a.gguf", {NAME: packed("TL2", trits, 0.5, Tile(64, 96))})
    with pytest.raises(UnsupportedError, match='--kernel-config "tl2:64,384,64,96"'):
        bitconv.quantize(source, tmp_path / "b.gguf", type="i2_s")
    report = quietly(source, tmp_path / "b.gguf", type="i2_s", kernel_config="tl2:64,384,64,96")
    np.testing.assert_array_equal(contents(report.path)[NAME][0], trits)


@pytest.mark.parametrize("layout", ["arm64", "x4"])
def test_other_i2_s_layouts_are_rewritten(tmp_path: Path, layout: str) -> None:
    if SHARED is None:
        pytest.skip("no reference vectors")
    vector = np.load(SHARED / "spec" / "vectors" / "i2s_8x256.npz")
    data = np.frombuffer(vector[{"arm64": "packed_arm64blk", "x4": "packed_1x4"}[layout]].tobytes(), np.uint8)
    source = write_tensors(tmp_path / "a.gguf", {NAME: ("I2_S", vector["W"].shape, data)})
    report = quietly(source, tmp_path / "b.gguf", type="i2_s", i2s_layout=layout)
    with open_gguf(report.path) as gguf:
        assert gguf.data(NAME).tobytes() == vector["packed_x86"].tobytes()
        assert gguf.metadata["bitconv.i2_s.layout"] == "x86-128"


@pytest.mark.parametrize("stored", ["arm64", "x86-128"])
def test_dead_channels_betray_the_layout(tmp_path: Path, stored: str) -> None:
    rng = np.random.default_rng(1)
    pack: Callable[[np.ndarray, float], Tensor] = arm64 if stored == "arm64" else lambda t, s: packed("I2_S", t, s)
    tensors = {}
    for layer in range(2):
        dead = rng.random(256) < 0.05
        for role in ("ffn_gate", "ffn_up"):
            trits = rng.integers(-1, 2, (256, 128), dtype=np.int8)
            trits[dead] = 0
            tensors[f"blk.{layer}.{role}.weight"] = pack(trits, 0.5)
        down = rng.integers(-1, 2, (128, 256), dtype=np.int8)
        down[:, dead] = 0
        tensors[f"blk.{layer}.ffn_down.weight"] = pack(down, 0.5)
    source = write_tensors(tmp_path / "a.gguf", tensors)
    other = {"arm64": "x86-128", "x86-128": "arm64"}[stored]
    with pytest.warns(BitconvWarning, match=f"--i2s-layout {stored}"):
        bitconv.quantize(source, tmp_path / "b.gguf", type="i2_s", i2s_layout=other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bitconv.quantize(source, tmp_path / "c.gguf", type="i2_s", i2s_layout=stored)
        inspect(source, count_weights=True, i2s_layout=stored)
    assert not any("dead" in warning for warning in bitconv.verify(source, i2s_layout=stored).warnings)
    assert any(f"--i2s-layout {stored}" in warning for warning in bitconv.verify(source, i2s_layout=other).warnings)
    with pytest.warns(BitconvWarning, match=f"--i2s-layout {stored}"):
        inspect(source, count_weights=True, i2s_layout=other)


# dense files, multipliers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_dense_matrices_that_are_ternary_become_so(tmp_path: Path, kind: str) -> None:
    trits, scale = random_trits(64, 384), 0.0123
    values = trits * np.float32(scale)
    source = write_tensors(tmp_path / "a.gguf", {NAME: (kind, trits.shape, tensor_type(kind).pack(values))})
    report = quietly(source, tmp_path / "b.gguf", type="tl2")
    ((back, multiplier),) = contents(report.path).values()
    np.testing.assert_array_equal(back, trits)
    stored = tensor_type(kind).unpack(tensor_type(kind).pack(np.array([[scale]], np.float32)), 1, 1)
    assert multiplier == stored[0, 0]
    assert report.tensors[0].density == np.count_nonzero(trits) / trits.size
    same = quietly(source, tmp_path / "c.gguf", type=kind)
    with open_gguf(same.path) as gguf:
        assert gguf.data(NAME).tobytes() == tensor_type(kind).pack(values).tobytes()
        assert "bitconv.activation_bits" not in gguf.metadata, "it computed with float activations before"


def test_matrices_that_are_not_ternary_are_refused_by_name(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).standard_normal((64, 384)).astype(np.float32)
    tensors = {"blk.0.attn_k.weight": ("F32", dense.shape, tensor_type("F32").pack(dense))}
    good = np.ones((64, 384), np.float32)
    tensors[NAME] = "F32", good.shape, tensor_type("F32").pack(good)
    source = write_tensors(tmp_path / "a.gguf", tensors)
    with pytest.raises(UnsupportedError, match=r"1 of 2 linears are not ternary.*blk\.0\.attn_k\.weight"):
        bitconv.quantize(source, tmp_path / "b.gguf", type="tl2")
    zero = write_tensors(tmp_path / "z.gguf", {NAME: ("F32", (2, 128), np.zeros(1024, np.uint8))})
    with pytest.raises(FormatError, match="all weights are zero"):
        bitconv.quantize(zero, tmp_path / "b.gguf", type="i2_s")


def test_a_zero_matrix_keeps_its_multiplier_or_is_refused(tmp_path: Path) -> None:
    zeros = np.zeros((32, 256), np.int8)
    for scale in (0.5, 0.1):
        source = write_tensors(tmp_path / f"{scale}.gguf", {NAME: packed("I2_S", zeros, np.float32(scale))})
        report = quietly(source, tmp_path / f"{scale}-tl2.gguf", type="tl2")
        assert contents(report.path)[NAME][1] == np.float32(scale)
        if scale == 0.5:
            with pytest.raises(UnsupportedError, match="cannot keep"):
                bitconv.quantize(source, tmp_path / "b.gguf", type="tq2_0")
        else:
            assert contents(quietly(source, tmp_path / "c.gguf", type="tq2_0").path)[NAME][1] == np.float32(scale)


def test_the_form_for_llama_cpp_rounds_and_says_so(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    model = files["I2_S"].parent / "model"
    for command in (("quantize", files["I2_S"], tmp_path / "q.gguf"), ("convert", model, "-o", tmp_path / "c.gguf")):
        for scale, said in (("f16", True), ("exact", False)):
            outcome = cli(*command, "--type", "tq2_0", "--tq-scale", scale, "--overwrite")
            assert outcome.code == 0 and ("as llama.cpp reads them" in outcome.out) == said
    with pytest.warns(BitconvWarning, match="TQ2_0 rounds the multiplier of 12 tensors"):
        report = bitconv.quantize(files["I2_S"], tmp_path / "a.gguf", type="tq2_0", tq_scale="f16")
    found, exact = contents(report.path), contents(files["I2_S"])
    with open_gguf(report.path) as gguf:
        assert not any(name.endswith(".scale") for name in gguf.tensors)
        for name, (trits, scale) in found.items():
            np.testing.assert_array_equal(trits, exact[name][0])
            rounded = np.float16(exact[name][1]) if gguf.tensors[name].type_name == "TQ2_0" else exact[name][1]
            assert scale == rounded


def test_a_dense_file_of_a_ternary_one_is_run_as_ternary(files: dict[str, Path]) -> None:
    with open_gguf(files["F32"]) as gguf:
        assert gguf.metadata["bitconv.activation_bits"] == 8
        assert "bitconv.i2_s.layout" not in gguf.metadata


# errors: nothing is written ----------------------------------------------------------------------------------------


def broken_bytes(kind: str, at: int, value: int) -> Tensor:
    name, shape, data = packed(kind, random_trits(1536, 1536), 0.5)
    data = data.copy()
    data[at] = value
    return name, shape, data


def broken_scale(kind: str) -> Tensor:
    name, shape, data = packed(kind, random_trits(1536, 1536), 0.5)
    data = data.copy()
    data[-32:-28] = np.frombuffer(struct.pack("<f", float("nan")), np.uint8)
    return name, shape, data


DAMAGED: dict[str, tuple[Tensor, dict[str, str], type[Exception], str]] = {
    "nibble 15 in TL1": (broken_bytes("TL1", 100, 0xF4), {}, FormatError, "TL1 nibble 15 at row"),
    "nibble 15 in TL2": (broken_bytes("TL2", 100, 0x1F), {}, FormatError, "TL2 nibble 15 at row"),
    "code 3 in I2_S": (broken_bytes("I2_S", 0, 0x5F), {}, FormatError, "I2_S code 3 at row 0, column 64"),
    "code 3 in TQ2_0": (broken_bytes("TQ2_0", 0, 0xF5), {}, FormatError, "TQ2_0 code at row 0, column 64"),
    "byte 1 in TQ1_0": (broken_bytes("TQ1_0", 5, 1), {}, FormatError, "TQ1_0 code at row 0, column 5"),
    "NaN in I2_S": (broken_scale("I2_S"), {}, FormatError, "scale is nan"),
    "NaN in TL2": (broken_scale("TL2"), {}, FormatError, "scale is nan"),
    "d infinite": (broken_bytes("TQ2_0", 65, 0x7C), {}, FormatError, "d = "),
    "two d": (broken_bytes("TQ2_0", 65, 0x34), {}, UnsupportedError, "only tensors with one scale"),
    "tile that does not fit": (
        packed("TL2", random_trits(64, 384), 0.5), {"bitconv.tl2.config": "64,384,64,60"}, FormatError, "BK = 60",
    ),
    "tile of another shape": (
        packed("TL1", random_trits(64, 384), 0.5), {"bitconv.tl1.config": "32,384,32,64,32"}, FormatError, "no entry",
    ),
    "wrong tile": (
        packed("TL2", random_trits(64, 768), 0.5, Tile(64, 96)), {"bitconv.tl2.config": "64,768,64,168"}, FormatError,
        "sign bit|nibble",
    ),
    "no tile": (packed("TL1", random_trits(64, 384), 0.5), {}, UnsupportedError, "--kernel-config"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_tensor_is_named_and_nothing_written(tmp_path: Path, cli: Any, damage: str) -> None:
    tensor, keys, error, message = DAMAGED[damage]
    source = write_tensors(tmp_path / "a.gguf", {NAME: tensor}, keys)
    target = tmp_path / "b.gguf"
    with pytest.raises(error, match=message):
        bitconv.quantize(source, target, type="tl1" if damage == "code 3 in I2_S" else "i2_s")
    assert sorted(tmp_path.iterdir()) == [source]
    target.write_bytes(b"precious")
    outcome = cli("quantize", source, target, "--type", "i2_s", "--overwrite")
    assert outcome.code == error("").exit_code  # type: ignore[attr-defined]
    assert str(source) in outcome.err
    assert target.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_damaged_containers_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["TL2"].read_bytes()
    for length in (len(whole) - 64, len(whole) // 2, 1000, 100):
        (tmp_path / "a.gguf").write_bytes(whole[:length])
        with pytest.raises(FormatError, match="truncated|bytes"):
            bitconv.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="i2_s")
    data = packed("I2_S", random_trits(4, 128), 0.5)[2].tobytes()
    records = [gb.tensor(f"blk.{i}.attn_q.weight", (128, 4), 36, 32 * i) for i in range(2)]
    overlapping = gb.Gguf(keys=[gb.key("general.architecture", "str", "llama")], tensors=records, data=data * 2)
    (tmp_path / "a.gguf").write_bytes(overlapping.build())
    with pytest.raises(FormatError, match="needs 160 bytes"):
        bitconv.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="i2_s")
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize("name", [NAME, "token_embd.weight"])
def test_mxfp4_is_not_taken_for_tl2(tmp_path: Path, name: str) -> None:
    data = packed("I2_S", random_trits(4, 256), 0.5)[2].tobytes()
    records = [gb.tensor("blk.0.attn_k.weight", (256, 4), 36, 0), gb.tensor(name, (256, 64), 39, 288)]
    keys = [gb.key("general.architecture", "str", "llama"), gb.key("general.file_type", "u32", 38)]
    mxfp4 = bytes(64 * 256 // 32 * 17)
    (tmp_path / "a.gguf").write_bytes(gb.Gguf(keys=keys, tensors=records, data=data + mxfp4).build())
    with pytest.raises(UnsupportedError, match=f"{name} is MXFP4"):
        bitconv.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="tl2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_file_without_ternary_matrices_is_refused(tmp_path: Path) -> None:
    source = write_tensors(tmp_path / "a.gguf", {"token_embd.weight": ("F16", (2, 32), np.zeros(128, np.uint8))})
    with pytest.raises(UnsupportedError, match="holds no ternary matrices"):
        bitconv.quantize(source, tmp_path / "b.gguf", type="i2_s")


def test_linears_of_other_types_are_refused(tmp_path: Path) -> None:
    record = gb.tensor(NAME, (256, 4), 12, 0)
    keys = [gb.key("general.architecture", "str", "llama")]
    (tmp_path / "a.gguf").write_bytes(gb.Gguf(keys=keys, tensors=[record], data=bytes(4 * 144)).build())
    with pytest.raises(UnsupportedError, match=f"{NAME} is Q4_K"):
        bitconv.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="i2_s")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"type": "q4_k"}, UnsupportedError, "supported are"),
        ({"type": "q8_0"}, UnsupportedError, "linear layers cannot be Q8_0"),
        ({"type": "tl2", "fallback": "f16"}, InputError, "tl2, i2_s, error"),
        ({"type": "tl2", "tq_scale": "f32"}, InputError, "exact or f16"),
        ({"type": "tl2", "threads": 0}, InputError, "at least 1"),
        ({"type": "tl2", "kernel_config": "256,256,128,96"}, InputError, "has no type"),
        ({"type": "tl2", "i2s_layout": "arm"}, InputError, "arm64"),
        ({"type": "tl2", "i2s_layout": "arm64"}, InputError, "says x86-128"),
    ],
)
def test_wrong_arguments_are_refused(
    files: dict[str, Path], tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bitconv.quantize(files["I2_S"], tmp_path / "b.gguf", **options)
    assert not list(tmp_path.iterdir())


# files, threads, progress, command line --------------------------------------------------------------------------


def test_the_default_name_replaces_the_type(files: dict[str, Path], tmp_path: Path) -> None:
    for name, expected in (("m-i2_s.gguf", "m-tl1.gguf"), ("m.gguf", "m-tl1.gguf"), ("a-b.gguf", "a-b-tl1.gguf")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(files["I2_S"])
        assert quietly(folder / name, type="tl1").path == folder / expected
    assert quietly(files["I2_S"], tmp_path, type="tl1").path == tmp_path / "model-tl1.gguf"
    with pytest.raises(InputError, match="exists already"):
        bitconv.quantize(files["I2_S"], tmp_path, type="tl1")


def test_a_file_may_replace_itself(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(files["I2_S"].read_bytes())
    with pytest.raises(InputError, match="exists already"):
        bitconv.quantize(path, path, type="tl2")
    quietly(path, path, type="tl2", overwrite=True)
    assert path.read_bytes() == files["TL2"].read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_and_progress(files: dict[str, Path], tmp_path: Path, threads: int) -> None:
    seen: list[tuple[int, int]] = []
    report = quietly(
        files["F32"], tmp_path / "a.gguf", type="tl2", threads=threads, progress=lambda *now: seen.append(now)
    )
    assert report.path.read_bytes() == files["TL2"].read_bytes()
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > report.bytes_in
    assert len({total for _, total in seen}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_memory_depends_on_the_largest_tensor_and_not_on_their_number(tmp_path: Path) -> None:
    from tools.layouts import Layout
    from tools.make_dummy import make_dummy

    code = (
        "import sys, bitconv; bitconv.quantize(*sys.argv[1:3], type='tl2', threads=2)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for n_layers in (2, 20):
        source, target = (str(tmp_path / f"{n_layers}-{kind}.gguf") for kind in ("i2_s", "tl2"))
        make_dummy(Layout("dummy", 1024, 4096, n_layers, 16, 16, 64), Path(source), "i2_s", "f16", 2, False)
        done = subprocess.run([sys.executable, "-c", code, source, target], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout) * 1024)
    larger = (tmp_path / "20-i2_s.gguf").stat().st_size - (tmp_path / "2-i2_s.gguf").stat().st_size
    assert larger > 70e6
    assert peaks[1] - peaks[0] < 0.25 * larger, "pages of a tensor or two, and what the allocator keeps"


def test_an_error_in_the_callback_leaves_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(files["I2_S"], tmp_path / "a.gguf", type="tl2", progress=fail)
    assert not list(tmp_path.iterdir())


def test_command_line_in_both_orders(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    for i, rest in enumerate((["out.gguf", "--type", "tl2"], ["out.gguf", "TL2"], ["out.gguf", "--type", "TL2"])):
        target = tmp_path / f"{i}.gguf"
        outcome = cli("quantize", files["I2_S"], target, *rest[1:])
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith(f"{target}: ")
        assert target.read_bytes() == files["TL2"].read_bytes()
    report = json.loads(cli("quantize", files["I2_S"], tmp_path / "j.gguf", "tq1_0", "--json").out)
    assert report["type"] == "TQ1_0" and len(report["warnings"]) == 2
    (tmp_path / "m-i2_s.gguf").symlink_to(files["I2_S"])
    assert cli("quantize", tmp_path / "m-i2_s.gguf", "tl2").code == 0
    assert (tmp_path / "m-tl2.gguf").exists()
    for wrong in ([], ["out.gguf", "q4_0"], ["a", "b", "c"], ["out.gguf", "tl2", "--type", "tl2"]):
        assert cli("quantize", files["I2_S"], *wrong).code == 2

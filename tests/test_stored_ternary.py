"""Ternary tensors of files: multiplier, tile and layout come from the right place, or an error names what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bitconv.errors import FormatError, InputError, UnsupportedError
from bitconv.formats.ggml_types import nbytes
from bitconv.formats.gguf import open_gguf
from bitconv.formats.gguf_writer import GgufWriter
from bitconv.models import LINEARS, Hyperparameters, gguf_tensor_names, read_gguf
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.i2_s import LAYOUTS
from bitconv.tensor_types.stored import companion_name, stored_ternary
from bitconv.tensor_types.tiles import Tile
from tests.paths import SHARED
from tests.ternary_files import TERNARY, Tensor, packed, random_trits, scalar, write_tensors

NAME = "blk.0.attn_q.weight"


@pytest.mark.parametrize("kind", TERNARY)
@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_reads_back_what_every_type_packed(tmp_path: Path, kind: str, scale: float) -> None:
    trits, scale = random_trits(1536, 1536), float(np.float32(scale))  # a shape whose tiles need no metadata
    tensors = {NAME: packed(kind, trits, scale)}
    companion = tensor_type(kind).companion_scale(scale)
    if companion is not None:
        tensors[companion_name(NAME)] = scalar(companion)
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf:
        stored = stored_ternary(gguf, NAME)
        assert (stored.type.name, stored.scale) == (kind, scale)
        assert any(stored.tiles) == (kind in ("TL1", "TL2"))
        np.testing.assert_array_equal(stored.unpack(1536, 1536), trits)


def test_a_companion_multiplies_any_type(tmp_path: Path) -> None:
    tensors = {NAME: packed("I2_S", random_trits(4, 128), 0.75), "blk.0.attn_q.scale": scalar(3.0)}
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf:
        assert stored_ternary(gguf, NAME).scale == 2.25


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_wrong_multiplier_names_the_tensor(tmp_path: Path, value: float) -> None:
    wrong = {NAME: packed("I2_S", random_trits(4, 128), value)}
    companion = {NAME: packed("I2_S", random_trits(4, 128), 1.0), "blk.0.attn_q.scale": scalar(value)}
    for i, tensors in enumerate((wrong, companion)):
        with open_gguf(write_tensors(tmp_path / f"{i}.gguf", tensors)) as gguf, pytest.raises(FormatError) as caught:
            stored_ternary(gguf, NAME)
        assert NAME in str(caught.value) and f"{value:g}" in str(caught.value)


def test_a_product_of_multipliers_beyond_float32_is_an_error(tmp_path: Path) -> None:
    tensors = {NAME: packed("I2_S", random_trits(4, 128), 1e30), "blk.0.attn_q.scale": scalar(1e30)}
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf, pytest.raises(FormatError, match="is inf"):
        stored_ternary(gguf, NAME)


def test_a_companion_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    two = "F32", (2,), np.ones(2, "<f4").view(np.uint8)
    tensors = {NAME: packed("I2_S", random_trits(4, 128), 1.0), "blk.0.attn_q.scale": two}
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf, pytest.raises(FormatError, match=r"F32 \[2\]"):
        stored_ternary(gguf, NAME)


def test_tiles_come_from_the_metadata(tmp_path: Path) -> None:
    trits, tile = random_trits(64, 384), Tile(32, 192)
    path = write_tensors(
        tmp_path / "a.gguf", {NAME: packed("TL2", trits, 1.0, tile)}, {"bitconv.tl2.config": "64,384,32,192"}
    )
    with open_gguf(path) as gguf:
        stored = stored_ternary(gguf, NAME)
        assert stored.tile == tile
        np.testing.assert_array_equal(stored.unpack(64, 384), trits)
        with pytest.raises(InputError, match="says 64,384,32,192"):
            stored_ternary(gguf, NAME, kernel_config="tl2:64,384,64,96")


def test_missing_tiles_propose_the_kernel_config_of_the_whole_file(tmp_path: Path) -> None:
    trits, wide = random_trits(64, 384), random_trits(32, 512)
    tensors = {NAME: packed("TL2", trits, 1.0), "blk.0.ffn_down.weight": packed("TL2", wide, 1.0)}
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf:
        with pytest.raises(UnsupportedError) as caught:
            stored_ternary(gguf, NAME)
        proposal = "tl2:32,512,32,96;64,384,64,96"
        assert f'--kernel-config "{proposal}"' in str(caught.value)
        np.testing.assert_array_equal(stored_ternary(gguf, NAME, kernel_config=proposal).unpack(64, 384), trits)


@pytest.mark.parametrize("config", ["64,384,64", "64,384,48,96", "32,384,32,96", "x", "64,384,64,96;" * 100_000])
def test_wrong_tile_metadata_is_malformed(tmp_path: Path, config: str) -> None:
    path = write_tensors(
        tmp_path / "a.gguf", {NAME: packed("TL2", random_trits(64, 384), 1.0)}, {"bitconv.tl2.config": config}
    )
    with open_gguf(path) as gguf, pytest.raises(FormatError, match=r"bitconv\.tl2\.config"):
        stored_ternary(gguf, NAME)


@pytest.mark.parametrize("layout", ["arm64", "x4"])
def test_other_i2_s_layouts_are_read_when_asked_for(tmp_path: Path, layout: str) -> None:
    if SHARED is None:
        pytest.skip("no reference vectors")
    key = {"arm64": "packed_arm64blk", "x4": "packed_1x4"}[layout]
    for file in sorted((SHARED / "spec" / "vectors").glob("i2s_*.npz")):
        vector = np.load(file)
        data = np.frombuffer(vector[key].tobytes(), np.uint8)
        path = write_tensors(tmp_path / f"{file.stem}.gguf", {NAME: ("I2_S", vector["W"].shape, data)})
        with open_gguf(path) as gguf:
            stored = stored_ternary(gguf, NAME, i2s_layout=layout)
            assert (stored.type.kernel, stored.scale) == (None, 0.75)
            np.testing.assert_array_equal(stored.unpack(*vector["W"].shape), vector["W"])
            assert (stored_ternary(gguf, NAME).unpack(*vector["W"].shape) != vector["W"]).any()


def test_other_i2_s_layouts_are_never_written() -> None:
    for layout in ("arm64", "x4"):
        with pytest.raises(UnsupportedError, match="x86-128"):
            LAYOUTS[layout].pack(random_trits(4, 128), 1.0)


def test_a_layout_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    tensors = {NAME: packed("I2_S", random_trits(4, 128), 1.0)}
    path = write_tensors(tmp_path / "a.gguf", tensors, {"bitconv.i2_s.layout": "x86-128"})
    with open_gguf(path) as gguf:
        assert stored_ternary(gguf, NAME, i2s_layout="x86-128").scale == 1
        with pytest.raises(InputError, match="says x86-128"):
            stored_ternary(gguf, NAME, i2s_layout="arm64")
        with pytest.raises(InputError, match="x86-128, arm64, x4"):
            stored_ternary(gguf, NAME, i2s_layout="arm")


def test_scales_that_differ_between_blocks_name_tensor_and_block(tmp_path: Path) -> None:
    trits = random_trits(2, 512)
    data = tensor_type("TQ2_0").pack(trits, 0.5).copy()
    data[3 * 66 + 64 :] = np.frombuffer(struct.pack("<e", 0.25), np.uint8)
    path = write_tensors(tmp_path / "a.gguf", {NAME: ("TQ2_0", trits.shape, data)})
    with open_gguf(path) as gguf, pytest.raises(UnsupportedError, match="row 1, columns 256 to 511") as caught:
        stored_ternary(gguf, NAME)
    assert NAME in str(caught.value)


def test_a_tensor_that_is_no_ternary_matrix_is_refused(tmp_path: Path) -> None:
    flat = np.zeros(nbytes(36, (512,)) or 0, np.uint8)
    tensors = {NAME: ("I2_S", (512,), flat), "token_embd.weight": ("F16", (2, 32), np.zeros(128, np.uint8))}
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf:
        for name in tensors:
            with pytest.raises(FormatError, match="not a ternary matrix"):
                stored_ternary(gguf, name)


def test_i2_s_whose_blocks_straddle_rows_is_refused(tmp_path: Path) -> None:
    tensors = {NAME: ("I2_S", (4, 192), np.zeros(4 * 192 // 4 + 32, np.uint8))}
    with open_gguf(write_tensors(tmp_path / "a.gguf", tensors)) as gguf, pytest.raises(FormatError, match="K = 192"):
        stored_ternary(gguf, NAME)


def small_model(path: Path, kind: str = "I2_S", extra: dict[str, Tensor] | None = None) -> Path:
    """A whole model of one layer whose linears are of one type, with further tensors."""
    hp = Hyperparameters(
        arch="llama", n_layers=1, hidden=128, ffn=256, n_heads=2, n_kv_heads=1, head_dim=64, vocab=8, context=16,
        rms_eps=1e-5, rope_theta=1e4, rope_style="norm", activation="silu", sub_norms=False, tied_head=True,
    )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, shape in gguf_tensor_names(hp).items():
        if name.split(".")[-2] in LINEARS and kind != "F32":
            tensors[name] = packed(kind, random_trits(*shape), 1.0)
        else:
            tensors[name] = "F32", shape, np.ones(shape, "<f4").view(np.uint8)
    keys = {"embedding_length": hp.hidden, "feed_forward_length": hp.ffn, "block_count": 1, "context_length": 16,
            "attention.head_count": 2, "attention.head_count_kv": 1}  # fmt: skip
    with GgufWriter(path, "llama") as writer:
        for key, value in keys.items():
            writer.add(f"llama.{key}", value, "u32")
        writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5, "f32")
        tensors |= extra or {}
        for name, (type_name, shape, _) in tensors.items():
            writer.declare(name, shape, tensor_type(type_name).gguf_id)
        for name, (_, _, data) in tensors.items():
            writer.write(name, data)
        writer.finish()
    return path


def test_a_model_may_have_companions_of_its_ternary_matrices_only(tmp_path: Path) -> None:
    extra = {"blk.0.ffn_down.scale": scalar(0.1)}
    with open_gguf(small_model(tmp_path / "a.gguf", "I2_S", extra)) as gguf:
        assert read_gguf(gguf).n_layers == 1
    refused: list[tuple[type[Exception], str, str, dict[str, Tensor]]] = [
        (UnsupportedError, "dense", "F32", extra),
        (FormatError, "ffn_down", "I2_S", {"blk.0.ffn_down.scale": scalar(float("nan"))}),
        (UnsupportedError, "attn_norm", "I2_S", {"blk.0.attn_norm.scale": scalar(0.1)}),
    ]
    for error, message, kind, tensors in refused:
        path = small_model(tmp_path / f"{message}.gguf", kind, tensors)
        with open_gguf(path) as gguf, pytest.raises(error, match=message):
            read_gguf(gguf)

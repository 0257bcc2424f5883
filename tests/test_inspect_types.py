"""inspect tells scales, shares of weights, kernels and memory, of any file, and never fails over a single tensor."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitconv
from bitconv import _kernels
from bitconv.errors import BitconvWarning
from bitconv.formats.gguf import open_gguf
from bitconv.models.memory import largest_batch
from bitconv.pipeline.inspect import inspect
from bitconv.tensor_types import tensor_type
from bitconv.tensor_types.stored import companion_name
from tests import gguf_builder as gb
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.ternary_files import TERNARY, packed, random_trits, scalar, write_tensors

NAME = "blk.0.attn_q.weight"


@pytest.mark.parametrize("kind", [*TERNARY, "F16", "F32"])
def test_scale_and_shares_of_every_type(tmp_path: Path, kind: str) -> None:
    trits, scale = random_trits(1536, 1536), float(np.float32(0.1))
    trits[:, ::3] = 0
    trits[:700, 1] = 1
    if kind in TERNARY:
        tensors = {NAME: packed(kind, trits, scale)}
        companion = tensor_type(kind).companion_scale(scale)
        if companion is not None:
            tensors[companion_name(NAME)] = scalar(companion)
    else:
        scale = float(np.float16(scale)) if kind == "F16" else scale
        tensors = {NAME: (kind, trits.shape, tensor_type(kind).pack(trits * np.float32(scale)))}
    found = inspect(write_tensors(tmp_path / "a.gguf", tensors), count_weights=True)
    row = found.tensors[0]
    assert (row.type, row.scale, row.note) == (kind, scale, None)
    shares = [float((trits == value).mean()) for value in (-1, 0, 1)]
    assert [row.negative, row.zero, row.positive] == shares
    assert row.bits_per_weight == row.bytes * 8 / trits.size


def test_weights_are_counted_only_when_asked_for(tmp_path: Path) -> None:
    data = packed("I2_S", random_trits(4, 128), 0.5)[2].copy()
    data[0] = 0xFF
    row = inspect(write_tensors(tmp_path / "a.gguf", {NAME: ("I2_S", (4, 128), data)})).tensors[0]
    assert (row.scale, row.zero, row.note) == (None, None, None)


def test_what_cannot_be_counted_gets_a_note(tmp_path: Path, cli: Any) -> None:
    damaged = packed("I2_S", random_trits(4, 128), 0.5)[2].copy()
    damaged[0] = 0xFF
    dense = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    tensors = {
        "blk.0.attn_q.weight": ("I2_S", (4, 128), damaged),
        "blk.0.attn_k.weight": packed("TL2", random_trits(64, 384), 0.25),
        "blk.0.attn_v.weight": ("F32", (4, 128), tensor_type("F32").pack(dense)),
        "blk.0.attn_output.weight": packed("I2_S", random_trits(4, 128), float("nan")),
    }
    path = write_tensors(tmp_path / "a.gguf", tensors)
    rows = {row.name.split(".")[2]: row for row in inspect(path, count_weights=True).tensors}
    assert "code 3" in str(rows["attn_q"].note) and rows["attn_q"].scale == 0.5
    assert "bitconv.tl2.config is missing" in str(rows["attn_k"].note) and rows["attn_k"].scale == 0.25
    assert rows["attn_v"].note == "not ternary" and rows["attn_v"].scale is None
    assert "scale is nan" in str(rows["attn_output"].note) and rows["attn_output"].scale is None
    assert inspect(path, count_weights=True, kernel_config="tl2:64,384,64,96").tensors[1].zero is not None
    outcome = cli("inspect", path, "--tensors")
    assert outcome.code == 0 and "code 3" in outcome.out
    assert json.loads(cli("inspect", path, "--tensors", "--json").out)["tensors"][0]["scale"] == 0.5


def test_types_of_other_programs_are_shown(tmp_path: Path, cli: Any) -> None:
    """MXFP4, IQ2_BN of ik_llama.cpp and ids that nobody knows, beside a ternary tensor."""
    data = packed("I2_S", random_trits(4, 256), 0.5)[2].tobytes()
    iq2_bn = 256 * 8 // 64 * 16
    records = [
        gb.tensor(NAME, (256, 4), 36, 0), gb.tensor("blk.0.attn_k.weight", (256, 8), 135, 288),
        gb.tensor("x", (256, 64), 39, 288 + iq2_bn), gb.tensor("y", (7,), 999, 288 + iq2_bn + 8704),
    ]  # fmt: skip
    keys = [gb.key("general.architecture", "str", "llama"), gb.key("general.file_type", "u32", 38)]
    path = tmp_path / "a.gguf"
    path.write_bytes(gb.Gguf(keys=keys, tensors=records, data=data + bytes(iq2_bn + 8704 + 32)).build())
    found = inspect(path, count_weights=True)
    assert [row.type for row in found.tensors] == ["I2_S", "unknown(135)", "MXFP4", "unknown(999)"]
    assert found.problem is not None and found.memory is None
    assert [bool(row.kernels) for row in found.types] == [True, False, False, False]
    assert cli("inspect", path, "--tensors").code == 0


@pytest.mark.parametrize("isa", _kernels.isas())
def test_the_kernels_named_are_those_of_the_instruction_set(tmp_path: Path, cli: Any, isa: str) -> None:
    tensors = {f"blk.{i}.attn_q.weight": packed(kind, random_trits(1536, 1536), 0.5) for i, kind in enumerate(TERNARY)}
    path = write_tensors(tmp_path / "a.gguf", tensors)
    for row in inspect(path, isa=isa).types:
        assert row.kernels == _kernels.kernel_names(isa, tensor_type(row.type).gguf_id)
        assert row.kernels[0].startswith(f"{row.type.lower()}_gemv_") and len(row.kernels) == 2
    shown = cli("inspect", path, "--isa", isa).out
    assert f"kernels ({isa})" in shown
    assert cli("inspect", path, "--isa", "mmx").code == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", [None, 1, 100, 4097])
def test_memory_is_what_the_engine_takes(tmp_path: Path, family: str, context: int | None) -> None:
    make_checkpoint(tmp_path / "model", family=family, n_layers=1, head_dim=40 if family == "llama" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        path = bitconv.convert(tmp_path / "model", tmp_path / "a.gguf", type="f32").path
    model = bitconv.load(path, threads=1)
    for kind, type_id in _kernels.CACHE_TYPES.items():
        memory = inspect(path, context=context, cache_type=kind).memory
        assert memory is not None and memory.cache_type == kind
        assert memory.keys_and_values == model.engine.cache_bytes(memory.context, type_id)
    memory = inspect(path, context=context).memory
    assert memory is not None
    assert memory.context == (context or model.n_ctx_train)
    assert memory.keys_and_values == model.engine.cache_bytes(memory.context, 1)
    with open_gguf(path) as gguf:
        assert memory.tensors == sum(info.nbytes for info in gguf.tensors.values())
    assert memory.rotary == memory.context * model.hyperparameters.head_dim // 2 * 4 * 2
    assert memory.scratch == model.engine.scratch_bytes(largest_batch(model.hyperparameters), 1)
    assert memory.total == memory.tensors + memory.keys_and_values + memory.rotary + memory.scratch


def test_inspect_says_whether_a_model_fits(tiny_gguf: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    total = json.loads(cli("inspect", tiny_gguf, "-c", "64", "--json").out)["memory"]["total"]
    for available, line in (
        (total, f"available: {total} bytes now; it fits"),
        (total - 1, f"available: {total - 1} bytes now; it does not fit"),
        (None, None),
    ):
        monkeypatch.setattr("bitconv.machine.available_memory", lambda available=available: available)
        shown = cli("inspect", tiny_gguf, "-c", "64").out
        assert (line in shown) if line else ("available:" not in shown)
        assert json.loads(cli("inspect", tiny_gguf, "--json").out)["memory_available"] == available


def test_memory_in_the_command_line(tiny_gguf: Path, cli: Any) -> None:
    memory = json.loads(cli("inspect", tiny_gguf, "-c", "64", "--json").out)["memory"]
    assert memory["context"] == 64
    assert f"memory: {memory['total']} bytes for a context of 64" in cli("inspect", tiny_gguf, "-c", "64").out
    smaller = json.loads(cli("inspect", tiny_gguf, "-c", "64", "-ctk", "q8_0", "--json").out)["memory"]
    assert smaller["keys_and_values"] * 64 == memory["keys_and_values"] * 34  # heads of 64 dimensions: no padding


def test_a_file_whose_tiles_are_unknown_cannot_run(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", n_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitconvWarning)
        source = bitconv.convert(tmp_path / "model", tmp_path / "a.gguf", type="tl2").path
    raw = source.read_bytes().replace(b"bitconv.tl2.config", b"bitconv.tl2.cxnfig")
    (tmp_path / "b.gguf").write_bytes(raw)
    assert inspect(source).problem is None
    assert "bitconv.tl2.config is missing" in str(inspect(tmp_path / "b.gguf").problem)

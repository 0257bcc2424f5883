"""Logits are the same bits in every ternary type; files run from the map."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import bitconv
from bitconv import _kernels
from tests.checkpoints import make_checkpoint
from tests.conftest import TINY

TYPES = ("i2_s", "tl1", "tl2", "tq1_0", "tq2_0")
TOKENS = 270  # past a block of 264 tokens of the panel GEMM
# columns in multiples of 256 and rows of 32, so that every type can hold every matrix; the 1280 columns of one source
# are more than an unpacked panel holds
SHAPE = {"hidden": 256, "ffn": 512, "n_heads": 8, "n_kv_heads": 4, "head_dim": 32}
SOURCES = {
    "bundled": None,
    "bitnet": {"family": "bitnet", "form": "packed_autobitlinear", **SHAPE, "ffn": 1280},
    "bitnet_silu": {"family": "bitnet_silu", "form": "master", **SHAPE},
    "llama": {"family": "llama", "form": "packed_bitlinear", **SHAPE},
}


@pytest.fixture(scope="module", params=SOURCES)
def files(request, tmp_path_factory):
    """One model in every type: the first converted, the others converted or requantised in turn."""
    directory = tmp_path_factory.mktemp(request.param)
    source = TINY
    if SOURCES[request.param]:
        source = make_checkpoint(directory / "hf", **SOURCES[request.param])
    paths = {name: directory / f"{name}.gguf" for name in TYPES}
    for name, path in paths.items():
        if name in ("i2_s", "tl1", "tq1_0"):
            bitconv.convert(source, path, type=name, fallback="error")
        else:
            bitconv.quantize(paths["tl1"], path, type=name, fallback="error")
    return paths


@pytest.fixture(scope="module")
def expected(files):
    model = bitconv.load(files["i2_s"], threads=1, isa="scalar")
    ids = np.random.default_rng(3).integers(0, model.vocab_size, TOKENS).tolist()
    return ids, model.logits(ids).tobytes()


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_gives_the_bits_of_i2_s(files, expected, name, threads, isa):
    ids, bits = expected
    model = bitconv.load(files[name], threads=threads, isa=isa)
    assert {model.gguf.tensors[f"{linear}.weight"].type_name for linear in model.ternary} == {name.upper()}
    context = model.context(TOKENS)
    assert context.forward(ids, logits="all").tobytes() == bits
    assert context.team == (threads if _kernels.has_openmp() else 1)


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("name", TYPES)
def test_splits_and_single_steps_give_the_same_bits_in_every_type(files, expected, name, isa):
    ids, bits = expected
    model = bitconv.load(files[name], threads=1 + TYPES.index(name) % 3, isa=isa)
    rng = np.random.default_rng(TYPES.index(name))
    context, parts = model.context(TOKENS), []
    while context.n_past < TOKENS:
        size = 1 if context.n_past > 100 else int(rng.integers(1, 50))
        parts.append(context.forward(ids[context.n_past : context.n_past + size], logits="all"))
    assert np.concatenate(parts).tobytes() == bits


FEW = (2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17)
"""Tokens of a pass: one or some in a pass over the weights, the last by panels."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose down projection, 512 KiB, and F16 head are more than several tokens read from L2 at a time."""
    directory = tmp_path_factory.mktemp("wide")
    shape = {**SHAPE, "hidden": 512, "head_dim": 64, "ffn": 4096, "n_layers": 1}
    source = make_checkpoint(directory / "hf", family="bitnet", form="packed_autobitlinear", **shape)
    paths = {name: directory / f"{name}.gguf" for name in ("i2_s", "tl2", "tq2_0")}
    for name, path in paths.items():
        bitconv.convert(source, path, type=name, fallback="error")
    model = bitconv.load(paths["i2_s"], threads=1, isa="scalar")
    ids = [i % 50 for i in range(sum(FEW))]
    return paths, ids, model.logits(ids).tobytes()


@pytest.mark.parametrize("isa", _kernels.isas())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["i2_s", "tl2", "tq2_0"])
def test_few_tokens_that_take_turns_on_large_weights(wide, name, threads, isa):
    paths, ids, bits = wide
    model = bitconv.load(paths[name], threads=threads, isa=isa)
    context, parts = model.context(len(ids)), []
    for size in FEW:
        parts.append(context.forward(ids[context.n_past : context.n_past + size], logits="all"))
    assert np.concatenate(parts).tobytes() == bits


@pytest.mark.parametrize("name", TYPES)
def test_weights_are_executed_from_the_mapped_file(files, name, tmp_path):
    """One nibble that changes in the file after load changes the logits, and back again brings them back."""
    path = tmp_path / "copy.gguf"
    path.write_bytes(files[name].read_bytes())
    model = bitconv.load(path, threads=1)
    before = model.logits([1, 2, 3]).tobytes()
    info = model.gguf.tensors["blk.0.attn_v.weight"]  # the codes of its input are not sparse, as those of ffn_down are
    with path.open("r+b", buffering=0) as file:
        old = os.pread(file.fileno(), 1, info.offset)[0]
        nibble = old & 15
        other = {  # another one that the type knows
            "i2_s": 0b0110 if nibble == 0b0101 else 0b0101, "tl1": (nibble + 1) % 9, "tl2": nibble % 13 + 1,
            "tq1_0": nibble ^ 8, "tq2_0": 0b0110 if nibble == 0b0101 else 0b0101,
        }[name]  # fmt: skip
        os.pwrite(file.fileno(), bytes([old & 0xF0 | other]), info.offset)
        assert model.logits([1, 2, 3]).tobytes() != before
        os.pwrite(file.fileno(), bytes([old]), info.offset)
    assert model.logits([1, 2, 3]).tobytes() == before


_PRIVATE = """
import sys, bitconv
def private():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty"))
bitconv.load(sys.argv[2]).logits([1])  # what the libraries take once
before = private()
model = bitconv.load(sys.argv[1])
print(private() - before, sum(model.gguf.tensors[f"{name}.weight"].nbytes for name in model.ternary))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="smaps_rollup is Linux's")
@pytest.mark.parametrize("name", TYPES)
def test_load_copies_no_weights(files, name, tmp_path):
    from tools.layouts import Layout
    from tools.make_dummy import make_dummy

    path = tmp_path / "model.gguf"
    make_dummy(Layout("dummy", 1024, 4096, 4, 16, 16, 64), path, name, "f16", 2, False)
    run = [sys.executable, "-c", _PRIVATE, str(path), str(files[name])]
    private, weights = map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    assert weights > 10 << 20
    assert private < 0.05 * weights


def test_gate_and_up_whose_tiles_do_not_go_together_are_refused(tmp_path):
    source = make_checkpoint(tmp_path / "hf", family="bitnet_silu", form="master", **{**SHAPE, "ffn": 3072})
    names = ("tl1", "tl2")
    paths = [tmp_path / f"{name}.gguf" for name in names]
    for name, path, tile in zip(names, paths, ("1024,64,32", "96,96"), strict=True):
        bitconv.convert(source, path, type=name, kernel_config=f"{name}:3072,256,{tile}", fallback="error")
    models = [bitconv.load(path) for path in paths]
    engine, layer = models[0].engine, {}
    for name in ("q", "k", "v", "output"):
        layer[name] = models[0].weight(f"blk.0.attn_{name}")
    norms = {name: np.ones(3072 if name == "ffn_sub_norm" else 256, np.float32) for name in
             ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")}  # fmt: skip
    layer |= {"gate": models[0].weight("blk.0.ffn_gate"), "down": models[0].weight("blk.0.ffn_down")}
    engine.set_layer(0, **norms, **layer, up=models[0].weight("blk.0.ffn_up"))
    with pytest.raises(ValueError, match="tiles of 1024 and 96 rows"):
        engine.set_layer(0, **norms, **layer, up=models[1].weight("blk.0.ffn_up"))

"""A model whose numbers overflow is refused, with the name of the place, instead of continuing with NaN."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import bitconv
from bitconv.errors import FormatError
from bitconv.formats.gguf import open_gguf
from tests.checkpoints import make_checkpoint

LARGE = np.float32(3e38)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("overflow")
    make_checkpoint(directory / "hf", family="bitnet", form="master")
    return directory


@pytest.fixture(scope="module")
def sound(checkpoint: Path) -> Path:
    bitconv.convert(checkpoint / "hf", checkpoint / "sound.gguf")
    return checkpoint / "sound.gguf"


def with_weights(sound: Path, directory: Path, tensor: str, at: slice) -> Path:
    """A copy whose float32 tensor is LARGE in these places."""
    damaged = Path(shutil.copy(sound, directory / "damaged.gguf"))
    info = open_gguf(damaged).tensors[tensor]
    assert info.type_name == "F32"
    weights = np.memmap(damaged, np.float32, "r+", info.offset, info.shape)
    weights[at] = LARGE
    weights.flush()
    return damaged


CASES = [
    ("blk.0.attn_norm.weight", slice(None), "the input of blk.0.attn_q"),
    ("blk.1.ffn_norm.weight", slice(5, 9), "the input of blk.1.ffn_gate"),
    ("blk.1.ffn_sub_norm.weight", slice(None), "the input of blk.1.ffn_down"),
    ("output_norm.weight", slice(None), "a logit"),
]


@pytest.mark.parametrize(("tensor", "at", "place"), CASES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_an_overflow_is_an_error_that_names_the_place(sound, tmp_path, tensor, at, place, threads, tokens):
    model = bitconv.load(with_weights(sound, tmp_path, tensor, at), threads=threads)
    ids = np.random.default_rng(tokens).integers(0, model.vocab_size, tokens).tolist()
    for logits in ("last", "all"):
        context = model.context(64)
        with pytest.raises(FormatError, match=re.escape(f"{place} is not finite")):
            context.forward(ids, logits=logits)
        assert context.n_past == 0


@pytest.mark.parametrize("kind", ["f16", "f32", "q8_0", "q6_k"])
@pytest.mark.parametrize("tokens", [1, 20])
def test_the_input_of_a_head_of_any_type_may_overflow(checkpoint, tmp_path, kind, tokens):
    bitconv.convert(checkpoint / "hf", tmp_path / "sound.gguf", embedding_type=kind)
    damaged = with_weights(tmp_path / "sound.gguf", tmp_path, "output_norm.weight", slice(None))
    context = bitconv.load(damaged).context(64)
    assert context.model.gguf.tensors["token_embd.weight"].type_name == kind.upper()
    with pytest.raises(FormatError, match="a logit is not finite"):
        context.forward([3] * tokens, logits="all")


def test_one_infinite_logit_of_all_is_found(sound, tmp_path):
    """The last row of the output matrix, which the last thread looks at."""
    damaged = Path(shutil.copy(sound, tmp_path / "damaged.gguf"))
    info = open_gguf(damaged).tensors["token_embd.weight"]
    assert info.type_name == "F16"
    halves = np.memmap(damaged, np.float16, "r+", info.offset, info.shape)
    halves[-1, -1] = np.float16("inf")
    halves.flush()
    for threads in (1, 2, 3):
        context = bitconv.load(damaged, threads=threads).context(64)
        with pytest.raises(FormatError, match="a logit is not finite"):
            context.forward([3], logits="last")
        assert context.forward([3], logits="none").shape[0] == 0

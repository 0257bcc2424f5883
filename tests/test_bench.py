"""The form of benchmark results; no figure is judged here."""

from __future__ import annotations

import csv
import io
import json

import pytest
from click.testing import CliRunner

import bitconv
from bitconv import _kernels
from bitconv.cli.app import cli
from bitconv.cli.state import State
from bitconv.errors import InputError
from bitconv.runtime import bench


def run(*args: str):
    result = CliRunner().invoke(cli, ["bench", *args], obj=State(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_rows_have_the_documented_fields(tiny_gguf):
    found = json.loads(run(str(tiny_gguf), "-p", "8,16", "-n", "4", "-t", "1,2", "-r", "2", "-o", "json"))
    assert [(row["threads"], row["test"]) for row in found["rows"]] == [
        (t, name) for t in (1, 2) for name in ("pp8", "pp16", "tg4")
    ]
    model = bitconv.load(tiny_gguf)
    for row in found["rows"]:
        assert row["type"] == "I2_S"
        assert row["params"] == model.n_params
        assert row["bytes"] == tiny_gguf.stat().st_size
        assert row["tokens_per_second"] > 0
        assert row["stddev"] >= 0
        if row["limit"] is not None:
            assert row["fraction"] == pytest.approx(row["tokens_per_second"] / row["limit"])
    assert [limit["threads"] for limit in found["limits"]] == [1, 2]
    assert all(limit["read"] > 0 for limit in found["limits"])


def test_csv_and_markdown_have_a_line_for_each_test(tiny_gguf):
    rows = list(csv.DictReader(io.StringIO(run(str(tiny_gguf), "-p", "8", "-n", "2", "-r", "1", "-o", "csv"))))
    assert [row["test"] for row in rows] == ["pp8", "tg2"]
    table = run(str(tiny_gguf), "-p", "0", "-n", "2", "-d", "40", "-r", "1").splitlines()
    assert table[0].startswith("| model |")
    assert "| tg2 @ d40 |" in table[2]
    assert table[-1].startswith("Limits with")


def test_kernels_are_timed_for_each_shape(tiny_gguf):
    table = run(str(tiny_gguf), "--kernels", "-p", "8", "-r", "1")
    model = bitconv.load(tiny_gguf)
    shapes = {model.gguf.tensors[f"{name}.weight"].shape for name in model.ternary}
    for rows, cols in shapes:
        assert f"| {rows} x {cols} | 1 |" in table
        assert f"| {rows} x {cols} | 8 |" in table


def test_bytes_of_a_decoded_token_are_blocks_and_head(tiny_gguf):
    model = bitconv.load(tiny_gguf)
    everything = sum(info.nbytes for info in model.gguf.tensors.values())
    norm = model.gguf.tensors["output_norm.weight"].nbytes
    assert model.hyperparameters.tied_head
    assert bench.weight_bytes(model) == everything - norm
    hp = model.hyperparameters
    numbers = 2 * 10 * hp.n_layers * hp.n_kv_heads * hp.head_dim
    for kind, bits in {"f16": 16, "f32": 32, "q8_0": 8.5}.items():  # heads of 64 dimensions: no padding
        assert bench.cache_bytes(bitconv.load(tiny_gguf, cache_type=kind), 10) == numbers * bits / 8


def test_wrong_sizes_are_refused(tiny_gguf):
    with pytest.raises(InputError):
        bench.bench(bitconv.load(tiny_gguf), prompts=(), generations=())
    with pytest.raises(InputError):
        bench.bench(bitconv.load(tiny_gguf), repetitions=0)


def test_the_int8_peak_is_known_for_every_vector_isa():
    for isa in _kernels.isas():
        assert (_kernels.int8_peak(isa, 1) > 0) == (isa != "scalar")

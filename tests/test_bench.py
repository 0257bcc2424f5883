"""The form of benchmark results; no figure is judged here."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import bitconv
from bitconv import _kernels
from bitconv.cli.app import cli
from bitconv.cli.bench import _percent
from bitconv.cli.state import State
from bitconv.errors import InputError
from bitconv.runtime import bench, limits

CACHE_BYTES = limits.cache_bytes


@pytest.fixture(autouse=True)
def small_caches(request, monkeypatch):
    """Buffers of 2 MiB: no figure is judged, and the bundled model counts as larger than the caches."""
    monkeypatch.setattr(limits, "cache_bytes", lambda: getattr(request, "param", 1 << 18))


def run(*args: str):
    result = CliRunner().invoke(cli, ["bench", *args], obj=State(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_rows_have_the_documented_fields(tiny_gguf):
    found = json.loads(run(str(tiny_gguf), "-p", "8,17", "-n", "4", "-t", "1,2", "-r", "2", "-o", "json"))
    assert [(row["threads"], row["test"]) for row in found["rows"]] == [
        (t, name) for t in (1, 2) for name in ("pp8", "pp17", "tg4")
    ]
    model = bitconv.load(tiny_gguf)
    isa = found["rows"][0]["isa"]
    decode, panel = _kernels.kernel_names(isa, 36)
    for row in found["rows"]:
        assert row["type"] == "I2_S"
        few = decode.replace("gemv", "few") if row["n_prompt"] == 8 and isa != "scalar" else panel
        assert row["kernel"].split(" + ")[0] == (decode if row["n_gen"] else few)
        assert row["params"] == model.n_params
        assert row["bytes"] == tiny_gguf.stat().st_size
        assert row["tokens_per_second"] > 0
        assert row["stddev"] >= 0
        assert row["median"] <= row["best"]
        if row["n_gen"] or isa != "scalar":
            assert row["fraction"] == pytest.approx(row["median"] / row["limit"])
            assert row["exceeded"] == (row["best"] > row["limit"])
        if row["n_gen"]:
            assert row["nearby"] >= row["fraction"] * (1 - 1e-9)  # no reading nearby is better than the best
        else:
            assert row["nearby"] is None
    assert [limit["threads"] for limit in found["limits"]] == [1, 2]
    assert all(limit["read"] >= limit["read_median"] > 0 for limit in found["limits"])


def test_csv_and_markdown_have_a_line_for_each_test(tiny_gguf):
    rows = list(csv.DictReader(io.StringIO(run(str(tiny_gguf), "-p", "8", "-n", "2", "-r", "1", "-o", "csv"))))
    assert [row["test"] for row in rows] == ["pp8", "tg2"]
    table = run(str(tiny_gguf), "-p", "0", "-n", "2", "-d", "40", "-r", "1").splitlines()
    assert table[0].startswith("| model |")
    assert "| tg2 @ d40 |" in table[2]
    assert table[-1].startswith("Limits with")


def test_kernels_are_timed_for_each_shape(tiny_gguf):
    found = json.loads(run(str(tiny_gguf), "--kernels", "-p", "8,1", "-r", "1", "-t", "1", "-o", "json"))["rows"]
    model = bitconv.load(tiny_gguf)
    shapes = {model.gguf.tensors[f"{name}.weight"].shape for name in model.ternary}
    cases = [(row["rows"], row["cols"], row["tokens"]) for row in found]
    assert sorted(cases) == sorted((*s, n) for s in shapes for n in (1, 8))
    for row in found:
        assert row["unit"] == ("GB/s" if row["tokens"] == 1 else "GMAC/s")
        assert 0 < row["giga_per_second"] <= row["best"]


def test_models_are_measured_side_by_side(tiny_gguf, tmp_path):
    other = tmp_path / "tiny-tl2.gguf"
    bitconv.quantize(tiny_gguf, other, type="tl2")
    table = run(str(tiny_gguf), "-m", str(other), "-p", "0", "-n", "1", "-t", "1", "-r", "1").splitlines()
    assert [line.split(" | ")[1] for line in table[2:4]] == ["I2_S", "TL2"]


def test_bytes_of_a_decoded_token_are_those_of_the_matrices_and_the_head(tiny_gguf):
    model = bitconv.load(tiny_gguf)
    hp, tensors = model.hyperparameters, model.gguf.tensors
    assert hp.tied_head
    matrices = sum(math.prod(tensors[f"{name}.weight"].shape) // 4 for name in model.ternary)
    assert model.engine.weight_bytes() == matrices + tensors["token_embd.weight"].nbytes
    # of 9 tokens after 10 others the first reads 11 positions and the last 19
    numbers = 15 * 2 * hp.n_layers * hp.n_kv_heads * hp.head_dim
    for kind, bits in {"f16": 16, "f32": 32, "q8_0": 8.5}.items():  # heads of 64 dimensions: no padding
        assert bench.cache_bytes(bitconv.load(tiny_gguf, cache_type=kind), 9, 10) == numbers * bits / 8
    assert bench.multiply_adds(model) == 4 * matrices


def test_wrong_sizes_are_refused(tiny_gguf):
    with pytest.raises(InputError):
        bench.bench([bitconv.load(tiny_gguf)], prompts=(), generations=())
    with pytest.raises(InputError):
        bench.bench([bitconv.load(tiny_gguf)], repetitions=0)
    with pytest.raises(InputError, match="same instruction set"):
        bench.bench([])


def test_a_limit_that_was_exceeded_is_called_wrong():
    row = bench.KernelRow("k", "I2_S", "m", 1, 1, 1, 1, 1.0, 2.0, "GB/s", 0.9, True)
    assert _percent(row) == "90 % (a run exceeded the limit: it is wrong)"
    assert _percent(replace(row, exceeded=False)) == "90 %"
    assert _percent(replace(row, fraction=None)) == "unknown"


@pytest.mark.parametrize("small_caches", [1 << 24], indirect=True)
def test_weights_that_stay_in_the_caches_have_no_limit_of_decode(tiny_gguf):
    (row,), (limit,) = bench.bench([bitconv.load(tiny_gguf)], prompts=(), generations=(2,), repetitions=1, threads=(1,))
    assert row.limit is None
    assert row.fraction is row.nearby is None
    assert not row.exceeded
    assert limit.read > 0


def test_last_level_caches_are_added_up(tmp_path):
    for core in os.sched_getaffinity(0):
        for index, (level, size, shared) in enumerate([(1, "32K", f"{core}"), (3, "96M", f"{core}"), (3, "x", "0")]):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{text}\n")
    assert CACHE_BYTES(tmp_path) == min(len(os.sched_getaffinity(0)) * (96 << 20), 1 << 30)
    assert CACHE_BYTES(tmp_path / "none") == 1 << 25


def test_reading_patterns_are_refused_when_they_make_no_sense():
    data, width = np.zeros(1 << 16, np.uint8), _kernels.load_widths()[0]
    assert _kernels.read_bandwidth(data, 1, 3, width, ahead=64, chunk=1 << 14) > 0
    for threads, streams, load, chunk in ((0, 1, width, 0), (1, 0, width, 0), (1, 1, 7, 0), (1, 1, width, 1 << 20)):
        with pytest.raises(ValueError, match="wrong|too little"):
            _kernels.read_bandwidth(data, threads, streams, load, chunk=chunk)


def test_the_int8_peak_is_known_for_every_vector_isa():
    for isa in _kernels.isas():
        assert (_kernels.int8_peak(isa, 1) > 0) == (isa != "scalar")


@pytest.mark.skipif("avxvnni" not in _kernels.all_isas(), reason="this build has no AVX-VNNI kernels")
def test_avx_vnni_kernels_need_no_avx512():
    """CPUs with AVX-VNNI and without AVX-512 know no EVEX encoding, whose first byte is 0x62."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    done = subprocess.run(["objdump", "-d", _kernels.__file__], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    function = r"^[0-9a-f]+ <((?:gemm|i2_s)_\w+_avxvnni)(?:\.\w+)*>:\n((?:.+\n)+)"
    for name, body in re.findall(function, done.stdout, re.M):
        found.setdefault(name, []).extend(body.splitlines())
    if not found:
        pytest.skip("the library has no symbols")
    assert {"gemm_tile_avxvnni", "i2_s_gemv_avxvnni", "gemm_peak_avxvnni"} <= set(found)
    for name, lines in found.items():
        assert any("vpdpbusd" in line for line in lines), name
        assert not [line for line in lines if line.split("\t")[1].startswith("62 ")], name

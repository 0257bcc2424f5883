"""convert, inspect, tokenize, perplexity, doctor and demo on the bundled checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import bitconv
from bitconv.cli.inspect import printable
from bitconv.formats.gguf import open_gguf
from tests.conftest import TINY
from tests.gguf_builder import key, simple
from tests.paths import SHARED


def test_convert_reports_and_refuses_to_overwrite(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    first = cli("convert", TINY, "-o", output, "-v")
    assert first.code == 0
    assert str(output) in first.out
    assert "I2_S" in first.out
    assert "attention_dropout" in first.err, "-v lists the keys that nothing depends on"
    assert output.read_bytes() == tiny_gguf.read_bytes()
    again = cli("convert", TINY, "-o", output)
    assert again.code == 3
    assert "--overwrite" in again.err
    assert output.read_bytes() == tiny_gguf.read_bytes()
    assert cli("convert", TINY, "-o", output, "--overwrite", "-q").err == ""


def test_convert_writes_beside_the_checkpoint_by_default(cli: Any, tmp_path: Path) -> None:
    source = shutil.copytree(TINY, tmp_path / "model")
    outcome = cli("convert", source, "--type", "f16", "--embedding-type", "f32", "--json")
    value = json.loads(outcome.out)
    assert value["path"] == str(source / "model-f16.gguf")
    with open_gguf(value["path"]) as gguf:
        assert gguf.tensors["token_embd.weight"].type_name == "F32"
        assert gguf.tensors["blk.0.attn_q.weight"].type_name == "F16"


def test_inspect_shows_what_the_file_says(cli: Any, tiny_gguf: Path) -> None:
    page = cli("inspect", tiny_gguf).out
    assert "runs here: yes" in page
    assert "general.architecture" in page
    assert "blk.0.attn_q.weight" not in page
    table = cli("inspect", tiny_gguf, "--tensors").out
    with open_gguf(tiny_gguf) as gguf:
        for key in gguf.metadata:
            assert f"  {key} " in page
        for info in gguf.tensors.values():
            row = next(line.split() for line in table.splitlines() if line.split()[:1] == [info.name])
            shape, weights = "x".join(map(str, info.shape)), math.prod(info.shape)
            assert row[1:5] == [info.type_name, shape, str(info.offset), str(info.nbytes)]
            assert float(row[5]) == pytest.approx(info.nbytes * 8 / weights, abs=5e-4)  # three decimals


def test_inspect_json_is_complete(cli: Any, tiny_gguf: Path) -> None:
    value = json.loads(cli("inspect", tiny_gguf, "--tensors", "--json").out)
    with open_gguf(tiny_gguf) as gguf:
        assert list(value["metadata"]) == list(gguf.metadata)
        assert [t["name"] for t in value["tensors"]] == list(gguf.tensors)
        assert value["metadata"]["tokenizer.ggml.tokens"]["value"]["length"] == len(
            gguf.metadata["tokenizer.ggml.tokens"]
        )
    assert value["problem"] is None
    assert value["tokenizer"]["end_of_generation"]
    assert "tensors" not in json.loads(cli("inspect", tiny_gguf, "--json").out)


def test_inspect_one_key(cli: Any, tiny_gguf: Path) -> None:
    assert cli("inspect", tiny_gguf, "--kv", "general.architecture").out == "bitnet-b1.58\n"
    tokens = json.loads(cli("inspect", tiny_gguf, "--kv", "tokenizer.ggml.tokens").out)
    assert len(tokens) == bitconv.load(tiny_gguf).vocab_size
    wrong = cli("inspect", tiny_gguf, "--kv", "general.architectur")
    assert wrong.code == 3
    assert "did you mean general.architecture" in wrong.err


def test_inspect_shows_files_that_cannot_run(cli: Any, tmp_path: Path) -> None:
    """An unknown tensor type, TL2, not-a-number values and terminal codes are shown, not refused."""
    file = tmp_path / "strange.gguf"
    keys = [
        key("general.architecture", "str", "bitnet-b1.58"),
        key("general.file_type", "u32", 39),
        key("strange.nan", "f32", math.nan),
        key("strange.text", "str", "\x1b[31mred"),
        key("strange.empty", "arr[str]", []),
    ]
    tl2_bytes = 256 * 32 // 2 * 4 // 8 + 32
    file.write_bytes(simple([("a", (7, 3), 200, 64), ("b", (256, 32), 39, tl2_bytes)], keys))
    outcome = cli("inspect", file, "--tensors")
    assert outcome.code == 0, outcome.err
    assert "runs here: no: " in outcome.out
    assert "unknown(200)" in outcome.out
    assert "TL2" in outcome.out
    assert "\x1b" not in outcome.out
    value = json.loads(cli("inspect", file, "--json").out)
    assert value["metadata"]["strange.nan"]["value"] == "nan"
    assert value["file_type"] == "TL2"
    assert value["tokenizer"] == {}
    assert json.loads(cli("inspect", file, "--kv", "strange.empty").out) == []


def test_one_long_name_does_not_widen_every_row(cli: Any, tmp_path: Path) -> None:
    """65 536 rows as wide as the longest allowed name would be 4 GB."""
    file = tmp_path / "long.gguf"
    file.write_bytes(simple([], [key("k" * 60000, "u32", 1), *(key(f"k{i}", "u32", i) for i in range(100))]))
    outcome = cli("inspect", file)
    assert outcome.code == 0
    assert len(outcome.out) < 80_000


@pytest.mark.skipif(SHARED is None, reason="needs the public vocabulary files")
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3", "falcon"])
def test_inspect_and_tokenize_work_on_vocabularies(cli: Any, name: str) -> None:
    assert SHARED is not None
    file = SHARED / "data" / "tokenizers" / "gguf-vocab" / f"ggml-vocab-{name}.gguf"
    value = json.loads(cli("inspect", file, "--json").out)
    assert value["tokenizer"]["tokens"] > 1000
    assert value["problem"]
    assert cli("tokenize", file, "Hello world").code == 0


def test_terminal_codes_are_escaped() -> None:
    assert printable("a\x1b[31mb\x9bc\u202ed") == "a\\x1b[31mb\\x9bc\\u202ed"
    assert printable("é\n日", keep="\n") == "é\n日"


def test_tokenize_prints_ids_and_pieces(cli: Any, tiny_gguf: Path) -> None:
    model = bitconv.load(tiny_gguf)
    ids = model.tokenize("Return é")
    assert json.loads(cli("tokenize", tiny_gguf, "Return é", "--ids").out) == ids
    assert json.loads(cli("tokenize", tiny_gguf, "--ids", stdin="Return é").out) == ids
    assert json.loads(cli("tokenize", "-m", tiny_gguf, "-p", "-", "--ids", stdin="Return é").out) == ids
    assert json.loads(cli("tokenize", tiny_gguf, "Return é", "--ids", "--no-bos").out) == ids[1:]
    lines = cli("tokenize", tiny_gguf, "Return é").out.splitlines()
    assert [int(line.split()[0]) for line in lines] == ids


def test_perplexity_is_the_library_s_and_a_gate(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")[:6000]
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    options = ("perplexity", tiny_gguf, "-f", file, "-c", 64, "--chunks", 4)
    result = bitconv.perplexity(bitconv.load(tiny_gguf), text, 64, chunks=4)
    value = json.loads(cli(*options, "--json").out)
    assert value["perplexity"] == result.perplexity
    assert value["tokens"] == result.tokens == 4 * 31
    assert f"{result.perplexity:.4f} +/- {result.stderr:.4f}" in cli(*options).out
    assert cli(*options, "--max-ppl", result.perplexity + 1).code == 0
    above = cli(*options, "--max-ppl", result.perplexity - 1)
    assert (above.code, "above the limit" in above.err) == (1, True)
    short = cli("perplexity", tiny_gguf, "-f", file, "-c", 4096)
    assert short.code == 3
    assert "8192" in short.err


def test_doctor_names_the_choice_and_tests_the_kernels(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITCONV_ISA", raising=False)
    outcome = cli("doctor")
    assert outcome.code == 0
    for word in ("numpy", "CPU features", "chosen", "OpenMP", "threads", "self-test", "scalar"):
        assert word in outcome.out
    assert "DIFFERS" not in outcome.out
    monkeypatch.setenv("BITCONV_ISA", "scalar")
    assert "scalar (BITCONV_ISA says so)" in cli("doctor").out


def test_doctor_fails_when_a_kernel_differs(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitconv.runtime.selftest.self_test", lambda: [("sum", "avx2", False)])
    outcome = cli("doctor")
    assert outcome.code == 1
    assert "sum (avx2)" in outcome.err


def test_demo_goes_the_whole_way_and_leaves_nothing(cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(path.name for path in TINY.iterdir())
    outcome = cli("demo", "-p", "Return the")
    assert outcome.code == 0
    for word in ("convert", "Return the", "tokens/s", "perplexity"):
        assert word in outcome.out
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line.startswith(("I2_S ", "TL1 ", "TL2 "))}
    assert list(rows) == ["I2_S", "TL1", "TL2"]
    assert all(row.endswith("yes") for row in rows.values()), "the text must not depend on the type"
    assert outcome.out.count("the same matrices") == 2
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in TINY.iterdir()) == before

"""Hostile files in child processes with little memory and an alarm: only documented errors, no crash, no hang.

The cases are those of tools/fuzz_gguf.py and tools/fuzz_safetensors.py, which also run alone and repeat one case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import fuzz_misbehaving
from tests.paths import REPOSITORY

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
TOOLS = REPOSITORY / "tools"


def fuzz(script: Path, cases: int, seed: int = 1) -> dict[str, Any]:
    """Run a fuzz script; its report."""
    command = [sys.executable, str(script), "--json", "--cases", str(cases), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.stdout.startswith("{"), done.stderr
    return json.loads(done.stdout)


def show(capsys: pytest.CaptureFixture[str], title: str, report: dict[str, Any]) -> None:
    with capsys.disabled():
        print(f"\n{title}: {report['cases']} cases, slowest {report['seconds']:.2f} s, "
              f"most memory beyond the file {report['peak_bytes'] >> 20} MiB")  # fmt: skip
        for stage, count in sorted(report["stages"].items()):
            print(f"{count:7}  {stage}")


def hostile_ggufs_survive(capsys: pytest.CaptureFixture[str], cases: int, seed: int) -> None:
    report = fuzz(TOOLS / "fuzz_gguf.py", cases, seed)
    show(capsys, "hostile GGUF files", report)
    assert not report["failures"], "\n".join(report["failures"])
    assert report["cases"] == cases
    reached = report["stages"]
    assert reached["3 shown by inspect --tensors"] >= cases / 4
    for stage in ("1 refused by the reader", "4 refused by load", "5 made a forward step",
                  "5 refused during the forward step", "6 refused by the tokenizer", "7 verified as damaged",
                  "8 refused by quantize", "8 quantized and found equal"):  # fmt: skip
        assert reached[stage] >= cases / 100, stage


def hostile_checkpoints_survive(capsys: pytest.CaptureFixture[str], cases: int, seed: int) -> None:
    report = fuzz(TOOLS / "fuzz_safetensors.py", cases, seed)
    show(capsys, "hostile checkpoints", report)
    assert not report["failures"], "\n".join(report["failures"])
    assert report["cases"] == cases
    reached = report["stages"]
    assert reached["2 passed the header"] >= cases / 4
    for stage in ("1 refused by the reader", "3 refused by convert", "3 converted"):
        assert reached[stage] >= cases / 20, stage


def test_hostile_ggufs_give_documented_errors_only(capsys):
    hostile_ggufs_survive(capsys, 2000, seed=1)


def test_hostile_checkpoints_give_documented_errors_only(capsys):
    hostile_checkpoints_survive(capsys, 600, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 104))
def test_more_hostile_files(capsys, seed):
    hostile_ggufs_survive(capsys, 20000, seed)
    hostile_checkpoints_survive(capsys, 5000, seed)


@pytest.mark.skipif(SANITIZED, reason="memory is not limited under the sanitizer")
def test_the_harness_sees_every_kind_of_failure():
    report = fuzz(Path(fuzz_misbehaving.__file__), len(fuzz_misbehaving.SINS))
    found = {int(f.split(":")[0].removeprefix("case ")): f for f in report["failures"]}
    words = {1: "hang", 2: "crash (exit -11)", 3: "ValueError", 4: "RuntimeWarning", 5: "MemoryError",
             7: "crash (exit 0)", 8: "hang"}  # fmt: skip
    assert found.keys() == words.keys()
    for index, word in words.items():
        assert word in found[index]
    assert report["stages"] == {"fine": 2, "touch": 1} and report["cases"] == len(fuzz_misbehaving.SINS)
    assert 145 << 20 <= report["peak_bytes"] < 200 << 20  # "touch" holds 150 MiB for a moment

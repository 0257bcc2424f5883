"""The scripts in benchmarks/ run, and what they measure beside does the same work; no figure is judged here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitconv.tensor_types import tensor_type
from tests.conftest import TINY
from tests.paths import REPOSITORY


@pytest.fixture(scope="module")
def plain_torch() -> Any:
    """benchmarks/convert_torch.py as a module."""
    pytest.importorskip("torch")
    path = REPOSITORY / "benchmarks" / "convert_torch.py"
    spec = importlib.util.spec_from_file_location("convert_torch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["i2_s", "tl1", "tl2", "tq1_0", "tq2_0"])
@pytest.mark.parametrize("shape", [(1536, 1536), (96, 512), (128, 768)])
def test_plain_torch_packs_the_same_bytes(plain_torch: Any, kind: str, shape: tuple[int, int]) -> None:
    import torch

    weight = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32)).bfloat16()
    weight[3, 256:] = 0  # a block of zeros
    trits, multiplier = plain_torch.absmean(weight)
    expected = tensor_type(kind).pack(trits.numpy(), multiplier).tobytes()
    if kind.startswith("tq"):  # the companion of the exact form
        expected += np.float32(tensor_type(kind).companion_scale(multiplier)).tobytes()
    assert plain_torch.pack(weight, kind) == expected


def test_the_conversion_is_measured_and_nothing_left_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "convert_speed.py"), "--folder", str(tmp_path)]
    options = ["--checkpoint", str(TINY), "--types", "i2_s,tl2", "--runs", "2", "--no-torch"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert not done.stderr
    rows = {line[:16].strip(): line[16:].split() for line in done.stdout.splitlines()[2:-1]}
    assert list(rows) == ["cp", "bitconv i2_s", "bitconv tl2"]
    for name, numbers in rows.items():
        assert len(numbers) == (3 if name == "cp" else 4 + 2)  # seconds, MB/s, peak; median ratio, ratio of each run
        assert all(float(number) >= 0 for number in numbers)  # 0.00 beside a copy of so little
    assert not list(tmp_path.iterdir())

"""Fixtures that many tests share."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

TINY = REPOSITORY / "models" / "tiny"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint in I2_S, converted once."""
    import bitconv

    if not (TINY / "config.json").is_file():
        pytest.skip("models/tiny is not there")
    path = tmp_path_factory.mktemp("tiny") / "tiny-i2_s.gguf"
    bitconv.convert(TINY, path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the command line in this process: cli("run", path, stdin="text") -> Outcome."""
    from bitconv.cli import main

    def run(*args: object, stdin: str | bytes = b"") -> Outcome:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run

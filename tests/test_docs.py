"""The documentation is true: generated pages are current, everything is mentioned, README's commands run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitconv.cli.app import COMMANDS
from bitconv.models import families
from bitconv.tensor_types import tensor_types
from tests.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def document(name: str) -> str:
    path = REPOSITORY / "docs" / name
    assert path.is_file(), f"docs/{name} is missing"
    return path.read_text(encoding="utf-8")


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("gen_cli_docs", REPOSITORY / "tools" / "gen_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cli_page_is_current() -> None:
    assert document("cli.md") == generator().page(), "run make docs"


def test_readme_begins_with_the_packages_to_install() -> None:
    assert "apt install make gcc python3-dev python3-venv" in README.splitlines()[0]
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_cli_page_and_in_the_readme(name: str) -> None:
    assert f"\n## bitconv {name}\n" in document("cli.md")
    assert f"bitconv {name}" in README or f"make {name}" in README


@pytest.mark.parametrize("name", [t.name for t in tensor_types()])
def test_every_tensor_type_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", document("FORMAT.md"))
    assert re.search(rf"\b{name}\b", README)


@pytest.mark.parametrize(
    "name", sorted({n for f in families() for n in (*f.hf_architectures, *f.gguf_architectures)})
)
def test_every_architecture_is_documented(name: str) -> None:
    assert f"`{name}`" in README
    assert f"`{name}`" in document("FORMAT.md")


@pytest.mark.parametrize(
    "page", [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def workplace(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory as the README's reader has it: models/tiny, and bitconv on the path."""
    (tmp_path / "models").symlink_to(REPOSITORY / "models")
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "bitconv"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bitconv "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    return tmp_path, {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


def test_readme_commands_run(workplace: tuple[Path, dict[str, str]]) -> None:
    folder, environment = workplace
    (commands,) = blocks("console")
    done = subprocess.run(
        ["sh", "-ex", "-c", commands],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "perplexity " in done.stdout


def test_readme_python_runs(workplace: tuple[Path, dict[str, str]]) -> None:
    folder, environment = workplace
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

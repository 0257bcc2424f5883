"""The package builds from a clean clone and from its sdist, with gcc and clang; run with -m slow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a user who clones the last commit has."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    target = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(target)], check=True)
    return target


def build_wheel(source: Path, target: Path, compiler: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(target), str(source)],
        check=True,
        env={**os.environ, "CC": compiler},
    )
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_clone_builds_and_runs(clone: Path, tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    wheel = build_wheel(clone, tmp_path / "wheel", compiler)
    names = zipfile.ZipFile(wheel).namelist()
    for module in ("_kernels", "_text"):
        assert any(name.startswith(f"bitconv/{module}.") and name.endswith(".so") for name in names)
    assert "bitconv/py.typed" in names
    assert not [
        name for name in names if name.startswith(("tests/", "tools/")) or name.endswith((".h", ".pyx"))
    ]
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from bitconv.cli import main; sys.exit(main(['doctor']))"],
        cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "self-test" in done.stdout


def test_the_sdist_holds_what_a_build_needs(clone: Path, tmp_path: Path) -> None:
    code = "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=clone, check=True, capture_output=True)
    (archive,) = tmp_path.glob("bitconv-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        tar.extractall(tmp_path / "sdist", filter="data")
    for name in (
        "setup.py",
        "LICENSE",
        "bitconv/_kernels.pyx",
        "bitconv/_text.pyx",
        "bitconv/csrc/dispatch.h",
        "models/tiny/config.json",
    ):
        assert name in names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_kernels.c", "_text.c"))]
    (folder,) = (tmp_path / "sdist").iterdir()
    build_wheel(folder, tmp_path / "wheel", "gcc")

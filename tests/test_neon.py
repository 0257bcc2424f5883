"""Every kernel equals its scalar form in a plain C program, on this CPU and on emulated aarch64 ones."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bitconv import _kernels
from tests.paths import REPOSITORY

HARNESS = REPOSITORY / "tests" / "neon" / "harness.c"
# those of setup.py but for -O3, which takes half a minute and so is left to -m slow
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror"]
GCC, GCC_O3, CLANG_O3 = ("gcc", "-O1"), ("gcc", "-O3"), ("clang", "-O3")
CROSS = ("aarch64-linux-gnu-gcc", "-static", "-O1")
CROSS_O3 = ("aarch64-linux-gnu-gcc", "-static", "-O3")
CROSS_CLANG_O3 = ("clang", "--target=aarch64-linux-gnu", "-static", "-O3")
CROSS_CLANG_DOT_O3 = (*CROSS_CLANG_O3, "-march=armv8.2-a+dotprod")  # old clangs compile it in no other way

SHARED_KERNELS = ["tl1_gemv_neon", "tl1_panel_neon", "tl2_gemv_scalar", "tq2_0_panel_scalar", "tile", "forward"]
NEON = {"neon": ["i2_s_gemv_neon", "i2_s_panel_neon", *SHARED_KERNELS]}
NEON_AND_DOT = {"neondot": ["i2_s_gemv_neondot", "i2_s_panel_neondot", *SHARED_KERNELS], **NEON}
EMULATED = [
    pytest.param(CROSS, "max", NEON_AND_DOT, id="gcc-dotprod"),
    pytest.param(CROSS, "cortex-a72", NEON, id="gcc-without-dotprod"),
    pytest.param(CROSS_O3, "max", NEON_AND_DOT, id="gcc-O3-dotprod", marks=pytest.mark.slow),
    pytest.param(CROSS_O3, "cortex-a72", NEON, id="gcc-O3-without-dotprod", marks=pytest.mark.slow),
    pytest.param(CROSS_CLANG_O3, "cortex-a72", NEON, id="clang-O3-without-dotprod", marks=pytest.mark.slow),
    pytest.param(CROSS_CLANG_DOT_O3, "max", NEON_AND_DOT, id="clang-O3-dotprod", marks=pytest.mark.slow),
]
HERE = [
    pytest.param(GCC, id="gcc"),
    pytest.param(GCC_O3, id="gcc-O3", marks=pytest.mark.slow),
    pytest.param(CLANG_O3, id="clang-O3", marks=pytest.mark.slow),
]

Harness = Callable[..., list[str]]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """Compile the harness (once per compiler) and run it, under qemu when a CPU is named: the lines it prints."""
    directory = tmp_path_factory.mktemp("harness")
    programs: dict[tuple[str, ...], Path] = {}

    def compiled(compiler: tuple[str, ...]) -> Path:
        if shutil.which(compiler[0]) is None:
            pytest.skip(f"{compiler[0]} is not installed")
        if compiler not in programs:
            probe = [*compiler, "-x", "c", "-", "-lm", "-o", str(directory / "probe")]
            source = "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n"
            if subprocess.run(probe, input=source, capture_output=True, text=True).returncode:
                pytest.skip(f"{' '.join(compiler)} has no C library")
            program = directory / f"harness{len(programs)}"
            include = f"-I{REPOSITORY / 'bitconv' / 'csrc'}"
            command = [*compiler, *FLAGS, include, str(HARNESS), "-o", str(program), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            programs[compiler] = program
        return programs[compiler]

    def run(compiler: tuple[str, ...], cpu: str | None = None) -> list[str]:
        if cpu is not None and shutil.which("qemu-aarch64") is None:
            pytest.skip("qemu-aarch64 is not installed")
        emulator = [] if cpu is None else ["qemu-aarch64", "-cpu", cpu]
        done = subprocess.run([*emulator, str(compiled(compiler))], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run


def kernels_of(lines: list[str]) -> dict[str, list[str]]:
    """ISA -> the kernels that were compared, in order."""
    found: dict[str, list[str]] = {}
    for words in map(str.split, lines):
        if words[-1] == "equal":
            found.setdefault(words[0], []).append(words[1])
    return found


def logits_of(lines: list[str]) -> set[str]:
    return {line.split()[-1] for line in lines if " logits " in line}


@pytest.mark.parametrize("compiler", HERE)
def test_kernels_equal_scalar_on_this_cpu(harness: Harness, compiler: tuple[str, ...]) -> None:
    compared = kernels_of(harness(compiler))
    assert {*compared, "scalar"} == set(_kernels.isas())
    assert all(kernels[-1] == "forward" for kernels in compared.values())


@pytest.mark.parametrize(("compiler", "cpu", "expected"), EMULATED)
def test_kernels_equal_scalar_on_aarch64(
    harness: Harness, compiler: tuple[str, ...], cpu: str, expected: dict[str, list[str]]
) -> None:
    compared = kernels_of(harness(compiler, cpu))
    assert list(compared) == list(expected)  # best first
    for isa, kernels in expected.items():
        assert set(kernels) <= set(compared[isa])


def test_logits_have_the_same_bits_on_both_architectures(harness: Harness) -> None:
    here, there = logits_of(harness(GCC)), logits_of(harness(CROSS, "max"))
    if here:
        assert len(here | there) == 1
    else:
        pytest.skip("this CPU has scalar kernels only")

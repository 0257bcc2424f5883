"""Builds the kernels. Four decisions: OpenMP, optimisation, development checks, and which edits rebuild."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MSVC = sys.platform == "win32"


def openmp_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags of OpenMP, found by building a program with them; ([], []) when none works."""
    if MSVC:
        return ["/openmp"], []
    candidates = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":
        candidates.append((["-Xpreprocessor", "-fopenmp"], ["-lomp"]))
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    for compile_flags, link_flags in candidates:
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "probe.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() > 0 ? 0 : 1; }\n")
            command = [*compiler, *compile_flags, str(source), "-o", str(Path(directory, "probe")), *link_flags]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return compile_flags, link_flags
    if os.environ.get("BITCONV_REQUIRE_OPENMP") == "1":
        sys.exit("bitconv: BITCONV_REQUIRE_OPENMP=1, but the C compiler cannot build with OpenMP")
    print("bitconv: *** the C compiler has no OpenMP: bitconv will run on ONE THREAD ***", file=sys.stderr)
    return [], []


def extensions() -> list[Extension]:
    """The kernels, and the strings of vocabularies, which are plain C without them."""
    compile_flags, link_flags = openmp_flags()
    if not MSVC:
        # -ffp-contract=off: a fused multiply-add is written out or does not happen, so every CPU gives the same bits
        compile_flags += ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
    if os.environ.get("BITCONV_DEV") == "1":
        compile_flags += ["-Wall", "-Wextra", "-Wno-unused-function", "-Wno-cast-function-type"]
    if os.environ.get("BITCONV_SANITIZE") == "1":
        compile_flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        compile_flags += ["-fno-omit-frame-pointer", "-g", "-O1"]
        link_flags += ["-fsanitize=address,undefined"]
    headers = [str(path) for path in sorted([*Path("bitconv/csrc").glob("*.h"), *Path("bitconv").glob("*.pxi")])]
    return [
        Extension(
            f"bitconv.{name}",
            [f"bitconv/{name}.pyx"],
            include_dirs=["bitconv"],
            depends=depends,
            extra_compile_args=compile_flags,
            extra_link_args=link_flags,
        )
        for name, depends in (("_kernels", headers), ("_text", []))
    ]


setup(ext_modules=cythonize(extensions(), language_level=3))

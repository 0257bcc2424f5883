"""bitconv doctor: what this machine offers, what bitconv chose, and whether its kernels are right."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import click

from bitconv import __version__
from bitconv.cli.inspect import table
from bitconv.cli.state import state_options
from bitconv.errors import BitconvError

PACKAGES = ("numpy", "gguf", "safetensors", "click", "tqdm", "tokenizers", "jinja2")
OPTIONAL = ("torch", "sentencepiece", "huggingface_hub")


@click.command(epilog="Example: bitconv doctor")
@state_options
def doctor() -> None:
    """Show what this machine offers, and test the kernels.

    CPU features, kernels, threads and versions; every kernel is compared with the scalar one.
    Exit code 1 when a kernel fails. Paste the output into bug reports.
    """
    click.echo(f"bitconv {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for title, rows in (("packages", package_rows()), ("kernels", kernel_rows()), ("threads", thread_rows())):
        click.echo(f"\n{title}")
        for line in table(rows):
            click.echo(line)
    failed = self_test()
    if failed:
        raise BitconvError(
            f"{len(failed)} kernels differ from scalar: {', '.join(failed)}\n"
            "set BITCONV_ISA=scalar and report this output"
        )


def package_rows() -> list[tuple[str, str]]:
    """(name, version) of what bitconv needs and of what it can use."""
    rows = [(name, _version(name) or "missing: pip install " + name) for name in PACKAGES]
    return rows + [(name, _version(name) or "not installed (optional)") for name in OPTIONAL]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def kernel_rows() -> list[tuple[str, str]]:
    """CPU features and the choice between the compiled instruction sets, with its reason."""
    from bitconv import _kernels
    from bitconv.runtime.model import choose_isa

    reason = "BITCONV_ISA says so" if os.environ.get("BITCONV_ISA") else "the best that this CPU runs"
    present = [name for name, found in _kernels.cpu_features().items() if found]
    missing = [name for name, found in _kernels.cpu_features().items() if not found]
    return [
        ("machine", platform.machine()),
        ("CPU features", " ".join(present) or "none that matter"),
        ("missing features", " ".join(missing) or "none"),
        ("compiled", ", ".join(_kernels.all_isas())),
        ("usable here", ", ".join(_kernels.isas())),
        ("chosen", f"{choose_isa()} ({reason})"),
        ("OpenMP", "yes" if _kernels.has_openmp() else "no: one thread only; rebuild with libgomp or libomp"),
    ]


def thread_rows() -> list[tuple[str, str]]:
    """How many threads a run uses, and why."""
    from bitconv.runtime.threads import cores_of, default_threads, usable_cpus

    (count, reason), cpus = default_threads(), usable_cpus()
    return [
        ("hardware threads", str(os.cpu_count())),
        ("affinity", f"{len(cpus)} of them, on {cores_of(cpus)} cores"),
        ("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "not set")),
        ("default", f"{count} ({reason})"),
    ]


def self_test() -> list[str]:
    """Print one line per kernel and instruction set; returns those that differ from scalar."""
    from bitconv.runtime.selftest import self_test as run

    click.echo("\nself-test")
    results = run()
    for line in table([(name, isa, "ok" if ok else "DIFFERS") for name, isa, ok in results]):
        click.echo(line)
    return [f"{name} ({isa})" for name, isa, ok in results if not ok]

"""The command line as a whole: help, exit codes, error lines, warnings, pipes, what it imports."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest

from bitconv import errors
from bitconv.cli.app import COMMANDS
from bitconv.cli.app import cli as group
from bitconv.cli.state import State

PYTHON = [sys.executable, "-m", "bitconv"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_page_has_an_example(cli: Any, name: str) -> None:
    page = cli(name, "--help")
    assert page.code == 0
    assert f"Example: bitconv {name}" in page.out


def test_overview_names_every_command(cli: Any) -> None:
    page = cli("--help")
    assert page.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in page.out
    assert "..." not in page.out.split("Commands:")[1], "a summary was cut off"


def test_every_module_of_the_package_that_defines_a_command_is_listed() -> None:
    folder = Path(group.callback.__code__.co_filename).parent  # type: ignore[union-attr]
    defined = {path.stem for path in folder.glob("*.py") if "@click.command" in path.read_text()}
    assert defined == set(COMMANDS)
    assert all(isinstance(group.get_command(click.Context(group), name), click.Command) for name in COMMANDS)


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--version"], 0, "bitconv, version"),
        (["nonsense"], 2, "No such command"),
        (["run"], 2, "which model?"),
        (["run", "m.gguf", "-p", "a", "-f", "b"], 2, "more than one prompt"),
        (["run", "m.gguf", "a", "b"], 2, "more than one prompt"),
        (["run", "m.gguf", "-ctk", "q9", "-p", "x"], 2, "q9"),
        (["run", "m.gguf", "-p", "x", "--nonsense"], 2, "--nonsense"),
        (["run", "m.gguf", "-cnv", "--json"], 2, "--json"),
        (["run", "absent.gguf", "-p", "x"], 3, "absent.gguf"),
        (["run", "absent.gguf", "-p", "x", "-ctk", "f16", "-ctv", "f32"], 5, "one type"),
        (["run", "m.gguf", "-f", "absent.txt"], 3, "absent.txt"),
        (["inspect", "."], 3, "directory"),
        (["inspect", __file__], 4, "not a GGUF file"),
        (["convert", "absent-dir"], 3, "absent-dir"),
        (["convert", ".", "--type", "q4_k"], 2, "i2_s"),
        (["perplexity", "absent.gguf", "-f", "absent.txt"], 3, "absent.txt"),
        (["perplexity", "-f", __file__], 2, "one model"),
        (["tokenize", "absent.gguf", "x"], 3, "absent.gguf"),
        (["demo", "--checkpoint", "absent-dir"], 3, "absent-dir"),
    ],
)
def test_exit_code_and_message(cli: Any, args: list[str], code: int, text: str) -> None:
    outcome = cli(*args)
    assert outcome.code == code, outcome.err
    assert text in outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    if code >= 3:
        lines = outcome.err.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "hint"], "a cause, and a next step"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BitconvError("cause\nnext"), 1),
        (errors.InputError("cause\nnext"), 3),
        (errors.FormatError("cause\nnext"), 4),
        (errors.UnsupportedError("cause\nnext"), 5),
        (errors.ResourceError("cause\nnext"), 6),
        (MemoryError("cause"), 6),
        (OSError(28, "cause"), 6),
        (OSError(5, "cause"), 3),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_errors_become_exit_codes(
    cli: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    import bitconv

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(bitconv, "convert", fail, raising=False)
    monkeypatch.setattr("bitconv.cli.app._forget_stdout", lambda: None)
    quiet = cli("convert", "x")
    assert quiet.code == code
    assert "Traceback" not in quiet.err
    assert ("cause" in quiet.err) == (code < 100)
    if str(error) == "cause\nnext":
        assert quiet.err == "error: cause\nhint: next\n"
        assert "Traceback" in cli("convert", "x", "-v").err


def test_indented_lines_of_an_error_stay_as_they_are(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitconv

    message = "cause\n  row 1\n  row 2\nnext"

    def fail(*args: object, **options: object) -> None:
        raise errors.UnsupportedError(message)

    monkeypatch.setattr(bitconv, "convert", fail, raising=False)
    assert cli("convert", "x").err == "error: cause\n  row 1\n  row 2\nhint: next\n"
    message = "cause\nnext:\n  line to type"
    assert cli("convert", "x").err == "error: cause\nhint: next:\n  line to type\n"


def test_a_library_warning_is_one_line(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitconv

    def warn(*args: object, **options: object) -> None:
        for _ in range(2):
            warnings.warn("first\n  second", errors.BitconvWarning, stacklevel=1)
        raise errors.BitconvError("stop")

    monkeypatch.setattr(bitconv, "convert", warn, raising=False)
    assert cli("convert", "x").err == "warning: first second\n" * 2 + "error: stop\n"


def run_process(
    *args: object, stdout: Any = subprocess.PIPE, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PYTHON, *map(str, args)], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, **options
    )


def test_a_closed_pipe_is_quiet(tiny_gguf: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = run_process("run", tiny_gguf, "-p", "x", "-n", 5, "-q", stdout=closed)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_an_error_without_a_traceback(tiny_gguf: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run_process("tokenize", tiny_gguf, "x", stdout=full)
    assert done.returncode == 6
    assert done.stderr.startswith(b"error: the disk is full")
    assert done.stderr.count(b"\n") == 2


WATCHED_RUN = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append((str(args[0]), args[1])) if event == "open" else None)
from bitconv.cli import main
code = main(sys.argv[1:])
print(json.dumps([code, opened, sorted(sys.modules)]), file=sys.stderr)
"""


def watched(*args: object) -> tuple[int, list[tuple[str, str | None]], set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_RUN, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    code, opened, modules = json.loads(done.stderr.splitlines()[-1])
    return code, opened, set(modules)


HEAVY = {
    "torch",
    "transformers",
    "gguf",
    "safetensors",
    "hypothesis",
    "pytest",
    "tqdm",
    "jinja2",
    "sentencepiece",
}


def test_run_imports_and_opens_only_what_it_needs(tiny_gguf: Path) -> None:
    code, opened, modules = watched("run", tiny_gguf, "-p", "Return the", "-n", 3, "-q")
    assert code == 0
    assert not modules & HEAVY
    ours = {name for name in modules if name.startswith("bitconv.cli.")}
    assert not ours & {f"bitconv.cli.{name}" for name in COMMANDS if name != "run"}
    code_suffixes = (".py", ".pyc", ".so", ".pth", ".zip")
    system = ("/proc", "/sys", "/etc", "/dev", "/usr/share/zoneinfo")
    data = {path for path, _ in opened if not path.endswith(code_suffixes) and not path.startswith(system)}
    assert data == {str(tiny_gguf)}
    written = {
        path for path, mode in opened if mode and set(mode) & set("wax+") and not path.endswith(".pyc")
    }
    assert not written


def test_help_imports_no_library(tiny_gguf: Path) -> None:
    code, _, modules = watched("--help")
    assert code == 0
    assert not modules & (HEAVY | {"numpy", "tokenizers", "bitconv.runtime", "bitconv._kernels"})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr, quiet, shown in (
        (Terminal(), False, True),
        (Terminal(), True, False),
        (io.StringIO(), False, False),
    ):
        monkeypatch.setattr(sys, "stderr", stderr)
        state = State()
        state.quiet = quiet
        with state.progress("working", "B") as update:
            assert (update is not None) == shown
            if update:
                update(5, 10)
                update(10, 10)
        assert ("working" in stderr.getvalue()) == shown

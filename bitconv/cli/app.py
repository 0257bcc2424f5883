"""The bitconv command: finds its subcommands when they are asked for, and turns errors into exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

from bitconv import __version__
from bitconv.cli.state import State
from bitconv.errors import (
    BitconvError,
    BitconvWarning,
    FormatError,
    InputError,
    ResourceError,
    UnsupportedError,
)

COMMANDS = (
    "convert", "quantize", "verify", "run", "chat", "inspect", "perplexity", "bench", "tokenize", "doctor", "demo",
)  # fmt: skip
"""In the order of the help page. Command NAME is the object `NAME` of the module bitconv.cli.NAME."""

INTERRUPTED, CLOSED_PIPE = 130, 141

NEXT_STEPS: dict[type[BitconvError], str] = {
    InputError: "check the path and the options; --help shows an example",
    FormatError: "the file is damaged or not what it claims to be; download or convert it again",
    UnsupportedError: "the README lists what is supported",
    ResourceError: "free some memory or disk space and try again",
}
"""What to do where an error does not say it itself."""


class LazyGroup(click.Group):
    """A group whose commands are imported one by one, so that each run loads only what it needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"bitconv.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="bitconv")
def cli() -> None:
    """BitNet b1.58 checkpoints to GGUF, and GGUF to text on an ordinary CPU.

    \b
    Examples:
      bitconv demo
      bitconv convert ./bitnet-b1.58-2B-4T
      bitconv run model-i2_s.gguf -p "Once upon a time"

    Exit codes: 0 success, 1 a check failed, 2 wrong options, 3 input missing or unreadable, 4 malformed file,
    5 valid but not supported, 6 out of disk or memory, 130 interrupted, 141 closed pipe.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback for an error that a user can cause."""
    # NumPy is not imported yet. No command uses its BLAS, whose threads would spin beside ours for a while.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    state = State()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", BitconvWarning)
        try:
            code = _invoke(list(sys.argv[1:] if args is None else args), state)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            _forget_stdout()
            return CLOSED_PIPE
        except KeyboardInterrupt:
            return INTERRUPTED
        except click.exceptions.Abort:
            return INTERRUPTED
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (BitconvError, MemoryError, OSError) as error:
            if state.verbose:
                traceback.print_exc()
            if isinstance(error, OSError):
                _forget_stdout()  # it may be stdout itself that failed, and would fail again at exit
            return _report(_as_bitconv_error(error))


def _invoke(args: list[str], state: State) -> int:
    """click's own main() would turn a closed pipe into exit 1 and hide Ctrl-C; this lets both through."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" instead of failing
    try:
        with cli.make_context("bitconv", args, obj=state) as context:
            cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _as_bitconv_error(error: Exception) -> BitconvError:
    if isinstance(error, BitconvError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(
            f"out of memory {error}".rstrip() + "\nuse a smaller context (-c) or a smaller model"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"the disk is full: {error}\nfree some space or write elsewhere with -o")
    name = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return InputError(f"{name}{getattr(error, 'strerror', None) or error}")


def _report(error: BitconvError) -> int:
    """First line the cause, an unindented one after it the next step; indented lines (tables) as they are."""
    cause, *rest = str(error).splitlines() or ["unknown error"]
    if all(line.startswith(" ") for line in rest) and type(error) in NEXT_STEPS:
        rest.append(NEXT_STEPS[type(error)])
    click.echo(f"error: {cause}", err=True)
    for line in rest:
        click.echo(line if line.startswith(" ") else f"hint: {line}", err=True)
    return error.exit_code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, BitconvWarning):
        click.echo(f"warning: {' '.join(str(message).split())}", err=True)
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


def _forget_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's flush at exit finds no closed pipe."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())

"""What every command shares: verbosity, notes on stderr, and the progress bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

Progress = Callable[[int, int], None]
F = TypeVar("F", bound=Callable[..., Any])


class State:
    """Verbosity of one run of the program, and where its notes go."""

    def __init__(self) -> None:
        self.verbose = False
        self.quiet = False

    def note(self, text: str) -> None:
        """Say something on stderr, unless -q."""
        if not self.quiet:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        """Say something on stderr with -v only."""
        if self.verbose:
            click.echo(text, err=True)

    @contextlib.contextmanager
    def progress(self, label: str, unit: str) -> Iterator[Progress | None]:
        """A bar on stderr fed by callback(done, total); None where no bar shows (-q, or stderr no terminal)."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        from tqdm import tqdm

        with tqdm(desc=label, unit=unit, unit_scale=unit == "B", unit_divisor=1024, leave=False) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update


def state_options(function: F) -> F:
    """Add -v and -q; the command takes the State with click.pass_obj."""

    def remember(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
        def callback(context: click.Context, parameter: click.Parameter, value: bool) -> None:
            if value:
                setattr(context.ensure_object(State), name, True)

        return callback

    quiet = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=remember("quiet"),
        help="No notes on stderr.",
    )
    verbose = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=remember("verbose"),
        help="More on stderr, and a traceback after an error.",
    )
    return verbose(quiet(function))

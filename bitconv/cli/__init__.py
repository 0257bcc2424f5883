"""The command line: the only place that prints, exits, or knows click and tqdm."""

from __future__ import annotations

from bitconv.cli.app import main

__all__ = ["main"]

"""The errors that bitconv raises, each with the exit code that the command line gives it."""

from __future__ import annotations


class BitconvError(Exception):
    """Base of every error raised on purpose; also a failed check, such as a perplexity above its limit."""

    exit_code = 1


class InputError(BitconvError):
    """A path or an argument is missing, unreadable or of the wrong kind."""

    exit_code = 3


class FormatError(BitconvError):
    """A file is malformed or hostile; the message names the byte offset, key or tensor."""

    exit_code = 4


class UnsupportedError(BitconvError):
    """The input is valid but not implemented; the message lists what is."""

    exit_code = 5


class ResourceError(BitconvError):
    """The machine ran out of disk, memory or context."""

    exit_code = 6


class BitconvWarning(UserWarning):
    """Something a user should know that does not stop the work; the command line prints it as one line."""

"""Where the weights of a model lie: in the mapped file, in memory of their own, locked there; and whether they fit."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from bitconv import machine
from bitconv.errors import BitconvWarning, ResourceError
from bitconv.models.memory import memory_of

if TYPE_CHECKING:
    from bitconv.formats.gguf import GgufFile
    from bitconv.models import Hyperparameters


def place_weights(gguf: GgufFile, *, mmap: bool, mlock: bool, threads: int) -> None:
    """Read the weights into memory unless mmap, and lock them if mlock.

    ResourceError, before anything is allocated, when they must be in memory and do not fit; a warning when the
    system does not allow to lock them.
    """
    if mmap and not mlock:
        return
    available = machine.available_memory()
    if available is not None and gguf.tensor_bytes > available:
        raise ResourceError(
            f"{gguf.path}: its weights take {gguf.tensor_bytes / 1e9:.2f} GB of memory; "
            f"{available / 1e9:.2f} GB are available\nleave out --no-mmap and --mlock, or use a smaller model"
        )
    if not mmap:
        gguf.read_into_memory(threads)
    if mlock:
        _lock(gguf)


def _lock(gguf: GgufFile) -> None:
    import resource

    try:
        gguf.lock()
    except OSError as error:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        bound = "" if limit == resource.RLIM_INFINITY else f" (at most {limit} bytes are allowed)"
        warnings.warn(
            f"{gguf.path}: {gguf.tensor_bytes} bytes of weights cannot be locked in memory{bound}: {error.strerror}; "
            "`ulimit -l unlimited` in the shell, or LimitMEMLOCK= of the service, allows it",
            BitconvWarning,
            stacklevel=4,
        )


def warn_of_shortage(gguf: GgufFile, hp: Hyperparameters, n_ctx: int, cache_type: str) -> bool:
    """Warn, with numbers, where a model exceeds the memory available; returns whether it does.

    Weights that were read into memory or locked there are no longer part of either side.
    """
    available = machine.available_memory()
    need = memory_of(hp, 0 if gguf.resident else gguf.tensor_bytes, n_ctx, cache_type)
    if available is None or need.total <= available:
        return False
    parts = f"{need.tensors / 1e9:.2f} weights, {need.keys_and_values / 1e9:.2f} keys and values"
    warnings.warn(
        f"{gguf.path}: running with a context of {n_ctx} takes {need.total / 1e9:.2f} GB of memory ({parts}, "
        f"{(need.rotary + need.scratch) / 1e9:.2f} scratch); {available / 1e9:.2f} GB are available, so every token "
        "may wait for the disk; use a smaller context (-c) or model",
        BitconvWarning,
        stacklevel=5,
    )
    return True

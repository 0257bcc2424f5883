"""What the machine has to offer: memory that is available, and memory that stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that can be used without swapping, file cache included; None where the system does not say.

    The least of the machine's MemAvailable and what the limits of this process's cgroups leave.
    """
    known = [*_machine(proc), *_cgroups(proc, cgroups)]
    return max(min(known), 0) if known else None


def _machine(proc: Path) -> Iterator[int]:
    available = _fields(proc / "meminfo").get("MemAvailable:")
    if available is not None:
        yield available * 1024


def _cgroups(proc: Path, root: Path) -> Iterator[int]:
    """What each cgroup of memory that holds this process leaves; in a container the paths may not be visible."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and controllers == "":
            base, names = root, _V2
        elif "memory" in controllers.split(","):
            base, names = root / "memory", _V1
        else:
            continue
        folder = base / path.lstrip("/")
        for one in (folder, *folder.parents):
            yield from _left(one, *names)
            if one == base:
                break


def _left(folder: Path, limit_name: str, usage_name: str, cache_names: tuple[str, ...]) -> Iterator[int]:
    limit, usage = _text(folder / limit_name).strip(), _text(folder / usage_name).strip()
    if limit.isdigit() and usage.isdigit():  # "max": no limit
        stat = _fields(folder / "memory.stat")
        yield int(limit) - int(usage) + sum(stat.get(name, 0) for name in cache_names)


def _fields(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) >= 2 and pair[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def lock(address: int, nbytes: int) -> None:
    """Keep memory from being swapped or dropped, reading what is not there yet; OSError when the system refuses."""
    import ctypes  # only programs that lock pay for it
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(nbytes)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

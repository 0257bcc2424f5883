"""What this machine can do at best: reading memory and multiplying int8, measured again and again beside the runs."""

from __future__ import annotations

import itertools
import mmap
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitconv import _kernels

STREAMS = (1, 2, 3, 4, 6)
AHEAD = (0, 1024)
CHUNKS = (0, 2 << 20)
_WINDOW = 1 << 25  # bytes of one measurement and thread: a millisecond, which a busy machine may grant undisturbed
_ROUNDS = 3  # of all patterns in one search
_KEPT = 8  # patterns that are measured again during the runs


@dataclass(frozen=True)
class Pattern:
    """One way to read memory: threads, far-apart streams of each, loads of `width` bytes.

    ahead: bytes that are prefetched ahead, 0: none. chunk: bytes that threads take in turn, 0: one part each.
    pages: "4 KiB" or "2 MiB" pages of a buffer, or the "mapped file" of a model.
    """

    threads: int
    streams: int
    width: int
    ahead: int
    chunk: int
    pages: str

    def __str__(self) -> str:
        words = [_count(self.threads, "thread") + " x " + _count(self.streams, "stream"), f"{8 * self.width}-bit loads"]
        words += [f"prefetch {self.ahead} bytes"] * (self.ahead > 0) + ["shared chunks"] * (self.chunk > 0)
        return ", ".join([*words, self.pages + ("" if self.pages == "mapped file" else " pages")])


@dataclass(frozen=True)
class Limits:
    """What the machine reached with so many threads.

    read: bytes a second, the best of all patterns with at most so many threads; pattern: which one. read_median: of the
    rounds of measurement during the runs, which is far below `read` on a machine that was busy. multiply_add: int8
    multiply-adds a second, 0: unknown.
    """

    threads: int
    read: float
    multiply_add: float
    pattern: str
    read_median: float


class Machine:
    """The limits for some thread counts, the best of everything measured so far.

    file: the mapped tensors of a model, read in the same ways as memory if they are larger than the caches.
    """

    def __init__(self, isa: str, teams: Iterable[int], file: np.ndarray | None = None) -> None:
        self.isa, self.teams = isa, sorted(set(teams))
        self.caches = cache_bytes()
        size = min(8 * self.caches, _memory() // 8)
        self._buffers = {"4 KiB": _pages(size, "MADV_NOHUGEPAGE"), "2 MiB": _pages(size, "MADV_HUGEPAGE")}
        if file is not None and file.nbytes >= size:
            self._buffers["mapped file"] = file[-file.ctypes.data % mmap.PAGESIZE :][:size]
        self._at = dict.fromkeys(self._buffers, 0)
        self.found: dict[Pattern, float] = {}
        """Bytes a second of every pattern tried, the best of its measurements."""
        self._rounds: dict[int, list[float]] = {team: [] for team in self.teams}
        self._peak = dict.fromkeys(self.teams, 0.0)

    def search(self) -> None:
        """Measure every pattern three times, and meanwhile the int8 peak at least 20 times."""
        counts = sorted({t for team in self.teams for t in _thread_counts(team)})
        for buffer in self._buffers.values():
            np.bitwise_or.reduce(buffer[:: mmap.PAGESIZE])  # map what is in the page cache
        widths = _kernels.load_widths()[:2]
        patterns = itertools.product(counts, STREAMS, widths, AHEAD, CHUNKS, self._buffers)
        for i, pattern in enumerate(itertools.starmap(Pattern, list(patterns) * _ROUNDS)):
            self._read(pattern)
            if i % 4 == 0:  # far apart in time, because others come and go
                for team in self.teams:
                    self._multiply(team, 1)

    def refresh(self, team: int) -> float:
        """Measure the int8 peak again and the patterns that were best for a thread count; returns the best: 0.05 s."""
        best = sorted((p for p in self.found if p.threads <= team), key=self.found.__getitem__, reverse=True)[:_KEPT]
        reading = max(self._read(pattern) for _ in range(_ROUNDS) for pattern in best)
        self._rounds[team].append(reading)
        self._multiply(team, 3)
        return reading

    def evict(self, team: int) -> None:
        """Read so much memory that the caches hold nothing else."""
        pattern = Pattern(team, 4, _kernels.load_widths()[0], 0, 0, "4 KiB")
        for _ in range(-(-self._buffers[pattern.pages].nbytes // (team * _WINDOW))):
            self._read(pattern)

    def limits(self, team: int) -> Limits:
        """Return the best so far; `search` comes first."""
        best = max((p for p in self.found if p.threads <= team), key=self.found.__getitem__)
        read = self.found[best]
        return Limits(team, read, self._peak[team], str(best), statistics.median(self._rounds[team] or [read]))

    def _read(self, pattern: Pattern) -> float:
        """Read the next part of a buffer: what was read before is long out of the caches when its turn comes again."""
        buffer, start, size = self._buffers[pattern.pages], self._at[pattern.pages], pattern.threads * _WINDOW
        part = buffer[start : start + size]
        self._at[pattern.pages] = 0 if start + 2 * size > buffer.nbytes else start + size
        got = _kernels.read_bandwidth(
            part, pattern.threads, pattern.streams, pattern.width, pattern.ahead, pattern.chunk
        )
        self.found[pattern] = max(got, self.found.get(pattern, 0.0))
        return got

    def _multiply(self, team: int, tries: int) -> None:
        self._peak[team] = max(self._peak[team], *(_kernels.int8_peak(self.isa, team) for _ in range(tries)))


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + "s" * (n != 1)


def _thread_counts(team: int) -> set[int]:
    """1 to team; beyond 8 only some of these."""
    return set(range(1, team + 1)) if team <= 8 else {1, 2, 4, 8, team // 4, team // 2, 3 * team // 4, team}


def _memory() -> int:
    """Bytes of memory of this machine, 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def _pages(size: int, advice: str) -> np.ndarray:
    """Bytes of memory of their own, with the advice about its pages that the system knows."""
    if hasattr(mmap, "MAP_ANONYMOUS"):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, advice):
            memory.madvise(getattr(mmap, advice))
        buffer = np.frombuffer(memory, np.uint8)
    else:
        buffer = np.empty(size, np.uint8)
    buffer[:] = 1
    return buffer


def cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of all last-level caches that this process may fill, 32 MiB where the system does not say."""
    cores: Sequence[int] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
    caches: dict[tuple[int, str], int] = {}
    for core in cores:
        for folder in (root / f"cpu{core}/cache").glob("index*"):
            try:
                level, size, shared = (
                    (folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
                )
                caches[int(level), shared] = int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]
            except (OSError, ValueError, KeyError, IndexError):
                continue
    last = max((level for level, _ in caches), default=0)
    total = sum(size for (level, _), size in caches.items() if level == last)
    return min(max(total, 1 << 23), 1 << 30) if total else 1 << 25

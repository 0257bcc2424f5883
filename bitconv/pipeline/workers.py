"""Runs tasks on several threads and hands out their results in order, with bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

_TICK = 0.1  # seconds between two looks at the progress while a task runs
_MOST_THREADS = 8  # beyond, memory and disk are the limit


class Task(NamedTuple):
    """Something to run that returns a result of about nbytes. It may wait for earlier tasks, not for later ones."""

    run: Callable[[], Any]
    nbytes: int


def default_threads() -> int:
    """Return how many threads a conversion uses when nobody says: the cores of this process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)


class Progress:
    """Bytes that are done, counted on any thread and reported on one; and the signal to stop early."""

    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._total, self._report = total, report
        self._done = self._reported = 0
        self._lock = threading.Lock()
        self._stopped = False

    def count(self, nbytes: int) -> None:
        """Count bytes; raises Stopped when nobody waits for the result any more."""
        if self._stopped:
            raise Stopped
        with self._lock:
            self._done += nbytes

    def tell(self) -> None:
        """Report what is new since the last call."""
        done = self._done
        if self._report is not None and done != self._reported:
            self._reported = done
            self._report(done, self._total)

    def stop(self) -> None:
        """Let every thread that counts give up."""
        self._stopped = True


class Stopped(BaseException):
    """A task gives up because its result is no longer wanted."""


def in_order(tasks: Iterable[Task], *, threads: int, budget: int, progress: Progress) -> Iterator[Any]:
    """Run tasks, each on one of `threads` threads, and yield their results in order.

    So many are started ahead that their results stay within budget bytes, or one that is larger. The first error in
    the order of the tasks is raised. Close the iterator (contextlib.closing) to stop what is running.
    """
    pending: deque[tuple[Future[Any], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="bitconv")
    try:
        for task in tasks:
            while pending and held + task.nbytes > budget:
                future, nbytes = pending.popleft()
                yield _result(future, progress)
                held -= nbytes
            pending.append((pool.submit(task.run), task.nbytes))
            held += task.nbytes
        while pending:
            yield _result(pending.popleft()[0], progress)
    except BaseException:
        progress.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Any], progress: Progress) -> Any:
    while not wait((future,), _TICK).done:
        progress.tell()
    progress.tell()
    return future.result()

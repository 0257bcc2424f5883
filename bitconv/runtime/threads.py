"""How many threads to use when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

from bitconv.errors import InputError

MAX_THREADS = 1024


def default_threads() -> tuple[int, str]:
    """Return the number of threads and why: OMP_NUM_THREADS, else the least of affinity and cgroup quota."""
    from bitconv import _kernels

    if not _kernels.has_openmp():
        return 1, "this build has no OpenMP"
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit() and int(wanted) > 0:
        return min(int(wanted), MAX_THREADS), "OMP_NUM_THREADS"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    if quota is not None and quota < cores:
        return quota, f"the cgroup's CPU quota (of {cores} cores)"
    return min(cores, MAX_THREADS), "the cores that this process may use"


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole cores that a container's CPU quota allows, at least 1; None without a quota."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdigit() and period.isdigit() and int(period) > 0):
        return None  # "max", or -1: no quota
    return max(1, int(quota) // int(period))


def checked_threads(threads: int | None) -> int:
    """Return a valid thread count; None means the default. InputError when it is out of range."""
    if threads is None:
        return default_threads()[0]
    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads is {threads}\nuse 1 to {MAX_THREADS}")
    return threads

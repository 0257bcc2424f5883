"""How many threads to use when nobody says."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bitconv.errors import InputError

MAX_THREADS = 1024


def default_threads() -> tuple[int, str]:
    """Return the number of threads and why: OMP_NUM_THREADS, else the lesser of usable cores and the cgroup quota."""
    from bitconv import _kernels

    if not _kernels.has_openmp():
        return 1, "this build has no OpenMP"
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit() and int(wanted) > 0:
        return min(int(wanted), MAX_THREADS), "OMP_NUM_THREADS"
    cpus = usable_cpus()
    cores = cores_of(cpus)
    quota = cgroup_cores()
    if quota is not None and quota < cores:
        return quota, f"the cgroup's CPU quota (of {cores} cores)"
    which = f", with {len(cpus)} hardware threads" if len(cpus) > cores else ""
    return min(cores, MAX_THREADS), "the cores that this process may use" + which


def usable_cpus() -> list[int]:
    """Return the hardware threads that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores_of(cpus: Iterable[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return how many cores these hardware threads belong to: one each where the system does not say.

    The threads of a core share its arithmetic and its path to memory, which one thread of a kernel fills, and
    take time from each other while they wait at a barrier.
    """
    return len({_siblings(root / f"cpu{cpu}" / "topology") or str(cpu) for cpu in cpus})


def _siblings(topology: Path) -> str | None:
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second: before Linux 5.3
        try:
            return (topology / name).read_text().strip()
        except (OSError, ValueError):
            continue
    return None


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

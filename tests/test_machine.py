"""What the system says about memory, read from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitconv import machine

GB = 1 << 30


def write(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def available(root: Path) -> int | None:
    return machine.available_memory(root / "proc", root / "cgroup")


def meminfo(root: Path, kilobytes: int) -> None:
    write(root, {"proc/meminfo": f"MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable: {kilobytes} kB"})


def test_a_system_that_says_nothing(tmp_path):
    assert available(tmp_path) is None
    write(tmp_path, {"proc/meminfo": "MemTotal: 5 kB", "proc/self/cgroup": "nonsense"})
    assert available(tmp_path) is None


def test_this_machine_says_something_plausible():
    if Path("/proc/meminfo").exists():
        found = machine.available_memory()
        assert found is not None and 1 << 20 < found < 1 << 50


def test_without_limits_it_is_that_of_the_machine(tmp_path):
    meminfo(tmp_path, 7 << 20)
    write(tmp_path, {"proc/self/cgroup": "0::/a", "cgroup/a/memory.max": "max", "cgroup/a/memory.current": 5})
    assert available(tmp_path) == 7 * GB


def test_the_tightest_cgroup_counts_and_file_cache_is_free(tmp_path):
    meminfo(tmp_path, 64 << 20)
    write(tmp_path, {
        "proc/self/cgroup": "0::/a/b",
        "cgroup/a/b/memory.max": "max", "cgroup/a/b/memory.current": GB,
        "cgroup/a/memory.max": 8 * GB, "cgroup/a/memory.current": 6 * GB,
        "cgroup/a/memory.stat": f"anon {GB}\ninactive_file {3 * GB}\nactive_file {GB}",
    })  # fmt: skip
    assert available(tmp_path) == 6 * GB
    write(tmp_path, {"cgroup/memory.max": 5 * GB, "cgroup/memory.current": 4 * GB})
    assert available(tmp_path) == GB
    write(tmp_path, {"cgroup/memory.current": 9 * GB})
    assert available(tmp_path) == 0


def test_version_1_of_cgroups_and_a_path_that_is_not_visible(tmp_path):
    meminfo(tmp_path, 64 << 20)
    write(tmp_path, {
        "proc/self/cgroup": "9:cpu,cpuacct:/x\n4:memory:/outside/here\n0::/",
        "cgroup/memory/memory.limit_in_bytes": 4 * GB, "cgroup/memory/memory.usage_in_bytes": 3 * GB,
        "cgroup/memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}\ntotal_active_file 0",
    })  # fmt: skip
    assert available(tmp_path) == 2 * GB


def test_lock_reports_what_the_system_says():
    with pytest.raises(OSError):
        machine.lock(0, 1 << 62)
    page = np.zeros(4096, np.uint8)
    machine.lock(page.ctypes.data, page.nbytes)

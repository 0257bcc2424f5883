"""How many threads are used when nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitconv import _kernels
from bitconv.errors import InputError
from bitconv.runtime import threads
from bitconv.runtime.threads import cgroup_cores, checked_threads, cores_of, default_threads


def topology(root: Path, siblings: dict[int, str], name: str = "core_cpus_list") -> Path:
    for cpu, listed in siblings.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / name).write_text(listed + "\n")
    return root


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_hardware_threads_of_a_core_count_once(tmp_path, name):
    root = topology(tmp_path, {0: "0,4", 1: "1,5", 2: "2", 3: "3", 4: "0,4", 5: "1,5"}, name)
    assert cores_of(range(6), root) == 4
    assert cores_of([0, 4], root) == 1
    assert cores_of([4, 5], root) == 2  # the affinity leaves one thread of each


def test_every_hardware_thread_is_a_core_where_the_system_does_not_say(tmp_path):
    assert cores_of(range(3), tmp_path) == 3
    assert cores_of(range(3), topology(tmp_path, {0: "0-1", 1: "0-1"})) == 2


@pytest.fixture
def machine(monkeypatch):
    """Says how many hardware threads, cores and cores of a quota there are."""

    def say(cpus: int, cores: int, quota: int | None = None) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(_kernels, "has_openmp", lambda: True)
        monkeypatch.setattr(threads, "usable_cpus", lambda: list(range(cpus)))
        monkeypatch.setattr(threads, "cores_of", lambda _: cores)
        monkeypatch.setattr(threads, "cgroup_cores", lambda: quota)

    return say


def test_the_default_is_one_thread_a_core_within_the_quota(machine, monkeypatch):
    machine(cpus=16, cores=8)
    assert default_threads() == (8, "the cores that this process may use, with 16 hardware threads")
    assert checked_threads(None) == 8
    machine(cpus=8, cores=8)
    assert default_threads() == (8, "the cores that this process may use")
    machine(cpus=16, cores=8, quota=3)
    assert default_threads() == (3, "the cgroup's CPU quota (of 8 cores)")
    machine(cpus=16, cores=8, quota=12)
    assert default_threads()[0] == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "11,2")
    assert default_threads() == (11, "OMP_NUM_THREADS")
    monkeypatch.setattr(_kernels, "has_openmp", lambda: False)
    assert default_threads()[0] == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_quota_of_a_container_in_whole_cores(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_cores(tmp_path) == cores


@pytest.mark.parametrize("count", [0, -1, threads.MAX_THREADS + 1])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(InputError, match="use 1 to"):
        checked_threads(count)

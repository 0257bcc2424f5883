"""A conversion that dies leaves no GGUF file, harms no existing one, and never touches its source."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bitconv
from bitconv.errors import ResourceError
from tests.checkpoints import make_checkpoint
from tests.paths import REPOSITORY

STEPS = ("write", "fsync", "link", "unlink", "replace", "rename")
"""Every call by which a writer changes the disk."""


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "m", form="online", n_layers=2, shards=3)


@pytest.fixture(scope="module")
def whole(src: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bitconv.convert(src, tmp_path_factory.mktemp("whole") / "m.gguf").path.read_bytes()


@pytest.fixture(autouse=True)
def source_stays_untouched(src: Path) -> Iterator[None]:
    before = snapshot(src)
    yield
    assert snapshot(src) == before


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


class Disk:
    """Counts the calls that change the disk and lets the n-th fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fail_at = -1
        self.error = errno.ENOSPC
        self.half = False
        for step in STEPS:
            monkeypatch.setattr(os, step, self.wrapped(step, getattr(os, step)))

    def wrapped(self, step: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            if number == self.fail_at:
                if step == "write" and self.half and len(args[1]) > 1:
                    self.fail_at += 1  # a full disk takes what fits, then refuses the rest
                    return real(args[0], args[1][: len(args[1]) // 2])
                raise OSError(self.error, os.strerror(self.error))
            return real(*args, **options)

        return call


def test_a_full_disk_at_any_call_leaves_nothing(src, whole, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    bitconv.convert(src, tmp_path / "count.gguf")
    total = disk.calls
    os.remove(tmp_path / "count.gguf")
    assert total > 20
    # The last two calls drop the second name of a file that is complete by then, and sync its folder.
    for failing in range(total - 2):
        for disk.half in (False, True):
            disk.calls, disk.fail_at = 0, failing
            with pytest.raises(ResourceError, match="no space left on device"):
                bitconv.convert(src, tmp_path / "m.gguf")
            assert list(tmp_path.iterdir()) == [], failing
    disk.fail_at = -1
    assert bitconv.convert(src, tmp_path / "m.gguf").path.read_bytes() == whole


@pytest.mark.parametrize("error", [errno.EIO, errno.EDQUOT, errno.EFBIG])
def test_other_failures_of_the_disk_leave_an_existing_file_alone(src, tmp_path, monkeypatch, error):
    out = tmp_path / "m.gguf"
    out.write_bytes(b"precious")
    disk = Disk(monkeypatch)
    disk.error = error
    for disk.fail_at in (0, 7, 20):
        disk.calls = 0
        with pytest.raises(ResourceError):
            bitconv.convert(src, out, overwrite=True)
        assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]


def test_an_exception_from_the_progress_callback_leaves_nothing(src, tmp_path):
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bitconv.convert(src, tmp_path / "m.gguf", progress=progress)
    assert list(tmp_path.iterdir()) == []


FORKED = """
import json, os, random, resource, signal, sys, time
from pathlib import Path
import bitconv
from bitconv.errors import ResourceError
mode, src, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
overwrite = mode != "calls-new"
out = folder / "m.gguf"

def convert():
    try:
        bitconv.convert(src, out, overwrite=overwrite)
    except ResourceError as error:
        print(error, file=sys.stderr)
        return 6
    return 0

def kill_at(number):
    calls = 0
    def wrapped(real):
        def call(*args, **options):
            nonlocal calls
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return real(*args, **options)
        return call
    for step in ("write", "fsync", "link", "unlink", "replace", "rename"):
        setattr(os, step, wrapped(getattr(os, step)))

def run(before, delay=None):
    pid = os.fork()
    if pid == 0:
        try:
            before()
            os._exit(convert())
        except BaseException:
            os._exit(99)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        if path.suffix == ".gguf":
            path.unlink()
    return status, found

results = []
def note(status, found):
    whole = found.get("m.gguf")
    results.append([status, sorted(found), None if whole is None else len(whole), whole == reference])

convert()
reference = out.read_bytes()
out.unlink()
if mode.startswith("calls"):
    for number in range(1000):
        status, found = run(lambda: kill_at(number))
        note(status, found)
        if status == 0:
            break
elif mode == "moments":
    start = time.monotonic()
    run(lambda: None)
    usual = time.monotonic() - start
    rng = random.Random(int(sys.argv[4]))
    for _ in range(int(sys.argv[5])):
        note(*run(lambda: None, rng.uniform(0, 1.2 * usual)))
else:
    for size in [int(part) for part in sys.argv[4:]]:
        note(*run(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))))
status, found = run(lambda: None)
note(status, found)
print(json.dumps(results))
"""


def forked(mode: str, src: Path, folder: Path, *args: int) -> list[list[Any]]:
    """Run conversions in children of one process; a row each: status, files, size of m.gguf, whether whole."""
    command = [sys.executable, "-c", FORKED, mode, str(src), str(folder), *map(str, args)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["calls-new", "calls-overwrite"])
def test_kill_9_before_any_call_leaves_no_gguf(src, tmp_path, mode):
    """Killed before the n-th call for every n; the next run takes over what is left and completes."""
    *killed, last, again = forked(mode, src, tmp_path)
    assert len(killed) > 20
    for number, (status, files, _, is_whole) in enumerate(killed):
        assert status == -9
        # the last two calls, or after a plain rename the last, find the file complete under its name
        if number < len(killed) - 2:
            assert files == ["m.gguf.partial"]
        elif "m.gguf" in files:
            assert is_whole
    for status, files, _, is_whole in (last, again):
        assert status == 0 and files == ["m.gguf"] and is_whole


def check_moments(rows: list[list[Any]]) -> None:
    *killed, last = rows
    for status, files, _, is_whole in killed:
        assert status in (-9, 0)
        # a file with the final name is there only when it is complete
        assert is_whole if "m.gguf" in files else files in ([], ["m.gguf.partial"])
    assert last[0] == 0 and last[3]


def test_kill_9_at_random_moments_leaves_no_gguf(src, tmp_path):
    rows = forked("moments", src, tmp_path, 1, 30)
    check_moments(rows)
    assert sum(row[0] == -9 for row in rows) >= 5  # the machine may be slow, but not that all outran the kill


@pytest.mark.slow
def test_kill_9_at_many_random_moments_leaves_no_gguf(src, tmp_path):
    check_moments(forked("moments", src, tmp_path, 2, 400))


def test_a_limit_on_file_size_is_a_full_disk(src, whole, tmp_path):
    sizes = [0, 1, 4096, 5000, len(whole) // 2, len(whole) - 1]
    *limited, last = forked("limit", src, tmp_path, *sizes)
    assert [row[:2] for row in limited] == [[6, []]] * len(sizes)
    assert last[0] == 0 and last[3]

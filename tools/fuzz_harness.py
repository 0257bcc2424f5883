"""Runs hostile files through bitconv in child processes that may crash, hang or run out of memory.

A target says how to make file number i and what to do with it; the harness says what became of each. Case i of a
seed is always the same, so a failure is repeated with --first i --cases 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALARM_SECONDS = 1.0
MEMORY_BYTES = 200 << 20
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")  # its shadow memory takes terabytes of addresses


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    prepare: makes valid files in a folder, once. mutate: writes a hostile one into a fresh folder, named for the
    case, and returns its path. judge: feeds it to bitconv and returns the stages it got through or stopped at;
    what escapes from it is a failure, so it must let escape whatever is not documented.
    """

    prepare: Callable[[Path], None]
    mutate: Callable[[Path, random.Random, Path], Path]
    judge: Callable[[Path], Sequence[str]]


@dataclass
class Report:
    """What became of all cases; `seconds` and `peak_bytes` are the largest of any, beyond the file itself."""

    cases: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, outcome: dict) -> None:
        self.cases += 1
        self.stages.update(outcome["stages"])
        self.seconds = max(self.seconds, outcome["seconds"])
        self.peak_bytes = max(self.peak_bytes, outcome["peak_bytes"])
        index, peak = outcome["index"], outcome["peak_bytes"]
        if outcome["error"]:
            self.failures.append(f"case {index}: undocumented error\n{outcome['error']}")
        elif peak > MEMORY_BYTES and not SANITIZED:
            self.failures.append(f"case {index}: {peak} bytes of memory beyond the file")

    def fail(self, index: int, what: str) -> None:
        self.cases += 1
        self.failures.append(f"case {index}: {what}")


def run(target_script: Path, target: Target, seed: int, first: int, cases: int, jobs: int) -> Report:
    """Run cases first to first + cases - 1 in `jobs` children at a time."""
    report, lock = Report(), threading.Lock()
    with tempfile.TemporaryDirectory(prefix="bitconv-fuzz-") as folder:
        bases = Path(folder) / "bases"
        bases.mkdir()
        target.prepare(bases)
        bounds = [first + cases * i // jobs for i in range(jobs + 1)]
        threads = [
            threading.Thread(target=_drive, args=(target_script, bases, seed, start, stop, report, lock))
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    report.failures.sort()
    return report


def _drive(
    script: Path, bases: Path, seed: int, start: int, stop: int, report: Report, lock: threading.Lock
) -> None:
    """Start child after child until every case from start to stop has an outcome."""
    retries = 0
    while start < stop:
        last = start + 1 if retries else stop
        code, outcomes, begun, stderr = _child(script, bases, seed, start, last)
        with lock:
            for outcome in outcomes:
                report.add(outcome)
            start += len(outcomes)
            if outcomes:
                retries = 0
            if start == last:
                continue
            if not begun:
                report.fail(start, f"the child did not start (exit {code})\n{stderr[-2000:]}")
                return
            if code == -signal.SIGALRM and retries < 2:
                retries += 1  # a busy machine may lose a second; a hang happens again
                continue
            name = "hang" if code == -signal.SIGALRM else f"crash (exit {code})"
            report.fail(start, f"{name}\n{stderr[-2000:]}")
            start, retries = start + 1, 0


def _child(
    script: Path, bases: Path, seed: int, start: int, stop: int
) -> tuple[int, list[dict], bool, str]:
    """Return exit code, the outcomes, whether a case was begun that has none, and stderr."""
    command = [sys.executable, str(script), "--child", str(bases), str(seed), str(start), str(stop)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    outcomes = [line for line in lines if "stages" in line]
    return done.returncode, outcomes, len(lines) > len(outcomes), done.stderr


def child(target: Target, bases: Path, seed: int, start: int, stop: int) -> None:
    """Run cases in this process, one line of JSON before and one after each."""
    from bitconv.errors import BitconvWarning

    warnings.simplefilter("error")  # a warning that is not ours would reach the user's terminal
    warnings.simplefilter("ignore", BitconvWarning)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Imports and caches belong to no case, so a valid file goes first.
    for valid in sorted(bases.iterdir()):
        with tempfile.TemporaryDirectory(dir=bases.parent) as scratch:
            copied = (shutil.copytree if valid.is_dir() else shutil.copyfile)(valid, Path(scratch) / valid.name)
            target.judge(Path(copied))
    for index in range(start, stop):
        scratch = bases.parent / str(index)
        shutil.rmtree(scratch, ignore_errors=True)  # a child that died left it
        scratch.mkdir()
        path = target.mutate(bases, random.Random(f"{seed}:{index}"), scratch)
        print(json.dumps({"index": index}), flush=True)
        print(json.dumps({"index": index, **_outcome(target, path)}), flush=True)
        shutil.rmtree(scratch)


def _outcome(target: Target, path: Path) -> dict:
    stages: list[str] = []
    error = ""
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
    before = _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MEMORY_BYTES + size, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, ALARM_SECONDS * (10 if SANITIZED else 1))
    start = time.perf_counter()
    try:
        stages = list(target.judge(path))
    except BaseException:  # whatever escapes, a Rust panic too, is the finding
        error = traceback.format_exc()
    seconds = time.perf_counter() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    peak = max(_memory("VmHWM") - before - size, 0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    return {"stages": stages, "error": error, "seconds": seconds, "peak_bytes": peak}


def _memory(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    return 0


def main(target: Target, script: str, cases: int) -> None:
    """The command line of a target's script."""
    if sys.argv[1:2] == ["--child"]:
        bases, seed, start, stop = sys.argv[2:]
        child(target, Path(bases), int(seed), int(start), int(stop))
        return
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = run(Path(script), target, options.seed, options.first, options.cases, options.jobs)
    if options.json:
        print(json.dumps(vars(report)))
    else:
        for stage, count in sorted(report.stages.items()):
            print(f"{count:6}  {stage}")
        print(f"{report.cases} cases, slowest {report.seconds:.2f} s, most memory {report.peak_bytes >> 20} MiB")
        print(*report.failures, sep="\n")
    sys.exit(1 if report.failures else 0)

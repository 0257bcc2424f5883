"""A fuzz target that does everything it must not, for the test of the harness."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tools"), str(Path(__file__).resolve().parent.parent)]

import fuzz_harness  # noqa: E402


def prepare(folder: Path) -> None:
    (folder / "base").write_text("fine")


def mutate(bases: Path, rng: random.Random, folder: Path) -> Path:
    path = folder / "case"
    path.write_text(SINS[int(folder.name)])
    return path


def judge(path: Path) -> Sequence[str]:
    sin = path.read_text()
    if sin == "hang":
        time.sleep(100)
    elif sin == "spin":
        while True:
            pass
    elif sin == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif sin == "exit":
        os._exit(0)
    elif sin == "value error":
        raise ValueError("undocumented")
    elif sin == "warning":
        import numpy as np

        np.float32(1e38) * np.float32(np.pi * 1e38)
    elif sin == "reserve":
        bytearray(250 << 20)
    elif sin == "touch":
        len([b"x" * (50 << 20) for _ in range(3)])
    return [sin]


SINS = ["fine", "hang", "crash", "value error", "warning", "reserve", "touch", "exit", "spin", "fine"]

if __name__ == "__main__":
    fuzz_harness.main(fuzz_harness.Target(prepare, mutate, judge), __file__, len(SINS))

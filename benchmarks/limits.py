"""Print every reading pattern that bitconv bench tries, best first, and the int8 peak of every instruction set.

    python benchmarks/limits.py [THREADS ...] [--file MODEL.gguf] [--rounds 3]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitconv import _kernels
from bitconv.formats.gguf import open_gguf
from bitconv.runtime.limits import Machine
from bitconv.runtime.threads import default_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threads", type=int, nargs="*", default=[default_threads()[0]])
    parser.add_argument("--file", help="a model larger than 8 times the last-level cache: its mapped tensors")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    file = open_gguf(args.file).tensor_data() if args.file else None
    machine = Machine(_kernels.isas()[0], args.threads, file)
    for _ in range(args.rounds):
        machine.search()
    for pattern, speed in sorted(machine.found.items(), key=lambda item: -item[1]):
        print(f"{speed / 1e9:7.1f} GB/s  {pattern}")
    peaks: dict[tuple[int, str], float] = {}
    for _ in range(20 * args.rounds):
        for key in itertools.product(machine.teams, _kernels.isas()):
            peaks[key] = max(peaks.get(key, 0.0), _kernels.int8_peak(key[1], key[0]))
    for (team, isa), peak in peaks.items():
        print(f"{peak / 1e9:7.0f} GMAC/s  {team} threads, {isa}")


if __name__ == "__main__":
    main()

"""Decode a model that nearly fills the memory: time to first token, tokens a second, page faults, swap.

    python tools/make_dummy.py 100B --type tl2 -o dummy-100b-tl2.gguf
    python benchmarks/large_model.py dummy-100b-tl2.gguf -c 256 -n 32

The load reads the file once and is the warm pass; the first token may still fetch what the page cache has dropped
meanwhile. Bandwidth is measured before, between tokens and after, as `bitconv bench` does.
"""

from __future__ import annotations

import argparse
import mmap
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bitconv
from bitconv.runtime.limits import Machine


def swap_bytes() -> int:
    """Return what this process has in swap."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSwap"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("-n", "--n-gen", type=int, default=32)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    started = time.perf_counter()
    model = bitconv.load(args.model, threads=args.threads)
    loaded = time.perf_counter()
    context = model.context(args.ctx_size)
    context.forward([1])
    print(f"load {loaded - started:.1f} s, then the first token {time.perf_counter() - loaded:.1f} s")
    machine = Machine(model.isa, [model.threads], model.gguf.tensor_data())
    machine.search()
    context.forward([2])
    seconds, faults = [], []
    for token in range(args.n_gen):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, time.perf_counter()
        context.forward([token + 3])
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before)
        if token % 4 == 0:
            machine.refresh(model.threads)
    limits, step = machine.limits(model.threads), statistics.median(seconds)
    nbytes = model.engine.weight_bytes()
    print(f"{args.n_gen} tokens on {model.threads} threads, median {1 / step:.3f}, best {1 / min(seconds):.3f} tok/s")
    speed = nbytes / step
    print(f"{speed / 1e9:.1f} GB/s of {limits.read / 1e9:.1f} ({speed / limits.read:.2f}); of the median of the rounds")
    print(f"between tokens, {limits.read_median / 1e9:.1f}: {speed / limits.read_median:.2f}")
    pages = nbytes / mmap.PAGESIZE
    print(f"major faults a token: median {statistics.median(faults):.0f}, most {max(faults)}, of {pages:.0f} pages")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak resident {peak / 1e9:.1f} GB, in swap {swap_bytes()} bytes")


if __name__ == "__main__":
    main()

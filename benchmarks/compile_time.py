"""Start of a process to its first finished training step, with and without a compilation cache.

python benchmarks/compile_time.py [--cases "v3 resnet_50 16" ...] [--size 257] [--batch 2] [--torch]

Every row is two real processes, one after the other: the first finds JAX's persistent compilation
cache (torch.compile's, with --torch) empty, the second finds it filled by the first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import contenders
import contest

from deeplab_jax import huge_pages

CASES = ("v3plus mobilenet_v2 16", "v3 resnet_50 16", "v3plus xception_65 16")
PARTS = ("import", "init", "compile and first step")
COLUMNS = ("network, output stride", "program", "cache", *(f"{p} s" for p in PARTS), "in all s")


def child(program: str, options: dict, started: float) -> None:
    """The process that is timed: prints when each part was done, in seconds since `started`."""
    if program == "ours":
        import deeplab_jax.main  # noqa: F401
    else:
        import torch  # noqa: F401
        import torch_peers  # noqa: F401
    times = [time.time()]
    if program == "ours":
        call, _ = contenders.our_step(**options)
    else:
        call, _ = contenders.torch_step(**options, mode="compile")
    times.append(time.time())
    call()
    times.append(time.time())
    print(json.dumps([t - started for t in times]))


def parts(program: str, options: dict, cache: str) -> list[float]:
    """Seconds of each of PARTS in a new process."""
    environment = {
        **os.environ,
        **huge_pages.environment(os.environ),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": cache,
    }
    command = [sys.executable, __file__, "--child", program, json.dumps(options)]
    command.append(str(time.time()))
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    times = json.loads(done.stdout.splitlines()[-1])
    return [b - a for a, b in zip([0, *times], times)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--size", type=int, default=257)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--torch", action="store_true", help="torch.compile, too")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--name", default="compile_time", help="of the files in results/")
    args = parser.parse_args()

    rows, raw = [], []
    for case in args.cases:
        options = {"case": case, "size": args.size, "batch": args.batch}
        for program in ("ours", "torch compile")[: 1 + args.torch]:
            print(f"{case}, {program}", flush=True)
            runs = {"empty": [], "filled": []}
            for _ in range(args.rounds):
                with tempfile.TemporaryDirectory() as cache:
                    for times in runs.values():
                        times.append(parts(program, options, cache))
            for state, times in runs.items():
                medians = [statistics.median(part) for part in zip(*times)]
                total = statistics.median(map(sum, times))
                rows.append([case, program, state, *medians, total])
            raw.append({"case": case, "program": program, "parts": PARTS} | runs)
    title = f"Process start to first training step, {args.size}x{args.size}, batch {args.batch}"
    contest.write(args.name, title, COLUMNS, rows, raw)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4]))
    else:
        main()

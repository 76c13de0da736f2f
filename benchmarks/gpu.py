"""All tables for a machine with a GPU (jax[cuda], torch with CUDA), one after the other.

python benchmarks/gpu.py [--size 513] [--batches 16 32 64] [--minutes 40]

Each table is a process of its own; one that fails or outlasts its time ends alone. Training goes
to larger batches until ours finds no memory. Last come the share of the memory bandwidth and the
images/s of TARGET.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys

import contenders
import contest
import memory
from contest import Contender

CASES = ("v3plus resnet_101 16", "v3plus xception_65 16")
TARGET = ("v3plus xception_65 16", 16, 270)  # training: network, batch, images/s
COLUMNS = (
    "training step",
    "batch",
    "ms",
    "images/s",
    "wanted",
    "GB accessed",
    "GB/s",
    "measured limit GB/s",
    "share of memory bandwidth",
)


def run(script: str, arguments: list, minutes: float) -> bool:
    """Whether benchmarks/SCRIPT succeeded; what it started ends with it."""
    command = [sys.executable, str(contest.HERE / script), *map(str, arguments)]
    print("\n$ " + " ".join(command[1:]), flush=True)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        code = f"no end after {minutes:g} minutes"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code:
        print(f"{script} failed: {code}", flush=True)
    return code == 0


def ours(name: str) -> dict:
    """Our result in results/NAME.json, a table of one row; {} without one."""
    path = contest.HERE / "results" / f"{name}.json"
    return json.loads(path.read_text())["results"][0]["ours"] if path.exists() else {}


def training(case: str, args, common: list) -> dict[int, dict]:
    """{batch: our result}, up to the first that fails; a table a batch."""
    results = {}
    for batch in args.batches:
        name = f"{args.name}_training_{case.replace(' ', '_')}_batch_{batch}"
        (contest.HERE / "results" / f"{name}.json").unlink(missing_ok=True)
        options = [*common, "--cases", case, "--batch", batch, "--name", name]
        # Contenders share the card's memory: the fewer, the larger the batch that fits.
        options += ["--modes", *args.modes]
        run("training_step.py", options, args.minutes)
        result = ours(name)
        if "median_ms" not in result:
            break
        results[batch] = result
    return results


def bandwidth(args) -> float | None:
    """Bytes a second of y = x + 1."""
    stream = Contender("y = x + 1", contenders.our_stream, {"megabytes": args.stream})
    result = contest.contest([stream], rounds=args.rounds)[stream.name]
    return result["bytes"] / (1e-3 * result["median_ms"]) if "median_ms" in result else None


def accessed(case: str, args, batch: int) -> int | None:
    """Bytes that the kernels of a training step read and write, by XLA's account."""
    try:
        options = (case, args.size, batch, args.dtype, False)
        return contest.apart(memory.step, *options)["accessed"] or None
    except Exception as error:  # the table goes on without
        print(f"bytes of {case}: {error}", flush=True)
        return None


def row(case: str, batch: int, result: dict, limit: float | None, args) -> list:
    seconds, rate = 1e-3 * result["median_ms"], 1e3 * batch / result["median_ms"]
    wanted = TARGET[2] if (case, batch) == TARGET[:2] and args.size == 513 else None
    moved = accessed(case, args, batch)
    share = f"{100 * moved / seconds / limit:.0f} %" if moved and limit else None
    return [
        case,
        batch,
        1e3 * seconds,
        rate,
        wanted and f"{wanted}: {'reached' if rate >= wanted else 'missed'}",
        moved and 1e-9 * moved,
        moved and 1e-9 * moved / seconds,
        limit and 1e-9 * limit,
        share,
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--size", type=int, default=513)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64], help="of training")
    parser.add_argument("--forward", type=int, nargs="+", default=[1, 16], help="batches")
    parser.add_argument("--modes", nargs="*", default=["channels_last", "compile"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrix product")
    parser.add_argument("--stream", type=int, default=2000, help="MB of the bandwidth probe")
    parser.add_argument("--only", default="", help="operations whose title contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=40, help="for each process")
    parser.add_argument("--name", default="gpu", help="how the files in results/ begin")
    args = parser.parse_args()

    machine = ["--dtype", args.dtype, "--rounds", args.rounds, "--matrix", args.matrix]
    common = [*machine, "--size", args.size]
    forward = [*common, "--cases", *args.cases, "--batch", *args.forward]
    run("forward.py", [*forward, "--name", f"{args.name}_forward"], args.minutes)
    trained = {case: training(case, args, common) for case in args.cases}
    operations = [*machine, "--only", args.only, "--name", f"{args.name}_operations"]
    run("operations.py", operations, args.minutes)

    limit = bandwidth(args)
    rows = [
        row(case, batch, result, limit, args)
        for case, results in trained.items()
        for batch, result in results.items()
    ]
    title = f"Training against memory bandwidth, {args.size}x{args.size}, {args.dtype}"
    contest.write(f"{args.name}_training", title, COLUMNS, rows, rows)
    print(f"results: {contest.HERE / 'results'}/{args.name}_*.md and .json")


if __name__ == "__main__":
    main()

"""The tables over networks: what forward.py and training_step.py share."""

import argparse
from collections.abc import Callable, Mapping, Sequence

import contenders
import contest
from contest import Contender

COLUMNS = (
    "network, output stride",
    "batch",
    "ours ms",
    "torch's best ms",
    "mode",
    "ours / torch's best",
    "images/s",
    "share of matrix peak",
    "first call s, ours",
    "torch's best",
    "peak MB, ours",
    "torch's best",
)


def main(
    name: str,
    title: str,
    cases: Sequence[str],
    ours: Callable,
    theirs: Callable,
    *,
    modes: Sequence[str],
    variants: Mapping[str, dict] = {},
    size: int,
    batches: Sequence[int],
    passes: int,
) -> None:
    """Runs the contests the command line asks for and writes results/NAME.json and .md.

    Args:
      name, title: of the table.
      cases: the default networks.
      ours, theirs: makers of contenders.py.
      modes: torch's.
      variants: {name: options} of ours beside the plain one.
      size: default height and width of the images.
      batches: default batch sizes.
      passes: arithmetic of a call over that of an inference.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", default=cases)
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--batch", type=int, nargs="+", default=batches)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="*", default=modes, help="torch's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--matrix", type=int, default=2048, help="side of the matrix product")
    parser.add_argument("--name", default=name, help="of the files in results/")
    args = parser.parse_args()

    rows, raw = [], []
    for case in args.cases:
        for batch in args.batch:
            print(f"{case}, batch {batch}", flush=True)
            matmul = {"n": args.matrix, "dtype": args.dtype}
            options = {"case": case, "size": args.size, "batch": batch, "dtype": args.dtype}
            entrants = [
                Contender("ours", ours, options),
                *(Contender(name, ours, options | more) for name, more in variants.items()),
                *(Contender(f"torch {m}", theirs, options | {"mode": m}) for m in args.modes),
                Contender("matrix product", contenders.our_matmul, matmul),
            ]
            results = contest.contest(entrants, rounds=args.rounds)
            gigaflops = passes * contest.apart(contenders.gigaflops, case, args.size, batch)
            raw.append({"case": case, "batch": batch, "gigaflops": gigaflops} | results)
            rows.append(_row(case, batch, args.matrix, gigaflops, results))
    heading = f"{title}, {args.size}x{args.size}, {args.dtype}"
    contest.write(args.name, heading, COLUMNS, rows, raw)


def _row(case, batch, matrix, gigaflops, results):
    ours = results["ours"]
    peers = {k: v for k, v in results.items() if k.startswith("torch") and "median_ms" in v}
    best = min(peers, key=lambda name: peers[name]["median_ms"], default=None)
    peer = peers.get(best, {})
    if "error" in ours:
        return [case, batch, ours["error"], *[None] * (len(COLUMNS) - 3)]
    ms = ours["median_ms"]
    peak = 2e-9 * matrix**3 / (1e-3 * results["matrix product"]["median_ms"])
    return [
        case,
        batch,
        ms,
        peer.get("median_ms"),
        best and best.removeprefix("torch "),
        peer and ms / peer["median_ms"],
        1e3 * batch / ms,
        f"{100 * gigaflops / (1e-3 * ms) / peak:.0f} %",
        ours["first_call_s"],
        peer.get("first_call_s"),
        ours["peak_memory_mb"],
        peer.get("peak_memory_mb"),
    ]

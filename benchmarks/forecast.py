"""What the collectives of a step leave of many GPUs' speed: calculated, no GPU is asked.

python benchmarks/forecast.py [--images 8] [--teraflops 495] [--share 0.15] ...

Reads results/scaling_collectives.json (`scaling.py`); the links' speeds and a GPU's step are
assumptions, given as arguments. Beside the share of N times one GPU's speed stand the bytes that
the input has to bring.
"""

import argparse
import json
import math

import contenders
import contest

COLUMNS = ("training step", "GPUs", "step ms", "gradients ms", "norms ms", "% left")
COLUMNS += ("% left, gradients behind the backward pass", "% left, norm by device, too")
COLUMNS += ("images/s", "GB/s from disk", "decoding cores", "checkpoint MB")


def exchange(volume: float, devices: int, args) -> float:
    """Seconds of one sum of so many bytes over all devices: in nodes, then between them.

    Ring or tree, 2 (n - 1) / n of the bytes pass every link of n; between nodes each GPU sends its
    own part over its own network link.
    """
    inside = min(devices, args.node)
    nodes = devices / inside
    seconds = 2 * (inside - 1) / inside * volume / (1e9 * args.node_gbs)
    return seconds + 2 * (nodes - 1) / nodes * volume / inside / (1e9 * args.network_gbs)


def latency(devices: int, args) -> float:
    """Seconds that a small sum takes."""
    nodes = max(devices / args.node, 1)
    return 1e-6 * (args.node_us + args.network_us * math.log2(nodes))


def sums(found: dict) -> int:
    return found["collectives"]["all-reduce"][0]


def predicted(case: str, together: dict, apart: dict, args) -> list[list]:
    """Rows of the table, from the programs with batch norm over all and by device."""
    operations = 3 * contenders.gigaflops(case, together["size"], args.images) * 1e9
    step = operations / (1e12 * args.teraflops * args.share)
    rows = []
    for devices in (8, 64, 512):
        gradients = exchange(together["gradient"], devices, args)
        norms = (sums(together) - sums(apart)) * latency(devices, args)
        hidden = max(0, gradients - 2 / 3 * step)  # behind the backward pass
        left = [100 * step / (step + t) for t in (gradients + norms, hidden + norms, hidden)]
        speed = devices * args.images / step * left[-1] / 100
        needs = [speed, speed * args.kilobytes / 1e6, speed / args.decoded]
        checkpoint = 2 * together["gradient"] / 1e6  # parameters and momentum
        times = [1e3 * t for t in (step, gradients, norms)]
        rows.append([case, devices, *times, *left, *needs, checkpoint])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=8, help="a GPU and step")
    parser.add_argument("--teraflops", type=float, default=495, help="H100, TF32 without sparsity")
    parser.add_argument("--share", type=float, default=0.15, help="of them that training reaches")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--node-gbs", type=float, default=450, help="GB/s a GPU, one way: NVLink 4")
    parser.add_argument("--network-gbs", type=float, default=50, help="GB/s a GPU: 400 Gbit/s")
    parser.add_argument("--node-us", type=float, default=15, help="a small sum in a node, µs")
    parser.add_argument("--network-us", type=float, default=10, help="more per doubling of nodes")
    parser.add_argument("--kilobytes", type=float, default=92, help="of an image and its mask")
    parser.add_argument("--decoded", type=float, default=127, help="images/s of a core, data.py")
    args = parser.parse_args()
    found = json.loads((contest.HERE / "results" / "scaling_collectives.json").read_text())
    programs = {
        (program["case"], program["groups"] > 1): program
        for program in reversed(found["results"])
        if program["height"] == 1
    }
    rows = []
    for case in dict.fromkeys(program["case"] for program in found["results"]):
        rows += predicted(case, programs[case, False], programs[case, True], args)
    title = f"Forecast, {args.images} images a GPU, from assumptions"
    contest.write("forecast", title, COLUMNS, rows, vars(args))


if __name__ == "__main__":
    main()

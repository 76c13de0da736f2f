"""Many devices: what a step takes on two, what devices send each other, what that foretells.

python benchmarks/scaling.py [--cases "v3plus xception_65 16" ...] [--size 513] [--devices 8]

Three tables. `scaling`: training steps on one and two CPU devices of this machine, in turn.
`scaling_collectives`: the collectives in the program that XLA compiles for `--devices`, their
number and bytes; nothing runs. `scaling_predicted`: the share of N times one GPU's speed that is
left with the collectives, calculated from the second table, the links' speeds and an assumed
step: no GPU was asked.
"""

import argparse
import math
import re
from collections import Counter

import contenders
import contest
from contest import Contender

CASES = ("v3plus xception_65 16", "v3plus resnet_101 16", "v3plus mobilenet_v2 16")
KINDS = ("all-reduce", "all-gather", "collective-permute", "reduce-scatter", "all-to-all")
BYTES = {"f32": 4, "f64": 8, "bf16": 2, "s32": 4, "u32": 4, "s64": 8, "u8": 1, "pred": 1}


def collectives(case: str, size: int, batch: int, devices: int, groups: int, height: int) -> dict:
    """{kind: [number, bytes that a device gives]}, and what else is known of the program."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    # The operations as every platform but the CPU has them.
    jax.lax.platform_dependent = lambda *args, default, **_: default(*args)
    step, state, data = contenders.our_training(case, size, batch, groups=groups, height=height)
    compiled = step.lower(state, data).compile()
    number, volume = Counter(), Counter()
    for line in compiled.as_text().splitlines():
        found = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
        if found:
            shapes, kind, _ = found.groups()
            number[kind] += 1
            volume[kind] += sum(
                BYTES[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
                for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            )
    return {
        "collectives": {kind: [number[kind], volume[kind]] for kind in number},
        "gradient": sum(x.nbytes for x in jax.tree.leaves(state.params)),
        "scratch": compiled.memory_analysis().temp_size_in_bytes,
    }


def measured(case: str, size: int, batch: int, rounds: int) -> dict[str, dict]:
    options = {"case": case, "size": size, "batch": batch}
    entrants = [
        Contender(f"{n} device(s)", contenders.our_step, options | {"devices": n}) for n in (1, 2)
    ]
    return contest.contest(entrants, rounds=rounds)


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
    """Rows of the third table, from the programs with batch norm over all and by device."""
    operations = 3 * contenders.gigaflops(case, args.size, args.per_device) * 1e9
    step = operations / (1e12 * args.teraflops * args.share)
    rows = []
    for devices in (8, 64, 512):
        gradients = exchange(together["gradient"], devices, args)
        norms = (sums(together) - sums(apart)) * latency(devices, args)
        hidden = max(0, gradients - 2 / 3 * step)  # behind the backward pass
        left = [100 * step / (step + t) for t in (gradients + norms, hidden + norms, hidden)]
        rows.append([case, devices, *(1e3 * t for t in (step, gradients, norms)), *left])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--size", type=int, default=513)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--per-device", type=int, default=2, help="images")
    parser.add_argument("--measured", default="v3plus mobilenet_v2 16", help="case of the first")
    parser.add_argument("--measured-size", type=int, default=257)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--height", type=int, default=4, help="devices that share an image")
    parser.add_argument("--tall", type=int, nargs=2, default=[1025, 1], help="size, batch of these")
    links = parser.add_argument_group("assumed of a GPU and its links")
    links.add_argument("--teraflops", type=float, default=495, help="H100, TF32 without sparsity")
    links.add_argument("--share", type=float, default=0.25, help="of them that training reaches")
    links.add_argument("--node", type=int, default=8, help="GPUs of a node")
    links.add_argument("--node-gbs", type=float, default=450, help="GB/s a GPU, one way: NVLink 4")
    links.add_argument("--network-gbs", type=float, default=50, help="GB/s a GPU: 400 Gbit/s")
    links.add_argument("--node-us", type=float, default=15, help="a small sum in a node, µs")
    links.add_argument("--network-us", type=float, default=10, help="more per doubling of nodes")
    args = parser.parse_args()

    result = measured(args.measured, args.measured_size, 8, args.rounds)
    rows = [
        [args.measured, n, 8, r.get("median_ms"), r.get("first_call_s"), r.get("peak_memory_mb")]
        for n, r in result.items()
    ]
    columns = ("training step", "CPU", "batch", "ms", "first call s", "peak MB")
    contest.write("scaling", f"Two CPU devices, {args.measured_size} px", columns, rows, result)

    rows, raw, forecasts = [], [], []
    batch = args.devices * args.per_device
    tall, of_tall = args.tall
    plans = [
        (case, args.size, batch, groups, 1) for case in args.cases for groups in (1, args.devices)
    ]
    plans += [
        ("v3plus mobilenet_v2 16", tall, args.devices // height * of_tall, 1, height)
        for height in (1, args.height)
    ]
    for case, size, images, groups, height in plans:
        found = contest.apart(collectives, case, size, images, args.devices, groups, height)
        print(case, size, images, groups, height, found, flush=True)
        raw.append({"case": case, "size": size, "groups": groups, "height": height} | found)
        counts = [found["collectives"].get(kind, [0, 0]) for kind in KINDS[:3]]
        figures = [x for number, volume in counts for x in (number, volume / 1e6)]
        rows.append(
            [
                case,
                size,
                images,
                groups,
                height,
                found["gradient"] / 1e6,
                *figures,
                found["scratch"] / 1e6,
            ]
        )
        if groups > 1:  # after the same with one
            forecasts += predicted(case, raw[-2], raw[-1], args)
    columns = ("training step", "px", "batch", "norm groups", "share an image", "gradient MB")
    columns += tuple(f"{kind}{unit}" for kind in KINDS[:3] for unit in ("", " MB"))
    title = f"Collectives of a step on {args.devices} devices"
    contest.write("scaling_collectives", title, (*columns, "scratch MB"), rows, raw)
    columns = ("training step", "GPUs", "step ms, assumed", "gradients ms", "norms ms", "% left")
    columns += ("% left, gradients behind the backward pass", "% left, norm by device, too")
    title = f"Predicted, {args.per_device} images of {args.size} px a GPU, from assumptions"
    contest.write("scaling_predicted", title, columns, forecasts, vars(args))


if __name__ == "__main__":
    main()

"""Many devices: what a step takes on two of them, and what devices send each other.

python benchmarks/scaling.py [--cases "v3plus xception_65 16" ...] [--size 513] [--devices 8]

Two tables. `scaling`: training steps on one and two CPU devices of this machine, in turn.
`scaling_collectives`: the collectives in the program that XLA compiles for `--devices`, their
number and the bytes of their results; nothing runs. `forecast.py` calculates from them.
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
    args = parser.parse_args()

    result = measured(args.measured, args.measured_size, 8, args.rounds)
    rows = [
        [args.measured, n, 8, r.get("median_ms"), r.get("first_call_s"), r.get("peak_memory_mb")]
        for n, r in result.items()
    ]
    columns = ("training step", "CPU", "batch", "ms", "first call s", "peak MB")
    contest.write("scaling", f"Two CPU devices, {args.measured_size} px", columns, rows, result)

    rows, raw = [], []
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
    columns = ("training step", "px", "batch", "norm groups", "share an image", "gradient MB")
    columns += tuple(f"{kind}{unit}" for kind in KINDS[:3] for unit in ("", " MB"))
    title = f"Collectives of a step on {args.devices} devices"
    contest.write("scaling_collectives", title, (*columns, "scratch MB"), rows, raw)


if __name__ == "__main__":
    main()

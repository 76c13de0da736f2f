"""Input of a run of many processes, simulated: does each find its part, at once, and no one else's?

python benchmarks/input_shares.py [--examples 1000000000] [--processes 1 64 512] [--batch 8192]

A set of that many examples is made of their numbers, so nothing is read. Of every process the
batch of one step, late in the epoch, is taken by our own iterator. All blocks together have to be
the batch that one process alone has, without an example twice.
"""

import argparse
import resource
import time

import contest
import numpy as np

from deeplab_jax.data import pipeline

DATA = {
    "name": "numbers",
    "crop_size": (8, 8),
    "flip": False,
    "min_scale_factor": 1.0,
    "max_scale_factor": 1.0,
    "scale_factor_step_size": 0.0,
    "min_resize_value": None,
    "normalization": "zero_mean",
    "ignore_label": 255,
    "augment_on": "host",
    "num_threads": 1,
    "num_workers": 0,
}
COLUMNS = ("examples", "processes", "batch", "step", "s to a process's batch, median", "longest")
COLUMNS += ("as one process's", "twice", "resident MB")


class Numbers:
    """Examples whose image holds their number, in digits of base 256."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        image = np.zeros((8, 8, 3), np.uint8)
        image[0, 0], image[0, 1] = (
            [index >> shift & 255 for shift in shifts] for shifts in ((0, 8, 16), (24, 32, 40))
        )
        return {"image": image, "label": np.zeros((8, 8), np.uint8)}


def numbers(images: np.ndarray) -> np.ndarray:
    digits = images[:, 0, :2].reshape(len(images), 6).astype(np.int64)
    return digits @ (256 ** np.arange(6))


def block(examples: int, batch: int, step: int, process: int, processes: int):
    """(numbers of the examples of a process's part of a step, seconds from nothing to it)."""
    begin = time.perf_counter()
    several = {"process": process, "processes": processes}
    with pipeline.train_iterator(Numbers(examples), DATA, 0, batch, **several) as batches:
        batches.set_state({"next_index": step})
        images = next(batches)["image"]
        return numbers(images), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=1_000_000_000)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 64, 512])
    parser.add_argument("--batch", type=int, default=8192)
    args = parser.parse_args()
    step = args.examples // args.batch - 1  # the last whole one of the first epoch
    whole, _ = block(args.examples, args.batch, step, 0, 1)
    rows, raw = [], []
    for processes in args.processes:
        parts = [block(args.examples, args.batch, step, p, processes) for p in range(processes)]
        found, seconds = np.concatenate([part for part, _ in parts]), [s for _, s in parts]
        twice = args.batch - len(np.unique(found))
        same = "yes" if np.array_equal(found, whole) else "NO"
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        rows.append([args.examples, processes, args.batch, step])
        rows[-1] += [float(np.median(seconds)), max(seconds), same, twice, resident]
        raw.append(dict(zip(COLUMNS, rows[-1])))
    contest.write("input_shares", "Input of many processes, simulated", COLUMNS, rows, raw)


if __name__ == "__main__":
    main()

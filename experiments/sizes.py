"""Ways to see images of odd sizes, on strips cut from a dataset's images: `predict`'s keywords.

    python experiments/sizes.py --weights=WEIGHTS --root=VOC_SUBSET

A strip is an image's middle, four times as wide as high, or as high as wide. Prints a table of mean
IoU and the time of an image.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import deeplab_jax
from deeplab_jax.data import datasets
from deeplab_jax.tally import Tally

WAYS = {
    "native size": {},
    "resized to 513x513": {"resize": (513, 513)},
    "longer side resized to 513": {"resize": 513},
    "padded to 513x513": {"crop_size": (513, 513)},
    "tiles of 129x129, overlap 32": {"tile_size": (129, 129), "tile_overlap": 32},
    "scales 0.5, 1, 1.5": {"eval_scales": (0.5, 1.0, 1.5)},
}


def strip(array: np.ndarray, shape: str) -> np.ndarray:
    """The middle [H / 4, W], or [H, W / 4], of [H, W, ...]; "whole": all of it."""
    if shape == "whole":
        return array
    axis = 0 if shape == "wide" else 1
    quarter = array.shape[axis] // 4
    start = (array.shape[axis] - quarter) // 2
    return array.take(range(start, start + quarter), axis)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="what deeplab_jax.load takes, 21 classes")
    parser.add_argument("--root", required=True, help="PASCAL VOC")
    parser.add_argument("--images", type=int, default=60, help="of val, evenly spread")
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 8, 10, 12, 13, 15, 17])
    arguments = parser.parse_args()
    source = datasets.source("voc", Path(arguments.root), "val", 21, 255)
    chosen = np.linspace(0, len(source) - 1, arguments.images).astype(int)
    examples = [source[i] for i in chosen]
    shapes = ("whole", "wide", "high")
    print(f"| way | {' | '.join(f'{s}, mean IoU | ms' for s in shapes)} |")
    print(f"|---|{'---|---|' * len(shapes)}")
    for way, options in WAYS.items():
        network = deeplab_jax.load(arguments.weights, **options)
        cells = []
        for shape in shapes:
            tally, times = Tally(21, 255), []
            for example in examples:
                image = strip(example["image"], shape)
                network.segment(image)  # compiles
                begin = time.perf_counter()
                labels = network.segment(image)
                times.append(time.perf_counter() - begin)
                tally.add(strip(example["label"], shape), labels)
            figures = tally.results(network.classes, arguments.classes)
            iou = figures[f"mean_iou_{len(arguments.classes)}"]
            cells.append(f"{100 * iou:.1f} | {1000 * np.median(times):.0f}")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

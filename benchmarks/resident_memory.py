"""Memory that grows or does not: prediction of ever larger photographs, evaluation of ever more.

python benchmarks/resident_memory.py --root=VOC_SUBSET [--weights=WEIGHTS] [--sizes 1500x1125 ...]

Photographs are mosaics of the dataset's, JPEG files; each is segmented by `--mode=predict` in a
process of its own, in tiles. Then one process evaluates, and tells its memory now and then.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import contest
import numpy as np
from PIL import Image

from deeplab_jax.data import datasets

CONFIG = Path(__file__).parents[1] / "configs/zoo.py"
COLUMNS = ("what", "megapixels", "images", "seconds", "resident MB", "of these the image MB")


def mosaic(source, width: int, height: int) -> np.ndarray:
    """[H, W, 3] uint8 of the source's images, side by side."""
    out, y, place = np.empty((height, width, 3), np.uint8), 0, 0
    while y < height:
        x, high = 0, 375
        while x < width:
            image = source[place % len(source)]["image"][:high]
            place += 1
            if len(image) == high:
                block = out[y : y + high, x : x + image.shape[1]]
                block[:] = image[: block.shape[0], : block.shape[1]]
                x += image.shape[1]
        y += high
    return out


def overrides(weights: str, root: str) -> dict:
    return {"init_from": weights, "data.root": root}


def predict(preset: str, weights: str, root: str, photograph: str, workdir: str):
    """(seconds, peak of resident bytes) of --mode=predict with tiles."""
    from deeplab_jax import config as configuration
    from deeplab_jax import main

    chosen = {"predict.tile_size": configuration.TILE_SIZE}
    config = configuration.load(f"{CONFIG}:{preset}", overrides(weights, root) | chosen)
    begin = time.perf_counter()
    main.run(config, "predict", Path(workdir), photograph)
    return time.perf_counter() - begin, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class First:
    """The first images of a source."""

    def __init__(self, source, count: int):
        self.source, self.count = source, count

    def __len__(self):
        return self.count

    def __getitem__(self, index: int):
        return self.source[index]


def evaluate(preset: str, weights: str, root: str, counts: list[int]):
    """[(seconds, resident bytes now)] after so many images."""
    from deeplab_jax import config as configuration
    from deeplab_jax import evaluate, networks, runtime
    from deeplab_jax import train as training
    from deeplab_jax.data import pipeline

    config = configuration.load(f"{CONFIG}:{preset}", overrides(weights, root))
    source = pipeline.source(config.data, "train_aug", config.model.num_classes)
    labels = pipeline.class_labels(config.data, config.model.num_classes)
    _, module = networks.build(config)
    variables = networks.load(config, training.variable_shapes(module))
    found = []
    for count in counts:
        begin = time.perf_counter()
        evaluate.evaluate(
            module,
            variables,
            First(source, count),
            config,
            labels,
            mesh=runtime.data_mesh(),
            trimap_widths=config.eval.trimap_widths,
            panels=config.eval.panels,
        )
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found.append((time.perf_counter() - begin, pages * resource.getpagesize()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="a folder in PASCAL VOC's layout")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--preset", default="mobilenetv2_coco_voc_trainval", help="of configs/zoo")
    sizes = ["1500x1125", "3000x2250", "6000x4500", "12000x9000"]
    parser.add_argument("--sizes", nargs="*", default=sizes, help="of photographs, width x height")
    parser.add_argument("--counts", nargs="*", type=int, default=[40, 400])
    parser.add_argument("--name", default="resident_memory", help="of the files in results/")
    args = parser.parse_args()
    rows, raw = [], []
    source = datasets.source("voc", args.root, "val", 21, 255)
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            photograph = Path(folder) / "photograph.jpg"
            Image.fromarray(mosaic(source, width, height)).save(photograph, quality=92)
            where = (args.preset, args.weights, args.root, str(photograph), folder)
            seconds, peak = contest.apart(predict, *where)
        pixels = width * height
        rows.append(
            [f"predict {size}", pixels / 1e6, 1, seconds, round(peak / 1e6), 3 * pixels / 1e6]
        )
        raw.append({"size": size, "seconds": seconds, "peak_bytes": peak})
    if args.counts:
        found = contest.apart(evaluate, args.preset, args.weights, args.root, args.counts)
        for count, (seconds, now) in zip(args.counts, found):
            rows.append([f"evaluate {count}", None, count, seconds, round(now / 1e6), None])
            raw.append({"images": count, "seconds": seconds, "bytes": now})
    contest.write(args.name, "Resident memory", COLUMNS, rows, raw)


if __name__ == "__main__":
    main()

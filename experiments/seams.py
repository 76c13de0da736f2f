"""Tiles beside the whole image: how many labels agree, and whether a seam shows.

    python experiments/seams.py --config=configs/zoo.py:mobilenetv2_coco_voc_trainval \
        --weights=WEIGHTS --root=VOC_SUBSET

A seam is a line along which a tile begins or ends. Its step is how much more the probabilities
change across it than in the whole image's answer: half the L1 distance of the two rows or columns
beside it, in the mean over its length. Photographs are seen at `--zoom` times their size, so that
several tiles are needed.
"""

import argparse

import numpy as np

from deeplab_jax import config as configuration
from deeplab_jax import networks, tiles
from deeplab_jax import train as training
from deeplab_jax.data import pipeline
from deeplab_jax.data.transforms import resize_bilinear
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import probabilities


def steps(probs: np.ndarray, axis: int) -> np.ndarray:
    """Mean change of the probabilities [H, W, C] from each row (axis 0) or column to the next."""
    change = 0.5 * np.abs(np.diff(probs, axis=axis)).sum(axis=-1)
    return change.mean(axis=1 - axis)


def seams(length: int, tile: int, overlap: int) -> list[int]:
    """Indices into `steps` at which a tile begins or ends within an axis."""
    begins = tiles.starts(length, tile, overlap)
    lines = {begin - 1 for begin in begins} | {begin + tile - 1 for begin in begins}
    return sorted(line for line in lines if 0 <= line < length - 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE.py:preset")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--root", required=True, help="where the configuration's dataset lies")
    parser.add_argument("--images", type=int, default=12, help="of the split, evenly spread")
    parser.add_argument("--zoom", type=float, default=2.0)
    parser.add_argument("--tiles", type=int, nargs="+", default=[321, 513])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 32, 128])
    arguments = parser.parse_args()
    given = {"init_from": arguments.weights, "data.root": arguments.root}
    config = configuration.load(arguments.config, given)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    _, module = networks.build(config)
    variables = networks.load(config, training.init_variables(module, 0, 3))
    variables = fold_batch_norm(module, variables)
    options = {
        "normalization": config.data.normalization,
        "align_corners": config.model.align_corners,
    }

    def see(image):
        return probabilities(module, variables, image, **options)

    ways = [(tile, overlap) for tile in arguments.tiles for overlap in arguments.overlaps]
    alike, worst = {way: [] for way in ways}, {way: [] for way in ways}
    chosen = np.linspace(0, len(source) - 1, arguments.images).astype(int)
    for i in chosen:
        image = source[i]["image"]
        size = tuple(round(arguments.zoom * n) for n in image.shape[:2])
        image = np.clip(resize_bilinear(image, size) + 0.5, 0, 255).astype(np.uint8)
        whole = see(image)
        for tile, overlap in ways:
            probs = np.empty_like(whole)
            for place, piece in tiles.blended(image, see, (tile, tile), overlap):
                probs[place] = piece
            alike[tile, overlap].append((probs.argmax(-1) == whole.argmax(-1)).mean())
            for axis in (0, 1):
                more = steps(probs, axis) - steps(whole, axis)
                lines = seams(size[axis], min(tile, size[axis]), overlap)
                worst[tile, overlap] += more[lines].tolist()
    print(f"{len(chosen)} photographs at {arguments.zoom:g} times their size")
    print("| tile, px | overlap | labels alike, mean % | worst image | seam's step, mean | worst |")
    print("|---|---|---|---|---|---|")
    for tile, overlap in ways:
        shares, step = 100 * np.array(alike[tile, overlap]), np.array(worst[tile, overlap])
        print(
            f"| {tile} | {overlap} | {shares.mean():.1f} | {shares.min():.1f} | "
            f"{step.mean():.4f} | {step.max():.4f} |"
        )


if __name__ == "__main__":
    main()

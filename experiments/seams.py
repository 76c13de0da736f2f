"""Tiles beside the whole image: how many labels agree, and whether a seam shows.

    python -m experiments.seams --config=configs/zoo.py:mobilenetv2_coco_voc_trainval \
        --weights=WEIGHTS --root=VOC_SUBSET

A seam is a line along which a tile begins or ends. Its step is how much more the probabilities
change across it than in the whole image's answer: half the L1 distance of the two rows or columns
beside it, in the mean over its length. Photographs are seen at `--zoom` times their size, so that
several tiles are needed.
"""

import numpy as np

from deeplab_jax import tiles
from deeplab_jax.data.transforms import resize_bilinear
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import probabilities
from experiments import given


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
    parser = given.parser(__doc__, images=12)
    parser.add_argument("--zoom", type=float, default=2.0)
    parser.add_argument("--tiles", type=int, nargs="+", default=[321, 513])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 32, 128])
    arguments = parser.parse_args()
    config, module, variables, examples = given.read(arguments)
    variables = fold_batch_norm(module, variables)
    options = {
        "normalization": config.data.normalization,
        "align_corners": config.model.align_corners,
    }

    def see(image):
        return probabilities(module, variables, image, **options)

    ways = [(tile, overlap) for tile in arguments.tiles for overlap in arguments.overlaps]
    alike, worst = {way: [] for way in ways}, {way: [] for way in ways}
    for example in examples:
        image = example["image"]
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
    print(f"{arguments.images} photographs at {arguments.zoom:g} times their size")
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

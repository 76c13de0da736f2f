"""What folding batch norm, and bfloat16, change in the labels of a split, against plain float32.

    python -m experiments.fast_inference --config=configs/zoo.py:mobilenetv2_coco_voc_trainval \
        --weights=WEIGHTS --root=VOC_SUBSET --classes 0 8 10 12 13 15 17

Prints a table: the share of all pixels and of the worst
image's pixels that keep their label, and mean IoU over the classes.
"""

import numpy as np

from deeplab_jax import config as configuration
from deeplab_jax import models
from deeplab_jax.metrics import mean_iou
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import predict
from deeplab_jax.tally import Tally
from experiments import given


def main():
    parser = given.parser(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", help="to average over; all if not given")
    arguments = parser.parse_args()
    config, exact, variables, examples = given.read(arguments)
    half = models.build(**{**configuration.eval_model(config), "dtype": "bfloat16"})
    folded = fold_batch_norm(exact, variables)
    ways = {
        "float32": (exact, variables),
        "float32, folded": (exact, folded),
        "bfloat16, folded": (half, folded),
    }
    options = configuration.predict_options(config)
    tallies = {way: Tally(config.model.num_classes, config.data.ignore_label) for way in ways}
    alike = {way: [] for way in ways}
    for example in examples:
        answers = {
            way: predict(*network, example["image"], **options) for way, network in ways.items()
        }
        for way, labels in answers.items():
            alike[way].append((labels == answers["float32"]).mean())
            tallies[way].add(example["label"], labels)
    print(f"{len(alike['float32'])} images\n| way | pixels alike, % | worst image | mean IoU |")
    print("|---|---|---|---|")
    for way, tally in tallies.items():
        shares = 100 * np.array(alike[way])
        iou = mean_iou(tally.total, arguments.classes)
        print(f"| {way} | {shares.mean():.3f} | {shares.min():.2f} | {iou:.4f} |")


if __name__ == "__main__":
    main()
